"""The engine in its thread: streams, aborts, drains, and failures that answer everybody."""

import asyncio

import pytest

from isthmus.core.errors import BadInput, Bug, ContextTooLong, Lost
from isthmus.engines.embedded.runner import AsyncEngine
from tests.engines.models import answer, ask, make_engine, random_prompt, run


@pytest.fixture
async def runner(llama):
    running = AsyncEngine(make_engine(llama))
    running.start()
    yield running
    await running.close()


async def collect(stream) -> list:
    return [output async for output in stream]


async def test_streams_give_what_the_engine_alone_gives(runner, llama):
    requests = [ask(f"r{n}", random_prompt(10 + n, seed=n), (2 * n, 2 * n + 1), max_tokens=5) for n in range(12)]
    together = await asyncio.gather(*(collect(runner.submit(request)) for request in requests))
    alone = make_engine(llama)
    for request in requests:
        alone.add(request)
    wanted = run(alone)
    for request, outputs in zip(requests, together, strict=True):
        assert answer(outputs) == answer(wanted[request.request_id])
        assert outputs[-1].done


async def test_an_aborted_request_ends_and_is_drained(runner):
    stream = runner.submit(ask("a", random_prompt(10, seed=1), tuple(range(20)), max_tokens=300))
    await anext(stream)
    runner.abort("a")
    await runner.drained("a")
    assert not runner.engine.holds("a")
    outputs = await collect(stream)
    assert (outputs[-1].done, outputs[-1].finish_reason) == (True, None)


async def test_drained_waits_while_the_request_runs(runner):
    stream = runner.submit(ask("a", random_prompt(10, seed=1), tuple(range(5)), max_tokens=20))
    drained = asyncio.ensure_future(runner.drained("a"))
    outputs = []
    async for output in stream:
        if not output.done:
            assert not drained.done()
        outputs.append(output)
    await drained
    assert len(outputs) == 20


async def test_a_request_never_seen_is_drained(runner):
    await runner.drained("nobody")


async def test_a_refusal_is_raised_at_once_and_the_engine_lives_on(runner):
    with pytest.raises(ContextTooLong):
        runner.submit(ask("a", random_prompt(10, seed=1), (1,), max_tokens=1000))
    first = runner.submit(ask("a", random_prompt(10, seed=1), (1, 2), max_tokens=3))
    with pytest.raises(BadInput, match="held already"):
        runner.submit(ask("a", random_prompt(10, seed=1), (3, 4), max_tokens=3))
    assert len(await collect(first)) == 3


async def test_a_step_that_raises_answers_everybody_and_every_later_request(llama):
    class Broken(type(make_engine(llama))):
        def step(self):
            raise MemoryError("no room")

    engine = make_engine(llama)
    engine.__class__ = Broken
    runner = AsyncEngine(engine)
    runner.start()
    streams = [runner.submit(ask(f"r{n}", (5, 6), (n,))) for n in range(3)]
    for stream in streams:
        with pytest.raises(Bug, match="no room"):
            await anext(stream)
    assert isinstance(await runner.failed(), Bug)
    await runner.drained("r0")
    with pytest.raises(Bug, match="no room"):
        runner.submit(ask("late", (5, 6), (9,)))
    await runner.close()


async def test_closing_answers_what_is_held_and_drains_it(llama):
    runner = AsyncEngine(make_engine(llama))
    runner.start()
    stream = runner.submit(ask("a", random_prompt(10, seed=1), tuple(range(20)), max_tokens=300))
    await anext(stream)
    drained = asyncio.ensure_future(runner.drained("a"))
    await asyncio.sleep(0)
    await runner.close()
    await runner.close()
    await drained
    assert (await collect(stream))[-1].done
    await runner.drained("a")
    with pytest.raises(Lost, match="closed"):
        runner.submit(ask("b", (5,), (1,)))
