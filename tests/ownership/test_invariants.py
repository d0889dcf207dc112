"""One scenario an invariant, run twice: as it is, and with its guard taken away, when it must go red (a canary).

A scenario returns whether the invariant held. I3, I5 and I10 also have tests of their own beside ledger and capacity.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace

from isthmus.core.errors import Bug, CapacityExceeded, IsthmusError, PeerLost, StaleEpoch
from isthmus.core.ids import Epoch, GrantId, Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership import DestinationPhase, Evidence, Ledger, SourcePhase, TransportKind
from isthmus.ownership import owner as owner_module
from isthmus.ownership.owner import Owner
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol import destination, source, source_ends
from isthmus.ownership.protocol.drain import DRAIN_TABLE
from isthmus.ownership.protocol.effects import CloseGrant, EndUse, ReplyConfirmed
from isthmus.ownership.protocol.events import Confirmed, Submit
from isthmus.ownership.protocol.states import PartStage, SourceHandoff
from tests.ownership.test_interleavings import Interleavings
from tests.ownership.worlds import DECODE, DECODE_LIFE, LEASE, OTHER_TENANT, TENANT, World, grant_of

Patch = pytest.MonkeyPatch


def raises(kind: type[IsthmusError], act: Callable[[], object]) -> bool:
    try:
        act()
    except kind:
        return True
    return False


async def i1_no_stale_install(world: World) -> bool:
    """The lease ends under a read, the blocks go to another hand-off, and then the reader asks."""
    slow, next_ = world.handoff(), world.handoff()
    offer = await world.publish(slow, blocks=8)
    world.source.check_read(grant_of(offer), offer.epoch, DECODE, offer.blocks[:4])
    world.clock.advance(LEASE)
    world.source.reap()
    await world.publish(next_, blocks=8)
    return raises(StaleEpoch, lambda: world.confirm(offer))


async def i2_no_write_under_an_old_epoch(world: World) -> bool:
    """Blocks are freed under a conversion (which no correct code does), and it then claims to have ended."""
    handoff = world.handoff()
    state = await world.reserve_destination(handoff, blocks=8)
    world.destination.submit(handoff, grant=GrantId("c" * 32), epoch=Epoch(1), tenant=TENANT)
    world.destination.arrived(handoff)
    world.destination_ledger._close(world.destination_ledger._accounts[state.epoch])
    return raises(Bug, lambda: world.destination.converted(handoff))


async def i3_the_sum_is_constant(world: World) -> bool:
    handoff = world.handoff()
    await world.publish(handoff)
    world.source_ledger._free.pop()  # a block is lost
    return raises(Bug, lambda: world.source.abandon(handoff, DECODE, DECODE_LIFE))


async def i4_each_grant_ends_once(world: World) -> bool:
    handoff = world.handoff()
    offer = await world.publish(handoff)
    try:
        world.confirm(offer)
        world.confirm(offer)
        world.source.abandon(handoff, DECODE, DECODE_LIFE)
        world.source.abort(handoff)
        world.source.peer_lost(DECODE, DECODE_LIFE)
        world.clock.advance(LEASE)
        world.source.reap()
    except Bug:
        return False
    return world.source_ledger.held().grants == 0 and world.holds_nothing()


async def i6_no_renewal_shortens_a_lease(world: World) -> bool:
    handoff = world.handoff()
    offer = await world.publish(handoff)
    world.source.lease = Duration(1)
    return world.source.renew(grant_of(offer), offer.epoch, DECODE, DECODE_LIFE) >= LEASE


async def i7_no_install_across_tenants(world: World) -> bool:
    handoff = world.handoff()
    await world.reserve_destination(handoff, tenant=TENANT)
    grant = GrantId("c" * 32)
    refused = raises(
        IsthmusError, lambda: world.destination.submit(handoff, grant=grant, epoch=Epoch(1), tenant=OTHER_TENANT)
    )
    return refused and world.destination.state(handoff).phase is DestinationPhase.RESERVED


async def i8_a_drained_system_holds_nothing(world: World) -> bool:
    """A dead consumer's request arrives after its death has been established; nobody will prove its death again."""
    handoff = world.handoff()
    world.source.peer_lost(DECODE, DECODE_LIFE, Evidence.PROCESS_EXITED)
    try:
        await world.publish(handoff)
    except PeerLost:
        return world.holds_nothing()
    world.clock.advance(LEASE)
    world.source.reap()
    return world.holds_nothing()


async def i9_decode_never_starts_before_commit(world: World) -> bool:
    """Neither before the bytes are verified nor on another epoch than the one that was read."""
    early, stale = world.handoff(), world.handoff()
    grant, epoch = GrantId("c" * 32), Epoch(5)
    await world.reserve_destination(early)
    world.destination.submit(early, grant=grant, epoch=epoch, tenant=TENANT)
    world.destination.arrived(early)
    world.destination.converted(early)
    await world.verified(stale, grant=grant, epoch=epoch)
    refused_early = raises(Bug, lambda: world.destination.install(early, epoch))
    return refused_early and raises(StaleEpoch, lambda: world.destination.install(stale, Epoch(6)))


async def i10_admission_never_exceeds_capacity(world: World) -> bool:
    """A crowd asks at once for more than there is."""
    crowd = [
        asyncio.ensure_future(world.reserve_destination(world.handoff(), blocks=1, staging_bytes=300)) for _ in range(6)
    ]
    for _ in range(5):
        await asyncio.sleep(0)
    admitted = sum(task.done() for task in crowd)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    return admitted * 300 <= world.destination_ledger.staging_bytes


def no_confirm_check(patch: Patch) -> None:
    patch.setattr(source, "_confirm", lambda state, event: (state, (ReplyConfirmed(epoch=event.epoch),)))


def no_epoch_check(patch: Patch) -> None:
    patch.setattr(Ledger, "check_assigned", lambda self, blocks, epoch: None)


def no_sum_check(patch: Patch) -> None:
    patch.setattr(Ledger, "_check", lambda self: None)


def close_twice(patch: Patch) -> None:
    def execute(ledger: Ledger, effect: Any, real: Any = owner_module.execute) -> None:
        real(ledger, effect)
        if isinstance(effect, CloseGrant):
            real(ledger, effect)

    patch.setattr(owner_module, "execute", execute)


def renew_to_the_latter(patch: Patch) -> None:
    patch.setattr(source, "max", lambda old, new: new, raising=False)


def no_tenant_check(patch: Patch) -> None:
    def submit(state: Any, event: Submit, real: Any = destination._submit) -> Any:
        return real(state, replace(event, tenant=state.tenant))

    patch.setattr(destination, "_submit", submit)


def forget_the_dead(patch: Patch) -> None:
    patch.setattr(Owner, "_note_lost", lambda self, worker, incarnation: None)


def no_commit_check(patch: Patch) -> None:
    def confirmed(state: Any, event: Confirmed, real: Any = destination._confirmed) -> Any:
        parts = tuple(replace(part, stage=PartStage.VERIFIED) for part in state.parts)
        return real(replace(state, parts=parts), replace(event, epoch=parts[0].epoch))

    patch.setattr(destination, "_confirmed", confirmed)


def no_staging_budget(patch: Patch) -> None:
    def try_reserve(
        self: Ledger, handoff: Any, *, tenant: Any, blocks: int, staging_bytes: int, real: Any = Ledger.try_reserve
    ) -> Any:
        return real(self, handoff, tenant=tenant, blocks=blocks, staging_bytes=0)

    patch.setattr(Ledger, "try_reserve", try_reserve)


Scenario = Callable[[World], Awaitable[bool]]
SCENARIOS: dict[str, tuple[Scenario, Callable[[Patch], None]]] = {
    "I1": (i1_no_stale_install, no_confirm_check),
    "I2": (i2_no_write_under_an_old_epoch, no_epoch_check),
    "I3": (i3_the_sum_is_constant, no_sum_check),
    "I4": (i4_each_grant_ends_once, close_twice),
    "I6": (i6_no_renewal_shortens_a_lease, renew_to_the_latter),
    "I7": (i7_no_install_across_tenants, no_tenant_check),
    "I8": (i8_a_drained_system_holds_nothing, forget_the_dead),
    "I9": (i9_decode_never_starts_before_commit, no_commit_check),
    "I10": (i10_admission_never_exceeds_capacity, no_staging_budget),
}


def world_for(invariant: str) -> World:
    return World(sole_tenant=None if invariant == "I8" else TENANT)


@pytest.mark.parametrize("invariant", SCENARIOS)
async def test_the_invariant_holds(invariant: str) -> None:
    assert await SCENARIOS[invariant][0](world_for(invariant))


@pytest.mark.parametrize("invariant", SCENARIOS)
async def test_without_its_guard_the_invariant_s_scenario_goes_red(invariant: str, monkeypatch: Patch) -> None:
    scenario, remove_guard = SCENARIOS[invariant]
    remove_guard(monkeypatch)
    assert not await scenario(world_for(invariant))


async def test_I5_every_way_into_admission_ends_in_an_answer() -> None:
    world = World(source_blocks=2)
    await world.reserve_source(world.handoff())
    waiting = asyncio.ensure_future(world.reserve_source(world.handoff()))
    for _ in range(5):
        await asyncio.sleep(0)
    world.clock.advance(world.far())
    with pytest.raises(CapacityExceeded):
        await waiting


# the same, by searching: a guard is taken away and the random interleavings must find what follows


def free_while_computing(patch: Patch) -> None:
    """Abort does not wait for the engine."""

    def give_up(state: SourceHandoff, outcome: Any, real: Any = source_ends.give_up) -> Any:
        if state.phase is not SourcePhase.COMPUTING:
            return real(state, outcome)
        end_use = (EndUse(blocks=state.blocks, epoch=state.epoch),)
        return source_ends._release(state, outcome, Evidence.OWN_WORK_ENDED, end_use)

    patch.setattr(source, "give_up", give_up)
    patch.setattr(source_ends, "give_up", give_up)


def free_across_tenants(patch: Patch) -> None:
    """Expiry frees at once, although another tenant may get the blocks under a late read."""
    for transport in TransportKind:
        key = (transport, Evidence.LEASE_EXPIRED_MANY_TENANTS)
        patch.setitem(DRAIN_TABLE, key, replace(DRAIN_TABLE[key], source=True))


@pytest.mark.parametrize("remove_guard", [no_confirm_check, free_while_computing, free_across_tenants, close_twice])
def test_random_interleavings_find_a_missing_guard(remove_guard: Callable[[Patch], None], monkeypatch: Patch) -> None:
    remove_guard(monkeypatch)
    search = settings(
        max_examples=600,
        stateful_step_count=40,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        database=None,
        derandomize=True,
    )
    with pytest.raises((AssertionError, Bug)):
        run_state_machine_as_test(Interleavings, settings=search)


def test_a_stranger_with_a_guessed_grant_learns_nothing() -> None:
    world = World()
    owner: SourceOwner = world.source
    with pytest.raises(IsthmusError) as caught:
        owner.check_read(GrantId("d" * 32), Epoch(1), WorkerId("decode-9"), [0])
    assert (caught.value.code, str(caught.value)) == ("GrantUnknown", "no such grant")
    with pytest.raises(IsthmusError):
        owner.confirm(GrantId("é"), Epoch(1), WorkerId("decode-9"), Incarnation("x"))
