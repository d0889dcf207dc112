"""The commit: nothing is installed without the owner's yes, and a yes installs once."""

import asyncio

import pytest

from isthmus.core.errors import DeadlineExceeded, NotAuthorised, PeerLost, StaleEpoch
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.handoff.consumer import CONFIRM_TRIES
from isthmus.handoff.orders import ConfirmOrder, ConfirmReply, RenewOrder
from isthmus.state.manifest import decode_manifest
from tests.engines.models import random_prompt
from tests.handoff.hooks import lose, times
from tests.handoff.worlds import LEASE, World, alone, ask, turns, until

PROMPT = random_prompt(32, seed=5)


async def break_off() -> None:
    raise PeerLost("connection: closed", field="connection")


async def with_deadlines(world: World, handing: asyncio.Task) -> None:
    """Let confirm's deadlines pass, one after the other, well within the lease in all."""
    for _ in range(CONFIRM_TRIES):
        await turns()  # no thread is at work any more
        world.clock.advance(LEASE / 4)
    await asyncio.wait({handing})


@pytest.mark.parametrize("point", ["confirm", "confirmed"])
async def test_a_confirmation_that_is_never_answered_installs_nothing(model, point):
    async with World(model) as world:
        world.hooks.at(point, lose)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: point in world.hooks.seen)
        await with_deadlines(world, handing)
        with pytest.raises(DeadlineExceeded):
            await handing
        assert world.hooks.seen.count("confirm") == CONFIRM_TRIES
        assert world.installs() == 0
        await world.drained()


async def test_a_producer_that_went_silent_for_good_is_freed_by_its_reaper(model):
    async with World(model) as world:
        for point in ("confirm", "renew", "abort"):
            world.hooks.at(point, lose)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: "confirm" in world.hooks.seen)
        await with_deadlines(world, handing)
        with pytest.raises(DeadlineExceeded):
            await handing
        assert world.destination_ledger.held().blocks == 0
        assert world.source_ledger.held().grants == 2
        world.pass_time(LEASE)
        await world.drained()


async def test_an_owner_that_answers_for_another_epoch_than_the_one_read_installs_nothing(model):
    """A yes is worth what it says yes to (I1)."""
    async with World(model) as world:
        confirm = world.side.confirm

        async def other(order):
            return ConfirmReply(epoch=(await confirm(order)).epoch + 1)

        world.side.confirm = other
        with pytest.raises(StaleEpoch):
            await world.hand_off(ask(PROMPT))
        assert world.installs() == 0
        await world.drained()


@pytest.mark.parametrize("point", ["confirm", "confirmed"])
async def test_a_connection_that_breaks_during_the_confirmation_installs_nothing(model, point):
    async with World(model) as world:
        world.hooks.at(point, break_off)
        with pytest.raises(PeerLost):
            await world.hand_off(ask(PROMPT))
        assert world.hooks.seen.count("confirm") == 1
        assert world.installs() == 0
        await world.drained()


@pytest.mark.parametrize("point", ["confirm", "confirmed"])
@pytest.mark.parametrize("lost", [1, 2])
async def test_a_confirmation_that_is_lost_and_asked_again_installs_once(model, point, lost):
    request = ask(PROMPT)
    async with World(model) as world:
        world.hooks.at(point, times(lost, lose))
        handing = asyncio.create_task(world.hand_off(request))
        await until(lambda: point in world.hooks.seen)
        await with_deadlines(world, handing)
        released = await handing
        assert world.hooks.seen.count("confirm") == lost + 1
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        assert world.installs() == 1
        await world.drained()


async def test_the_blocks_are_not_decodes_before_the_owner_has_answered(model):
    async with World(model) as world:
        seen = []

        async def look() -> None:
            seen.append((world.destination_ledger.held(), world.source_ledger.held()))

        world.hooks.at("confirm", look)
        world.hooks.at("confirmed", look)
        released = await world.hand_off(ask(PROMPT))
        (before, source), (answered, source_after) = seen
        assert before.filling == answered.filling == 3
        assert before.resident == answered.resident == 0
        assert before.staging_bytes > 0
        assert (source.grants, source_after.grants) == (2, 0)
        assert world.destination_ledger.held().resident == 3
        assert world.destination_ledger.held().staging_bytes == 0
        world.consumer.finish(released.filled.reserved)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epoch": 99}, StaleEpoch),
        ({"holder": "decode-1"}, NotAuthorised),
        ({"holder_incarnation": "c" * 32}, NotAuthorised),
    ],
)
@pytest.mark.parametrize("kind", [ConfirmOrder, RenewOrder])
async def test_only_the_holder_at_its_epoch_may_confirm_or_renew(model, kind, change, error):
    async with World(model) as world:
        asked = []

        async def forge() -> None:
            ownership = decode_manifest(world.offers[0][0].manifest).ownership
            fields = {
                "grant": ownership.grant,
                "epoch": ownership.epoch,
                "holder": "decode-0",
                "holder_incarnation": "b" * 32,
            }
            order = kind(**fields | change)
            with pytest.raises(error):
                await (world.side.confirm(order) if kind is ConfirmOrder else world.side.renew(order))
            asked.append(order)

        world.hooks.at("read", forge)
        released = await world.hand_off(ask(PROMPT))
        assert asked
        assert world.installs() == 1
        world.consumer.finish(released.filled.reserved)


async def test_an_abort_of_another_worker_is_refused(model):
    async with World(model) as world:
        refused = []

        async def forge() -> None:
            handoff = world.source.snapshot()[0]["handoff"]
            with pytest.raises(NotAuthorised):
                world.source.abandon(handoff, WorkerId("decode-1"), Incarnation("c" * 32))
            refused.append(handoff)

        world.hooks.at("read", forge)
        released = await world.hand_off(ask(PROMPT))
        assert refused
        world.consumer.finish(released.filled.reserved)
        await world.drained()
