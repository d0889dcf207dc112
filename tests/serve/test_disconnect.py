"""A client that hangs up wants nothing any more: its request ends everywhere, and its blocks are free."""

import asyncio
import contextlib

import pytest

from tests.serve.asking import ask, finish
from tests.serve.fleet import eventually

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

LONG = 480


async def _held(fleet) -> int:
    return sum(ledger["blocks"]["held"] for ledger in (await fleet.ledgers()).values())


async def test_a_stream_that_is_hung_up_on_frees_its_blocks(pair, reference):
    model = await pair.model()
    streams = [ask(pair.client, model, i, one.prompt, max_tokens=LONG) for i, one in enumerate(reference[:3])]
    for stream in streams:
        await stream.has(2)
    assert await _held(pair) > 0
    for stream in streams:
        stream.hang_up()
    await finish(streams)
    assert await pair.held_blocks(seconds=5) == 0


async def test_a_stream_that_is_hung_up_on_before_its_first_token_is_given_up(pair, reference):
    """Its prefill takes seconds: nobody should compute it to the end for a client that is gone."""
    model, prompt = await pair.model(), (reference[1].prompt * 40)[:480]
    streams = [ask(pair.client, model, 0, prompt, max_tokens=16) for _ in range(4)]

    async def computing() -> bool:
        return "computing" in await pair.phases("prefill-0")

    await eventually(computing, "prefill has begun")
    for stream in streams:
        stream.hang_up()
    await finish(streams)
    assert await pair.held_blocks(seconds=3) == 0
    assert all(not stream.token_ids for stream in streams)


async def test_a_whole_answer_that_is_hung_up_on_frees_its_blocks(pair, reference):
    body = {"model": await pair.model(), "prompt": reference[0].text, "max_tokens": LONG, "ignore_eos": True}
    asked = asyncio.create_task(pair.client.post("/v1/completions", json=body))

    async def decoding() -> bool:
        return "installed" in await pair.phases("decode-0")

    await eventually(decoding, "it decodes")
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    assert await pair.held_blocks(seconds=5) == 0


async def test_a_stop_string_ends_the_work_too(pair, reference):
    body = {"model": await pair.model(), "prompt": reference[0].text, "max_tokens": LONG, "temperature": 0}
    answer = await pair.client.post("/v1/completions", json={**body, "stop": " Paris", "ignore_eos": True})
    assert answer.json()["choices"][0] == {"index": 0, "logprobs": None, "finish_reason": "stop", "text": ""}
    assert await pair.held_blocks(seconds=5) == 0


async def test_the_metrics_count_what_was_cancelled(pair):
    text = (await pair.client.get("/metrics")).text
    cancelled = [line for line in text.splitlines() if line.startswith('isthmus:requests_total{outcome="cancelled"}')]
    assert cancelled
    assert float(cancelled[0].split()[-1]) >= 5
    assert "isthmus:num_requests_running 0.0" in text
