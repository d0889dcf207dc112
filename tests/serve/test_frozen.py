"""SIGSTOP for longer than the heartbeat's timeout: declared dead, and fenced when it wakes up."""

import os
import signal

import pytest

from tests.serve.asking import ask, finish
from tests.serve.fleet import eventually

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("victim", ["decode-cross-0", "prefill-nhd-0"])
async def test_a_frozen_worker_is_replaced_and_comes_back_as_another_life(quad, reference, victim):
    model, pid, before = await quad.model(), quad.child(victim).pid, await quad.incarnations()
    streams = [ask(quad.client, model, i, one.prompt, max_tokens=16) for i, one in enumerate(reference[:8])]
    for stream in streams[:4]:
        await stream.has(2)
    os.kill(pid, signal.SIGSTOP)
    try:
        await finish(streams)
        for stream in streams:
            assert stream.token_ids == list(reference[stream.prompt].answer[:16]), stream
            assert (stream.status, stream.error) == (200, None)
        assert victim not in await quad.incarnations()
        assert await quad.held_blocks() == 0
    finally:
        os.kill(pid, signal.SIGCONT)

    async def back() -> bool:
        now = await quad.incarnations()
        return victim in now and now[victim] != before[victim]

    await eventually(back, f"{victim} is back as another incarnation", seconds=40)
    assert quad.child(victim).pid == pid
    assert quad.child(victim).process.returncode is None
    role = "consumer" if victim.startswith("decode") else "producer"
    again = ask(quad.client, model, 0, reference[0].prompt, max_tokens=8, headers={f"x-isthmus-{role}": victim})
    await finish([again])
    assert again.token_ids == list(reference[0].answer[:8]), again
    assert await quad.held_blocks() == 0
