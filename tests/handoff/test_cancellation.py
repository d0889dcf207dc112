"""Whenever a hand-off is cancelled, and however often: both sides come to hold nothing."""

import asyncio
import threading

import pytest

from isthmus.core.errors import PeerLost
from isthmus.engines.embedded import adapter
from tests.engines.models import random_prompt
from tests.handoff.hooks import POINTS, Gate, lose
from tests.handoff.worlds import LEASE, World, alone, ask, turns, until

PROMPT = random_prompt(32, seed=6)
OFF_THE_WAY = ("copied",)


async def storm(task: asyncio.Task, times: int) -> None:
    """Cancel again and again, with a few turns in between, for the clean-up to be met at each of its steps."""
    for time in range(times):
        task.cancel()
        await turns(time % 4)


async def end(task: asyncio.Task) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("times", [1, 2, 20])
@pytest.mark.parametrize("point", [*POINTS, *OFF_THE_WAY])
async def test_a_cancellation_at_any_point_frees_both_sides(model, point, times):
    async with World(model) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        await storm(handing, times)
        gate.open.set()
        await end(handing)
        assert world.installs() == 0
        await world.drained()


@pytest.mark.parametrize("times", [1, 2, 20])
@pytest.mark.parametrize("turn", range(0, 60, 5))
async def test_a_cancellation_after_any_number_of_turns_frees_both_sides(model, turn, times):
    async with World(model) as world:
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: "engine prefilled" in world.hooks.seen or turn < 20)
        await turns(turn)
        await storm(handing, times)
        await asyncio.wait({handing})
        if not handing.cancelled():
            world.consumer.finish(handing.result().filled.reserved)
        await world.drained()


@pytest.mark.parametrize("point", ["engine prefill", "engine prefilled"])
async def test_a_cancelled_prefill_frees_its_blocks_even_where_the_abort_is_lost(model, point):
    async with World(model) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        world.hooks.at("abort", lose)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        handing.cancel()
        await end(handing)
        await world.drained()


@pytest.mark.parametrize("times", [1, 2, 20])
async def test_cancellations_while_the_engine_is_being_stopped_do_not_skip_the_release(model, times):
    """A second cancellation once came between the engine's stop and `drained`: the blocks were never freed."""
    async with World(model) as world:
        prefilling, stopping = Gate(), Gate()
        world.hooks.at("engine prefill", prefilling)
        world.hooks.at("stop", stopping)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await prefilling.reached.wait()
        handing.cancel()
        await stopping.reached.wait()
        await storm(handing, times)
        assert world.source_ledger.held().filling == 2  # the engine has not said yet that it has stopped
        stopping.open.set()
        await end(handing)
        await world.drained()


@pytest.mark.parametrize("times", [1, 2, 20])
async def test_blocks_stay_held_until_the_thread_that_converts_has_ended(model, monkeypatch, times):
    converting, go_on = asyncio.Event(), threading.Event()
    loop, execute = asyncio.get_running_loop(), adapter.execute

    def slow(*args, **kwargs):
        loop.call_soon_threadsafe(converting.set)
        assert go_on.wait(20)
        return execute(*args, **kwargs)

    monkeypatch.setattr(adapter, "execute", slow)
    async with World(model) as world:
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await converting.wait()
        await storm(handing, times)
        assert not handing.done()
        assert world.destination_ledger.held().filling == 3
        go_on.set()
        await end(handing)
        await world.drained()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancellation_while_waiting_for_room_leaves_no_reservation(model, times):
    """At the consumer first, then at the producer."""
    for small in ({"producer": {"num_blocks": 2}}, {"consumer": {"num_blocks": 3}}):
        async with World(model, **small) as world:
            gate = Gate()
            world.hooks.at("read", gate)
            first = asyncio.create_task(world.hand_off(ask(PROMPT, name="first")))
            await gate.reached.wait()
            second = asyncio.create_task(world.hand_off(ask(PROMPT, name="second")))
            await turns()
            assert world.source._capacity.waiting + world.destination._capacity.waiting == 1
            await storm(second, times)
            await end(second)
            gate.open.set()
            released = await first
            world.consumer.finish(released.filled.reserved)
            await world.drained()


async def test_a_cancellation_after_the_commit_gives_the_installed_blocks_back(model):
    """The last await of a hand-off comes after the install: the end of a renewal that is still on its way."""
    async with World(model) as world:
        reading, ending = Gate(), Gate()

        async def slow_to_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await ending()

        world.hooks.at("read", reading)
        world.hooks.at("renew", slow_to_end)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await reading.reached.wait()
        world.clock.advance(LEASE / 3)
        await turns()
        reading.open.set()
        await ending.reached.wait()
        assert world.installs() == 1
        handing.cancel()
        await end(handing)
        await world.drained()
        ending.open.set()


async def test_what_is_cancelled_disturbs_no_other_hand_off(model):
    request = ask(PROMPT, name="second")
    async with World(model) as world:
        gate = Gate()
        world.hooks.at("engine prefill", gate)
        first = asyncio.create_task(world.hand_off(ask(PROMPT, name="first")))
        second = asyncio.create_task(world.hand_off(request))
        await gate.reached.wait()
        await turns()
        first.cancel()
        await end(first)
        gate.open.set()
        assert await world.decode(request, await second) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


async def test_a_token_that_cannot_be_delivered_gives_everything_up(model):
    async with World(model) as world:

        def keep(*_) -> None:
            raise PeerLost("gateway: gone", field="gateway")

        world._keep = keep
        with pytest.raises(PeerLost):
            await world.hand_off(ask(PROMPT))
        await world.drained()
