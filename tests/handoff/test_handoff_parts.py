"""Parts of a hand-off, one for each rank that is read: prepared one by one, installed together, released together."""

import asyncio

import pytest

from isthmus.core.errors import IsthmusError
from isthmus.ownership.protocol.states import DestinationPhase, PartStage
from isthmus.transport.faulty import Drop, FlipBit, Tear
from tests.engines.models import random_prompt
from tests.handoff.worlds import World, alone, ask, until

PROMPT = random_prompt(32, seed=6)
RANKS = 4
FROM_RANKS = ({"block_size": 16, "kv_order": "two_tensors", "tp_size": RANKS}, {"block_size": 8})


async def test_each_rank_is_a_part_and_all_are_installed_by_one_confirmation(model):
    request = ask(PROMPT)
    async with World(model, *FROM_RANKS) as world:
        released = await world.hand_off(request)
        state = world.destination.state(released.filled.reserved.handoff)
        assert [part.stage for part in state.parts] == [PartStage.CONFIRMED] * RANKS
        seen = [moment.event for moment in world.destination.timeline(state.handoff)]
        assert seen.count("submit") == seen.count("arrived") == RANKS
        assert world.hooks.seen.count("confirm") == 1
        assert await world.decode(request, released) == alone(model, "float32", PROMPT, 5).token_ids
        await world.drained()


@pytest.mark.parametrize(
    "fault", [Drop(fraction=0.5), Tear(fraction=0.5), FlipBit(bit=7)], ids=lambda fault: type(fault).__name__
)
@pytest.mark.parametrize("part", range(RANKS))
async def test_what_goes_wrong_with_one_part_fails_all_of_them(model, part, fault):
    request = ask(PROMPT)
    async with World(model, *FROM_RANKS, faults=[None] * part + [fault]) as world:
        with pytest.raises(IsthmusError):
            await world.hand_off(request)
        assert world.installs() == 0
        assert world.reader.injected
        await world.drained()
        released = await world.hand_off(request)
        assert await world.decode(request, released) == alone(model, "float32", PROMPT, 5).token_ids
        await world.drained()


async def test_a_request_that_is_cancelled_between_two_parts_leaves_nothing(model):
    reads = 0

    async def stop_at_the_second() -> None:
        nonlocal reads
        reads += 1
        if reads == 2:
            await asyncio.Event().wait()

    async with World(model, *FROM_RANKS) as world:
        world.hooks.at("read", stop_at_the_second)
        running = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: reads == 2)
        (row,) = world.destination.snapshot()
        assert row["phase"] == DestinationPhase.RECEIVING
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await world.drained()
