"""The consumer's owner, and both together, as their callers see them."""

import json

import pytest

from isthmus.core.errors import (
    Bug,
    PeerLost,
    StaleEpoch,
    TransferFailed,
)
from isthmus.core.ids import HandoffId
from isthmus.core.units import Duration
from isthmus.ownership import (
    DestinationPhase,
)
from tests.ownership.worlds import (
    DECODE,
    DECODE_LIFE,
    PREFILL,
    PREFILL_LIFE,
    TENANT,
    World,
    grant_of,
)


async def test_a_hand_off_goes_from_reservation_to_release_and_leaves_nothing() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    await world.reserve_destination(handoff)
    offer = await world.publish(handoff)
    world.destination.submit(handoff, grant=grant_of(offer), epoch=offer.epoch, tenant=offer.tenant)
    world.source.check_read(grant_of(offer), offer.epoch, DECODE, offer.blocks)
    world.destination.arrived(handoff)
    world.destination.converted(handoff)
    world.destination.verified(handoff, ok=True)
    installed = world.destination.install(handoff, world.confirm(offer))
    assert installed.phase is DestinationPhase.INSTALLED
    assert world.destination_ledger.held().active == 3
    assert world.destination_ledger.held().staging_bytes == 0  # until the commit
    assert world.source_ledger.held().blocks == 0  # the confirmation is the acknowledgement
    world.destination.finish(handoff)
    assert world.holds_nothing()
    events = [moment.event for moment in world.destination.timeline(handoff)]
    assert events == [
        "reserve",
        "submit",
        "arrived",
        "convert_done",
        "verify_ok",
        "confirmed",
        "finish",
    ]


async def test_a_producer_s_death_ends_what_was_not_installed_and_leaves_what_was() -> None:
    world = World(destination_blocks=12)
    offer = await world.publish(world.handoff())
    installed, reading, waiting = world.handoff(), world.handoff(), world.handoff()
    await world.verified(installed, grant=grant_of(offer), epoch=offer.epoch)
    world.destination.install(installed, offer.epoch)
    await world.reserve_destination(waiting)
    await world.reserve_destination(reading)
    world.destination.submit(reading, grant=grant_of(offer), epoch=offer.epoch, tenant=TENANT)
    assert world.destination.peer_lost(PREFILL, PREFILL_LIFE) == [reading]
    assert world.stops.read == [reading]
    assert world.destination.state(waiting).phase is DestinationPhase.RELEASED
    assert world.destination.state(installed).phase is DestinationPhase.INSTALLED
    with pytest.raises(TransferFailed):
        world.destination.arrived(reading)  # its end is the evidence, too
    world.destination.finish(installed)
    assert (len(world.destination), world.destination_ledger.held().blocks) == (0, 0)


async def test_a_digest_that_does_not_match_frees_everything() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    offer = await world.publish(world.handoff())
    await world.reserve_destination(handoff)
    world.destination.submit(handoff, grant=grant_of(offer), epoch=offer.epoch, tenant=TENANT)
    world.destination.arrived(handoff)
    world.destination.converted(handoff)
    assert world.destination.verified(handoff, ok=False).phase is DestinationPhase.RELEASED
    assert world.destination_ledger.held().blocks == world.destination_ledger.held().staging_bytes == 0
    with pytest.raises(TransferFailed):
        world.destination.install(handoff, offer.epoch)


async def test_a_transfer_whose_end_is_unknown_is_quarantined_until_it_is_known() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    offer = await world.publish(world.handoff())
    await world.reserve_destination(handoff)
    world.destination.submit(handoff, grant=grant_of(offer), epoch=offer.epoch, tenant=TENANT)
    world.destination.abort(handoff, "deadline")
    world.destination.doubt(handoff)
    held = world.destination_ledger.held()
    assert (held.quarantined, held.staging_bytes) == (3, 100)
    world.destination.drained(handoff)
    assert world.destination_ledger.held().blocks == 0


async def test_stopping_decode_frees_once_it_has_stopped() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    offer = await world.publish(world.handoff())
    await world.verified(handoff, grant=grant_of(offer), epoch=offer.epoch)
    world.destination.install(handoff, offer.epoch)
    assert world.destination.abort(handoff, "client gone").phase is DestinationPhase.DRAINING
    assert world.stops.decode == [handoff]
    world.destination.finish(handoff)
    world.destination.drained(handoff)
    assert world.destination_ledger.held().blocks == 0


async def test_a_fenced_worker_grants_and_installs_nothing_more() -> None:
    world = World()
    offer = await world.publish(world.handoff())
    world.source.fence()
    with pytest.raises(StaleEpoch):
        world.confirm(offer)
    with pytest.raises(PeerLost):
        await world.reserve_source(world.handoff())
    handoff = world.handoff()
    await world.verified(handoff, grant=grant_of(offer), epoch=offer.epoch)
    world.destination.fence()
    with pytest.raises(TransferFailed):
        world.destination.install(handoff, offer.epoch)


async def test_our_own_nonsense_is_a_bug() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    await world.reserve_source(handoff)
    with pytest.raises(Bug):
        world.source.publish(handoff)
    await world.reserve_destination(handoff)
    with pytest.raises(Bug):
        world.destination.install(handoff, world.source.state(handoff).epoch)


async def test_rows_answer_the_five_questions_at_every_moment_and_are_json() -> None:
    world, handoff = World(), HandoffId("a" * 32)
    await world.reserve_destination(handoff)
    offer = await world.publish(handoff)
    world.clock.advance(Duration.of_ms(500))
    source, destination = world.source.snapshot()[0], world.destination.snapshot()[0]
    assert (source["lease_ms_left"], source["age_ms"], source["bytes"]) == (1500.0, 500.0, 20)
    assert (destination["holder"], destination["peer"], destination["staging_bytes"]) == (DECODE, PREFILL, 100)
    for row in (source, destination):
        for question in ("holds", "accounts", "declares_completion", "releases", "cleans_up"):
            assert row[question]
    world.confirm(offer)
    world.destination.abort(handoff, "test")
    finished = [*world.source.finished(), *world.destination.finished()]
    assert [row["phase"] for row in finished] == ["released", "released"]
    assert [moment["event"] for moment in finished[1]["timeline"]] == ["reserve", "abort: test"]  # type: ignore[attr-defined]
    json.dumps([source, destination, *finished])


async def test_a_timeline_stays_short_however_often_a_lease_is_renewed() -> None:
    world = World()
    offer = await world.publish(world.handoff())
    for _ in range(500):
        world.clock.advance(Duration.of_ms(1))
        world.source.renew(grant_of(offer), offer.epoch, DECODE, DECODE_LIFE)
    moments = world.source.timeline(offer.handoff)
    assert [(moment.event, moment.ms) for moment in moments] == [
        ("reserve", 0.0),
        ("complete", 0.0),
        ("publish", 0.0),
        ("renew", 500.0),
    ]
