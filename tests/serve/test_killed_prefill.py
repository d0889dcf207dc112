"""`kill -9` of prefill workers: hand-offs are computed again elsewhere, streams that have begun do not notice."""

import pytest

from tests.serve.asking import ask, finish
from tests.serve.fleet import eventually

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("victim", ["prefill-nhd-0", "prefill-sharded-0"])
async def test_what_a_killed_prefill_worker_was_asked_is_answered_by_the_other(quad, reference, victim):
    model = await quad.model()
    streams = [ask(quad.client, model, i, one.prompt, max_tokens=16) for i, one in enumerate(reference[:4])]
    for stream in streams:
        await stream.has(2)
    streams += [ask(quad.client, model, i, one.prompt, max_tokens=6) for i, one in enumerate(reference)]

    async def computing() -> bool:
        return "computing" in await quad.phases(victim)

    await eventually(computing, f"{victim} computes")
    await quad.kill(victim)
    await finish(streams)
    for number, stream in enumerate(streams):
        wanted = 16 if number < 4 else 6
        assert stream.token_ids == list(reference[stream.prompt].answer[:wanted]), stream
        assert (stream.status, stream.finish_reason, stream.error) == (200, "length", None)
    assert await quad.held_blocks() == 0
    assert victim not in await quad.incarnations()


async def test_without_any_prefill_worker_running_streams_end_well_and_new_requests_get_503(pair, reference):
    model = await pair.model()
    streams = [ask(pair.client, model, i, one.prompt, max_tokens=20) for i, one in enumerate(reference[:3])]
    for stream in streams:
        await stream.has(2)

    async def all_installed() -> bool:
        return await pair.phases("decode-0") == ["installed"] * 3

    await eventually(all_installed, "every hand-off is installed")
    await pair.kill("prefill-0")
    late = ask(pair.client, model, 0, reference[0].prompt, max_tokens=4)
    await finish([*streams, late], seconds=30)
    for stream in streams:
        assert stream.token_ids == list(reference[stream.prompt].answer[:20])
    assert (late.status, late.error["code"]) == (503, "CapacityExceeded")
    assert "prefill" in late.error["message"]
    assert await pair.held_blocks() == 0
