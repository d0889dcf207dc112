"""Hand-offs that end early: the first token was the last, or one side dies."""

import asyncio

import pytest

from isthmus.core.errors import Lost, PeerLost, StaleEpoch, TransferFailed
from isthmus.core.ids import Incarnation
from isthmus.handoff.orders import AbortOrder, PrefillOrder
from isthmus.state.tokens import pack_tokens
from tests.engines.models import random_prompt
from tests.handoff.hooks import Gate
from tests.handoff.worlds import (
    DECODE,
    DECODE_LIFE,
    LEASE,
    PREFILL,
    PREFILL_LIFE,
    World,
    alone,
    ask,
    turns,
)

PROMPT = random_prompt(32, seed=7)
HANDOFF = "d" * 32


def order_of(handoff: str = HANDOFF) -> PrefillOrder:
    return PrefillOrder(handoff=handoff, holder=DECODE, holder_incarnation=DECODE_LIFE, request=ask(PROMPT))


def abort_of(handoff: str = HANDOFF) -> AbortOrder:
    return AbortOrder(handoff=handoff, holder=DECODE, holder_incarnation=DECODE_LIFE)


async def test_an_answer_of_one_token_crosses_no_kv(model):
    request = ask(PROMPT, max_tokens=1)
    async with World(model) as world:
        released = await world.hand_off(request)
        assert released.installed is None
        assert (released.filled.reply.token,) == alone(model, "bfloat16", PROMPT, 1).token_ids
        assert released.filled.reply.finish_reason == "length"
        assert "read" not in world.hooks.seen
        await world.drained()


async def test_a_request_that_goes_on_elsewhere_repeats_and_skips_no_token(model):
    """A decode worker died after three tokens: prompt and tokens are prefilled again."""
    whole = alone(model, "bfloat16", PROMPT, 8).token_ids
    first = ask(PROMPT, max_tokens=8)
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    rest = type(first)(**fields | {"attempt": 1, "tokens": pack_tokens((*PROMPT, *whole[:3])), "sampled": 3})
    async with World(model) as world:
        released = await world.hand_off(rest)
        assert await world.decode(rest, released) == whole[3:]
        await world.drained()


@pytest.mark.parametrize("point", ["engine prefill", "engine prefilled", "prefill ordered"])
@pytest.mark.parametrize("error", [Lost("a step failed"), RuntimeError("out of memory")])
async def test_a_producer_that_fails_in_prefill_leaves_nothing_on_either_side(model, point, error):
    async def die() -> None:
        raise error

    request = ask(PROMPT)
    async with World(model) as world:
        world.hooks.at(point, die)
        with pytest.raises(type(error)):
            await world.hand_off(request)
        await world.drained()
        world.hooks.at(point, turns)
        released = await world.hand_off(request)
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


async def test_a_producer_that_never_answers_is_given_up_at_the_deadline(model):
    async with World(model) as world:
        gate = Gate()
        world.hooks.at("engine prefill", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        world.clock.advance(LEASE * 20)
        with pytest.raises(Lost, match="prefill"):
            await handing
        await world.drained()


@pytest.mark.parametrize("point", ["engine prefill", "engine prefilled", "read", "copied", "converted", "confirm"])
async def test_a_dead_consumers_hand_offs_are_freed_at_the_producer_wherever_they_stand(model, point):
    """The consumer's task stands still, as a dead process's does; only the registry speaks."""
    async with World(model) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        await world.side.peer_lost(DECODE, DECODE_LIFE)
        assert world.source_ledger.held().blocks == 0
        world.source_ledger.check_in_full()
        gate.open.set()
        with pytest.raises((TransferFailed, StaleEpoch)):  # had it only seemed dead, it would install nothing
            await handing
        assert world.installs() == 0
        await world.drained()


async def test_a_life_that_was_declared_dead_gets_nothing_more_and_another_life_does(model):
    async with World(model) as world:
        await world.side.peer_lost(DECODE, DECODE_LIFE)
        with pytest.raises(PeerLost):
            await world.hand_off(ask(PROMPT))
        await world.drained()
        await world.side.peer_lost(DECODE, Incarnation("c" * 32))
        assert world.source_ledger.held().blocks == 0


@pytest.mark.parametrize(
    "point", ["engine prefilled", "read", "copied", "convert", "converted", "confirm", "confirmed"]
)
async def test_a_dead_producers_hand_offs_are_given_up_at_the_consumer_wherever_they_stand(model, point):
    async with World(model) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        world.destination.peer_lost(PREFILL, PREFILL_LIFE)
        gate.open.set()
        with pytest.raises((TransferFailed, PeerLost)):
            await handing
        assert world.installs() == 0
        await world.drained()


async def test_installed_kv_outlives_its_producer(model):
    request = ask(PROMPT)
    async with World(model) as world:
        released = await world.hand_off(request)
        assert world.destination.peer_lost(PREFILL, PREFILL_LIFE) == []
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


async def test_an_abort_that_overtakes_its_order_to_prefill_keeps_it_from_beginning(model):
    async with World(model) as world:
        await world.side.abort(abort_of())
        with pytest.raises(StaleEpoch):
            await world.side.prefill(order_of())
        assert "engine prefill" not in world.hooks.seen
        await world.drained()


@pytest.mark.parametrize("point", ["engine prefill", "engine prefilled"])
async def test_an_abort_during_prefill_stops_the_engine_and_frees(model, point):
    async with World(model) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        filling = asyncio.create_task(world.side.prefill(order_of()))
        await gate.reached.wait()
        await world.side.abort(abort_of())
        assert world.source_ledger.held().blocks == 0
        gate.open.set()
        with pytest.raises(TransferFailed):
            await filling
        await world.drained()


async def test_an_abort_of_an_offer_frees_it_and_a_second_one_changes_nothing(model):
    async with World(model) as world:
        await world.side.prefill(order_of())
        assert world.source_ledger.held().grants == 2
        for _ in range(2):
            await world.side.abort(abort_of())
            await world.drained()


async def test_an_offer_that_nobody_reads_ends_with_its_lease(model):
    async with World(model) as world:
        await world.side.prefill(order_of())
        world.pass_time(LEASE / 2)
        assert world.source_ledger.held().grants == 2
        world.pass_time(LEASE / 2)
        await world.drained()


async def test_an_id_is_used_once(model):
    async with World(model) as world:
        await world.side.prefill(order_of())
        with pytest.raises(Exception, match="used once"):
            await world.side.prefill(order_of())
        await world.side.abort(abort_of())
        with pytest.raises(Exception, match="used once"):
            await world.side.prefill(order_of())
        await world.drained()
