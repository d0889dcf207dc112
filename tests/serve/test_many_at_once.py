"""Two hundred requests at once."""

import pytest

from tests.serve.asking import ask, finish

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


async def test_200_requests_at_once_are_all_answered_exactly(quad, reference):
    model = await quad.model()
    count = len(reference)
    streams = [ask(quad.client, model, i % count, reference[i % count].prompt, max_tokens=8) for i in range(200)]
    await finish(streams, seconds=180)
    assert [stream.status for stream in streams] == [200] * 200
    for stream in streams:
        assert stream.token_ids == list(reference[stream.prompt].answer[:8])
        assert (stream.finish_reason, stream.done) == ("length", True)
    assert await quad.held_blocks() == 0
    installed = (await quad.client.get("/v1/isthmus/handoffs")).json()["installed"]
    pairs = {(report["producer"], report["consumer"], report["transport"]) for report in installed}
    assert {producer for producer, _, _ in pairs} == {"prefill-nhd-0", "prefill-sharded-0"}
    assert {consumer for _, consumer, _ in pairs} == {"decode-hnd-0", "decode-cross-0"}
    assert {transport for _, _, transport in pairs} == {"shm", "tcp"}
    assert all(report["lossless"] for report in installed)
