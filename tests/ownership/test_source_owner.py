"""The producer's owner as its callers see it."""

import asyncio

import pytest

from isthmus.core.clock import ManualClock
from isthmus.core.errors import (
    Bug,
    CapacityExceeded,
    GrantUnknown,
    NotAuthorised,
    PeerLost,
    StaleEpoch,
    TransferFailed,
)
from isthmus.core.ids import BlockId, HandoffId, Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership import (
    Evidence,
    LogicalOutcome,
    SourceOwner,
    SourcePhase,
    TransportKind,
    reap_forever,
    renewal_interval,
)
from tests.ownership.worlds import (
    DECODE,
    DECODE_LIFE,
    LEASE,
    OTHER_TENANT,
    PREFILL,
    PREFILL_LIFE,
    TENANT,
    World,
    grant_of,
)

REBORN = Incarnation("f" * 32)


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_repeated_confirm_gets_the_same_yes_even_after_the_lease() -> None:
    world = World()
    offer = await world.publish(world.handoff())
    assert world.confirm(offer) == world.confirm(offer) == offer.epoch
    world.clock.advance(LEASE)
    world.source.reap()
    assert world.confirm(offer) == offer.epoch


async def test_a_confirm_that_comes_after_the_lease_is_refused_whether_or_not_the_reaper_has_run() -> None:
    world = World()
    reaped, unreaped = await world.publish(world.handoff()), await world.publish(world.handoff())
    world.clock.advance(LEASE)
    with pytest.raises(StaleEpoch):
        world.confirm(unreaped)
    world.source.reap()
    with pytest.raises(StaleEpoch):
        world.confirm(reaped)
    assert world.holds_nothing()


async def test_a_late_confirm_is_refused_but_ends_the_quarantine() -> None:
    world = World(sole_tenant=None)
    offer = await world.publish(world.handoff())
    world.clock.advance(LEASE)
    assert world.source.reap() == 1
    assert world.source_ledger.held().quarantined == 2
    with pytest.raises(StaleEpoch):
        world.confirm(offer)
    assert world.holds_nothing()
    assert world.source.state(offer.handoff).outcome is LogicalOutcome.FAILED


async def test_a_reborn_producer_does_not_know_its_former_grants_though_epochs_begin_anew() -> None:
    world, reborn = World(), World(seed=1)
    old = await world.publish(world.handoff())
    new = await reborn.publish(reborn.handoff())
    assert old.epoch == new.epoch
    with pytest.raises(GrantUnknown):
        reborn.confirm(old)
    with pytest.raises(GrantUnknown):
        reborn.source.check_read(grant_of(old), old.epoch, DECODE, old.blocks)


async def test_tombstones_are_bounded_and_what_is_forgotten_is_unknown() -> None:
    world = World(tombstones_max=2)
    offers = [await world.publish(world.handoff()) for _ in range(3)]
    for offer in offers:
        world.confirm(offer)
    with pytest.raises(GrantUnknown):
        world.confirm(offers[0])
    assert world.confirm(offers[1]) == offers[1].epoch
    assert len(world.source._grants) == 2


async def test_a_read_is_refused_to_strangers_and_beyond_the_grant() -> None:
    world = World()
    mine, other = await world.publish(world.handoff()), await world.publish(world.handoff())
    grant = grant_of(mine)
    with pytest.raises(NotAuthorised):
        world.source.check_read(grant, mine.epoch, WorkerId("decode-9"), mine.blocks)
    with pytest.raises(NotAuthorised):
        world.source.check_read(grant, mine.epoch, DECODE, (*mine.blocks, *other.blocks))
    with pytest.raises(NotAuthorised):
        world.source.check_read(grant, mine.epoch, DECODE, [BlockId(10**9)])
    with pytest.raises(GrantUnknown):
        world.source.check_read(grant_of(other)[::-1], mine.epoch, DECODE, mine.blocks)  # type: ignore[arg-type]
    world.source.check_read(grant, mine.epoch, DECODE, mine.blocks)
    assert world.source.state(mine.handoff).phase is SourcePhase.EXPOSED


async def test_renewal_lengthens_the_lease_and_the_reaper_ends_it_once_renewals_cease() -> None:
    world = World()
    offer = await world.publish(world.handoff())
    for _ in range(10):
        world.clock.advance(renewal_interval(LEASE))
        assert world.source.reap() == 0
        assert world.source.renew(grant_of(offer), offer.epoch, DECODE, DECODE_LIFE) == LEASE
    world.clock.advance(LEASE)
    assert world.source.reap() == 1
    with pytest.raises(StaleEpoch):
        world.source.renew(grant_of(offer), offer.epoch, DECODE, DECODE_LIFE)


async def test_a_renewed_hand_off_at_the_head_hides_no_expired_one_behind_it() -> None:
    world = World()
    head = await world.publish(world.handoff())
    behind = [await world.publish(world.handoff()) for _ in range(3)]
    world.clock.advance(LEASE / 2)
    world.source.renew(grant_of(head), head.epoch, DECODE, DECODE_LIFE)
    world.clock.advance(LEASE / 2)
    assert world.source.reap() == 3
    assert {world.source.state(offer.handoff).phase for offer in behind} == {SourcePhase.EXPIRED}


async def test_the_reaper_runs_on_the_clock_alone() -> None:
    world = World()
    reaper = asyncio.ensure_future(reap_forever(world.clock, LEASE, world.source.reap))
    await world.publish(world.handoff())
    await turns()
    for _ in range(9):
        world.clock.advance(LEASE / 8)
        await turns()
    assert world.holds_nothing()
    reaper.cancel()


async def test_aborting_a_computation_frees_only_once_the_engine_has_stopped() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    await world.reserve_source(handoff)
    assert world.source.abort(handoff, "cancelled").phase is SourcePhase.DRAINING
    assert world.stops.compute == [handoff]
    assert world.source_ledger.held().filling == 2
    assert world.source.drained(handoff).phase is SourcePhase.RELEASED
    assert world.holds_nothing()
    assert world.source.timeline(handoff)[1].event == "abort: cancelled"


async def test_an_engine_that_finishes_after_all_is_told_that_the_hand_off_has_ended() -> None:
    world, before, after_ = World(), HandoffId("a" * 32), HandoffId("b" * 32)
    for handoff in (before, after_):
        await world.reserve_source(handoff)
        world.source.abort(handoff)
    world.source.drained(after_)
    for handoff in (before, after_):
        with pytest.raises(TransferFailed):
            world.source.complete(handoff)
    assert world.holds_nothing()


async def test_an_engine_may_answer_a_stop_within_the_call() -> None:
    world = World()
    owner = SourceOwner(
        ledger=world.source_ledger,
        capacity=world.source_capacity,
        clock=world.clock,
        worker=PREFILL,
        incarnation=PREFILL_LIFE,
        lease=LEASE,
        transport=TransportKind.TCP,
        stop_compute=lambda handoff: void(owner.drained(handoff)),
    )
    handoff = world.handoff()
    await owner.reserve(handoff, holder=DECODE, holder_incarnation=DECODE_LIFE, tenant=TENANT, blocks=2, deadline=LEASE)
    assert owner.abort(handoff).phase is SourcePhase.RELEASED
    assert world.holds_nothing()


def void(_: object) -> None:
    return None


async def test_an_abandoned_hand_off_is_freed_at_once_and_abandoning_is_idempotent() -> None:
    world = World(sole_tenant=None)
    offer = await world.publish(world.handoff())
    for _ in range(2):
        state = world.source.abandon(offer.handoff, DECODE, DECODE_LIFE)
        assert state is not None
        assert state.phase is SourcePhase.RELEASED
    assert world.holds_nothing()
    with pytest.raises(NotAuthorised):
        world.source.abandon(offer.handoff, DECODE, REBORN)


async def test_an_abandon_that_overtakes_its_request_stops_it_from_beginning() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    assert world.source.abandon(handoff, DECODE, DECODE_LIFE) is None
    with pytest.raises(StaleEpoch, match="before it began"):
        await world.reserve_source(handoff)
    assert world.holds_nothing()


@pytest.mark.parametrize("what", ["abandoned", "lost", "fenced"])
async def test_a_reservation_that_waited_while_the_world_changed_is_given_back(what: str) -> None:
    world, handoff = World(source_blocks=2), HandoffId("a" * 32)
    offer = await world.publish(world.handoff())
    waiting = asyncio.ensure_future(world.reserve_source(handoff))
    await turns()
    if what == "abandoned":
        world.source.abandon(handoff, DECODE, DECODE_LIFE)
    elif what == "lost":
        world.source.peer_lost(DECODE, DECODE_LIFE)
    else:
        world.source.fence()
    world.source.abandon(offer.handoff, DECODE, DECODE_LIFE)
    with pytest.raises((StaleEpoch, PeerLost)):
        await waiting
    assert world.holds_nothing()


async def test_a_hand_off_id_is_used_once() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    await world.reserve_source(handoff)
    with pytest.raises(NotAuthorised, match="exists already"):
        await world.reserve_source(handoff)


async def test_a_worker_bounds_its_hand_offs() -> None:
    world = World(live_max=1)
    await world.reserve_source(world.handoff())
    with pytest.raises(CapacityExceeded) as caught:
        await world.reserve_source(world.handoff())
    assert caught.value.retry_after is not None


async def test_a_pool_of_one_tenant_refuses_another() -> None:
    world = World(sole_tenant=TENANT)
    with pytest.raises(NotAuthorised):
        await world.reserve_source(world.handoff(), tenant=OTHER_TENANT)


async def test_a_proven_death_frees_what_the_dead_held_and_nothing_else() -> None:
    world = World(sole_tenant=None)
    dead = await world.publish(world.handoff())
    await world.reserve_source(world.handoff(), life=REBORN)
    computing = world.handoff()
    await world.reserve_source(computing)
    world.source.peer_lost(DECODE, DECODE_LIFE, Evidence.SILENCE)  # proves nothing
    assert world.source.state(dead.handoff).phase is SourcePhase.PUBLISHED
    assert world.source.peer_lost(DECODE, DECODE_LIFE) == [computing]
    assert world.source.state(dead.handoff).evidence is Evidence.FENCED_AND_CLOSED
    world.source.drained(computing)
    assert len(world.source) == 1


def test_a_lease_too_short_to_watch_is_refused() -> None:
    with pytest.raises(Bug):
        asyncio.run(reap_forever(ManualClock(), Duration(1)))
