"""`kill -9` of the gateway: workers give up what it asked, and serve the next one without being started again."""

import pytest

from tests.serve.asking import ask, finish
from tests.serve.fleet import eventually

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


async def test_workers_release_everything_and_join_the_next_gateway_by_themselves(quad, reference):
    model, pids, lives = await quad.model(), quad.pids(), await quad.incarnations()
    streams = [ask(quad.client, model, i % 12, reference[i % 12].prompt, max_tokens=24) for i in range(16)]
    for stream in streams[:4]:
        await stream.has(2)
    await quad.kill("gateway")
    await finish(streams, seconds=20)  # their connections are broken: nobody waits
    await quad.start("gateway")
    assert await quad.held_blocks() == 0
    assert await quad.incarnations() == lives
    assert {name: pid for name, pid in quad.pids().items() if name != "gateway"} == {
        name: pid for name, pid in pids.items() if name != "gateway"
    }
    again = [ask(quad.client, model, i, one.prompt, max_tokens=6) for i, one in enumerate(reference[:4])]
    await finish(again)
    for stream in again:
        assert stream.token_ids == list(reference[stream.prompt].answer[:6])
    assert await quad.held_blocks() == 0


async def test_a_worker_that_dies_with_the_gateway_leaves_nothing_held(quad, reference):
    """Nobody is told of its death: the next gateway has never known it. Its lease ends, or its connection did."""
    model = await quad.model()
    streams = [ask(quad.client, model, i, one.prompt, max_tokens=24) for i, one in enumerate(reference)]
    for stream in streams[:4]:
        await stream.has(1)
    await quad.kill("gateway")
    await quad.kill("decode-cross-0")
    await finish(streams, seconds=20)
    await quad.deployment.start("gateway")

    async def three_are_back() -> bool:
        try:
            return len(await quad.incarnations()) == 3
        except OSError:
            return False
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return False
            raise

    await eventually(three_are_back, "the three others have registered")
    assert await quad.held_blocks() == 0
