"""Both owners where the producer writes, as their callers see them: register, expose, write, confirm, give up."""

import pytest

from isthmus.core.errors import Bug, GrantUnknown, NotAuthorised, StaleEpoch, TransferFailed
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, WorkerId
from isthmus.ownership import DestinationHandoff, DestinationPhase, Evidence, LogicalOutcome, SourcePhase, TransportKind
from isthmus.ownership.protocol.states import SourceHandoff, TriggerMode
from tests.ownership.worlds import (
    DECODE,
    DECODE_LIFE,
    FAR,
    LEASE,
    OTHER_TENANT,
    PREFILL,
    PREFILL_LIFE,
    TENANT,
    World,
    grant_of,
)

REBORN = Incarnation("f" * 32)


async def reserve(world: World, mode: TriggerMode = TriggerMode.PUSH, *, parts: int = 1) -> HandoffId:
    """Both sides of one hand-off, nothing registered and nothing exposed yet."""
    handoff = world.handoff()
    await world.destination.reserve(
        handoff,
        producer=PREFILL,
        producer_incarnation=PREFILL_LIFE,
        tenant=TENANT,
        blocks=3,
        staging_bytes=100,
        deadline=FAR,
        mode=mode,
        num_parts=parts,
    )
    await world.source.reserve(
        handoff, holder=DECODE, holder_incarnation=DECODE_LIFE, tenant=TENANT, blocks=2, deadline=FAR, mode=mode
    )
    return handoff


def target(exposed: DestinationHandoff, part: int = 0) -> GrantId:
    grant = exposed.parts[part].grant
    assert grant is not None
    return grant


def register(world: World, exposed: DestinationHandoff) -> SourceHandoff:
    return world.source.register(
        exposed.handoff,
        grant=target(exposed),
        epoch=exposed.epoch,
        holder=DECODE,
        holder_incarnation=DECODE_LIFE,
    )


async def writing(world: World, mode: TriggerMode = TriggerMode.PUSH) -> tuple[SourceHandoff, DestinationHandoff]:
    """A source that writes into what is exposed."""
    handoff = await reserve(world, mode)
    exposed = world.destination.expose(handoff, LEASE)
    register(world, exposed)
    world.source.complete(handoff)
    return world.source.publish(handoff), exposed


def check_write(world: World, exposed: DestinationHandoff, *, writer: WorkerId = PREFILL) -> DestinationHandoff:
    return world.destination.check_write(target(exposed), exposed.epoch, writer, LEASE)


def written(
    world: World, exposed: DestinationHandoff, part: int = 0, *, evidence: Evidence = Evidence.OWN_TRANSFER_ENDED
) -> DestinationHandoff:
    return world.destination.written(
        target(exposed, part),
        exposed.epoch,
        writer=PREFILL,
        writer_incarnation=PREFILL_LIFE,
        tenant=TENANT,
        evidence=evidence,
    )


def verified(world: World, handoff: HandoffId, part: int = 0) -> None:
    world.destination.converted(handoff, part)
    world.destination.verified(handoff, ok=True, part=part)


async def test_a_push_from_registration_to_release_leaves_nothing() -> None:
    world = World()
    source, exposed = await writing(world)
    check_write(world, exposed)
    world.source.sent(source.handoff, ok=True)
    written(world, exposed)
    verified(world, source.handoff)
    assert world.destination.install_written(source.handoff).phase is DestinationPhase.INSTALLED
    assert world.confirm(source) == source.epoch
    assert world.source.state(source.handoff).outcome is LogicalOutcome.SUCCEEDED
    world.destination.finish(source.handoff)
    assert world.holds_nothing()


async def test_a_send_begins_while_the_engine_computes() -> None:
    world = World()
    handoff = await reserve(world, TriggerMode.SEND)
    exposed = world.destination.expose(handoff, LEASE)
    register(world, exposed)
    assert world.source.publish(handoff).phase is SourcePhase.COMPUTING
    check_write(world, exposed)
    assert world.source.complete(handoff).phase is SourcePhase.PUBLISHED
    assert world.source_ledger.held().active == 2  # our own transfer still reads both blocks


async def test_what_is_filled_before_it_is_registered_waits_and_writes_nowhere() -> None:
    world = World()
    handoff = await reserve(world)
    world.source.complete(handoff)
    with pytest.raises(Bug, match="nothing is registered"):
        world.source.publish(handoff)
    register(world, world.destination.expose(handoff, LEASE))
    assert world.source.publish(handoff).phase is SourcePhase.PUBLISHED


async def test_a_registration_counts_once_and_is_the_holder_s() -> None:
    world = World()
    handoff = await reserve(world)
    exposed = world.destination.expose(handoff, LEASE)
    first = register(world, exposed)
    assert register(world, exposed) == first
    with pytest.raises(NotAuthorised):
        world.source.register(
            handoff, grant=GrantId("0" * 64), epoch=Epoch(9), holder=DECODE, holder_incarnation=DECODE_LIFE
        )
    with pytest.raises(NotAuthorised):
        world.source.register(
            handoff, grant=target(exposed), epoch=exposed.epoch, holder=DECODE, holder_incarnation=REBORN
        )


async def test_registering_for_what_was_given_up_is_refused_also_when_it_is_a_repetition() -> None:
    world = World()
    handoff = await reserve(world)
    exposed = world.destination.expose(handoff, LEASE)
    register(world, exposed)
    world.source.complete(handoff)
    world.source.abort(handoff)
    with pytest.raises(TransferFailed, match="given up"):
        register(world, exposed)


async def test_I2_a_write_is_let_through_to_the_holder_of_the_grant_at_its_epoch_and_to_nobody_else() -> None:
    world = World()
    _, exposed = await writing(world)
    grant, epoch = target(exposed), exposed.epoch
    with pytest.raises(NotAuthorised):
        check_write(world, exposed, writer=WorkerId("prefill-9"))
    with pytest.raises(StaleEpoch):
        world.destination.check_write(grant, Epoch(epoch + 1), PREFILL, LEASE)
    with pytest.raises(GrantUnknown):
        world.destination.check_write(GrantId(grant[::-1]), epoch, PREFILL, LEASE)
    assert check_write(world, exposed).phase is DestinationPhase.RECEIVING
    written(world, exposed)
    with pytest.raises(StaleEpoch):
        check_write(world, exposed)  # it has said that it writes no more


async def test_parts_have_grants_of_their_own_and_are_installed_together() -> None:
    world = World()
    handoff = await reserve(world, parts=2)
    exposed = world.destination.expose(handoff, LEASE)
    assert target(exposed, 0) != target(exposed, 1)
    written(world, exposed, 1)
    verified(world, handoff, 1)
    with pytest.raises(Bug, match="before its bytes were verified"):
        world.destination.install_written(handoff)
    written(world, exposed, 0)
    verified(world, handoff, 0)
    assert world.destination.install_written(handoff).phase is DestinationPhase.INSTALLED


async def test_what_the_offer_says_of_another_tenant_is_never_installed() -> None:
    world = World()
    _, exposed = await writing(world)
    with pytest.raises(NotAuthorised):
        world.destination.written(
            target(exposed),
            exposed.epoch,
            writer=PREFILL,
            writer_incarnation=PREFILL_LIFE,
            tenant=OTHER_TENANT,
            evidence=Evidence.OWN_TRANSFER_ENDED,
        )
    assert world.destination.state(exposed.handoff).outcome is LogicalOutcome.FAILED
    assert world.destination_ledger.held().blocks == 0  # the word that it writes no more counts all the same


async def test_a_silent_writer_s_blocks_are_quarantined_by_the_reaper_until_it_is_proven_dead() -> None:
    world = World(transport=TransportKind.SHM)
    source, exposed = await writing(world)
    check_write(world, exposed)
    world.clock.advance(LEASE)
    assert world.destination.reap() == 1
    assert world.destination.reap() == 0
    assert world.destination_ledger.held().quarantined == 3
    world.destination.peer_lost(PREFILL, PREFILL_LIFE, Evidence.FENCED_AND_CLOSED)
    assert world.destination_ledger.held().quarantined == 3  # a fenced process keeps its mapping
    world.destination.peer_lost(PREFILL, PREFILL_LIFE, Evidence.PROCESS_EXITED)
    assert world.destination_ledger.held().blocks == 0
    assert world.source.reap() == 1
    world.source.sent(source.handoff, ok=False)
    assert world.holds_nothing()


async def test_writes_lengthen_the_lease_and_silence_ends_it() -> None:
    world = World()
    _, exposed = await writing(world)
    for _ in range(5):
        world.clock.advance(LEASE / 2)
        check_write(world, exposed)
        assert world.destination.reap() == 0
    world.clock.advance(LEASE)
    with pytest.raises(StaleEpoch):
        check_write(world, exposed)  # whether or not the reaper has run
    assert world.destination.state(exposed.handoff).phase is DestinationPhase.IN_DOUBT


async def test_a_consumer_that_renews_keeps_a_push_alive_for_longer_than_a_lease() -> None:
    world = World()
    source, _ = await writing(world)
    for _ in range(5):
        world.clock.advance(LEASE / 2)
        assert world.source.renew(grant_of(source), source.epoch, DECODE, DECODE_LIFE) == LEASE
        assert world.source.reap() == 0
    world.clock.advance(LEASE)
    assert world.source.reap() == 1
    assert world.source.state(source.handoff).phase is SourcePhase.DRAINING


@pytest.mark.parametrize(
    ("transport", "evidence", "freed"),
    [
        (TransportKind.TCP, Evidence.OWN_TRANSFER_ENDED, True),
        (TransportKind.TCP, Evidence.ACKNOWLEDGED, False),
        (TransportKind.SHM, Evidence.ACKNOWLEDGED, True),
        (TransportKind.SHM, Evidence.OWN_TRANSFER_ENDED, False),
        (TransportKind.SHM, Evidence.REVOKED, True),
        (TransportKind.SHM, None, False),
    ],
)
async def test_an_aborted_push_is_freed_on_what_its_transport_takes_for_proof(
    transport: TransportKind, evidence: Evidence | None, freed: bool
) -> None:
    world = World(transport=transport)
    _, exposed = await writing(world)
    check_write(world, exposed)
    world.destination.abort(exposed.handoff, "test")
    world.destination.drained(exposed.handoff, evidence)
    assert world.destination.state(exposed.handoff).ended == freed
    assert (world.destination_ledger.held().blocks == 0) == freed


async def test_a_source_is_free_once_its_own_transfer_has_stopped_whatever_the_consumer_does() -> None:
    stopping: list[HandoffId] = []
    world = World()
    world.source._stops = dict.fromkeys(world.source._stops, stopping.append)
    source, _ = await writing(world)
    world.source.abandon(source.handoff, DECODE, DECODE_LIFE)
    assert stopping == [source.handoff]
    assert world.source_ledger.held().active == 2
    world.source.sent(source.handoff, ok=False)
    assert world.source_ledger.held().blocks == 0


async def test_a_producer_s_death_after_its_last_byte_does_not_cost_the_consumer_its_kv() -> None:
    world = World()
    _, exposed = await writing(world)
    written(world, exposed)
    assert world.destination.peer_lost(PREFILL, PREFILL_LIFE, Evidence.PROCESS_EXITED) == []
    verified(world, exposed.handoff)
    assert world.destination.install_written(exposed.handoff).phase is DestinationPhase.INSTALLED


@pytest.mark.parametrize("mode", TriggerMode)
async def test_rows_say_who_holds_what_in_every_mode(mode: TriggerMode) -> None:
    world = World()
    handoff = await reserve(world, mode)
    if mode is not TriggerMode.PULL:
        world.destination.expose(handoff, LEASE)
    (row,) = world.destination.snapshot()
    assert row["holds"] == (DECODE if mode is TriggerMode.PULL else PREFILL)
    assert row["lease_ms_left"] == (None if mode is TriggerMode.PULL else LEASE.ms)


async def test_forgotten_tombstones_forget_the_grants_of_every_part() -> None:
    world = World(tombstones_max=1)
    for _ in range(3):
        handoff = await reserve(world, parts=2)
        world.destination.expose(handoff, LEASE)
        world.destination.abort(handoff, "test")
        world.destination.drained(handoff, Evidence.OWN_TRANSFER_ENDED)
    assert len(world.destination._grants) == 2
