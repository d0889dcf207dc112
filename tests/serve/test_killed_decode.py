"""`kill -9` of decode workers: answers go on elsewhere, exactly, and nobody holds a block afterwards."""

import pytest

from tests.serve.asking import ask, finish
from tests.serve.fleet import eventually

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

BEFORE_COMMIT = {"reserved", "receiving", "converting", "verifying"}


async def test_streams_and_handoffs_of_a_killed_decode_worker_go_on_elsewhere(quad, reference):
    victim, model = "decode-hnd-0", await quad.model()
    streams = [ask(quad.client, model, i, one.prompt, max_tokens=24) for i, one in enumerate(reference[:8])]
    for stream in streams:
        await stream.has(3)
    streams += [ask(quad.client, model, i, one.prompt, max_tokens=12) for i, one in enumerate(reference)]

    async def both_kinds() -> bool:
        phases = set(await quad.phases(victim))
        return "installed" in phases and bool(phases & BEFORE_COMMIT)

    await eventually(both_kinds, f"{victim} decodes, and takes hand-offs over")
    await quad.kill(victim)
    await finish(streams)
    for stream in streams:
        wanted = 24 if stream is streams[stream.prompt] and stream.prompt < 8 else 12
        assert stream.token_ids == list(reference[stream.prompt].answer[:wanted]), stream
        assert (stream.status, stream.finish_reason, stream.error, stream.done) == (200, "length", None, True)
    assert await quad.held_blocks() == 0
    assert victim not in await quad.incarnations()


async def test_sampled_streams_go_on_as_they_would_have(quad, reference):
    model, sampling = await quad.model(), {"temperature": 1.1, "top_p": 0.95}
    asked = [(i, reference[i].prompt, {**sampling, "seed": i}) for i in range(4)]
    undisturbed = [ask(quad.client, model, i, prompt, max_tokens=16, **fields) for i, prompt, fields in asked]
    await finish(undisturbed)
    victim = "decode-cross-0"
    streams = [
        ask(quad.client, model, i, prompt, max_tokens=16, headers={"x-isthmus-consumer": victim}, **fields)
        for i, prompt, fields in asked[:2]
    ] + [ask(quad.client, model, i, prompt, max_tokens=16, **fields) for i, prompt, fields in asked[2:]]
    for stream in streams:
        await stream.has(3)
    # A pinned request may not go elsewhere: it waits for its worker to come back under its name.
    await quad.kill(victim)
    await finish(streams[2:])
    for stream, before in zip(streams[2:], undisturbed[2:], strict=True):
        assert stream.token_ids == before.token_ids
        assert stream.text == before.text
    await finish(streams[:2])
    for stream in streams[:2]:
        assert stream.error is not None
        assert stream.error["code"] == "CapacityExceeded"
        assert stream.token_ids == undisturbed[stream.prompt].token_ids[: len(stream.token_ids)]
    assert await quad.held_blocks() == 0


async def test_without_any_decode_worker_requests_end_in_a_clear_error_until_it_is_back(pair, reference):
    model = await pair.model()
    streams = [ask(pair.client, model, i, one.prompt, max_tokens=32) for i, one in enumerate(reference[:6])]
    for stream in streams[:3]:
        await stream.has(2)
    await pair.kill("decode-0")
    late = ask(pair.client, model, 0, reference[0].prompt, max_tokens=4)
    await finish([*streams, late], seconds=20)
    for stream in [*streams, late]:
        answer = list(reference[stream.prompt].answer)
        assert stream.token_ids == answer[: len(stream.token_ids)]
        assert stream.finish_reason is None
        assert stream.error is not None
        assert stream.error["code"] == "CapacityExceeded"
        assert "decode" in stream.error["message"]
        if not stream.token_ids:
            assert stream.status == 503
            assert int(stream.headers["retry-after"]) >= 1
    assert await pair.held_blocks() == 0
    assert (await pair.client.get("/ready")).json() == {"status": "waiting", "missing": ["decode"]}
    await pair.start("decode-0")
    again = ask(pair.client, model, 0, reference[0].prompt, max_tokens=8)
    await finish([again])
    assert again.token_ids == list(reference[0].answer[:8])
    assert await pair.held_blocks() == 0
