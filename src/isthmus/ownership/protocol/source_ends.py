"""How the producer's side ends: every path to freed or quarantined blocks, and the evidence that each rests on.

Owns I4 (each grant is closed once, here) and I8 (no path ends without blocks freed or kept for a named reason).
"""

from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence, drains_source
from isthmus.ownership.protocol.effects import (
    CloseGrant,
    Effect,
    EndUse,
    FreeBlocks,
    QuarantineBlocks,
    RememberTombstone,
    StopCompute,
)
from isthmus.ownership.protocol.events import Expire, PeerLost, PeerReincarnated
from isthmus.ownership.protocol.states import LogicalOutcome, PhysicalAccess, SourceHandoff, SourcePhase, TriggerMode

__all__ = [
    "acknowledged",
    "drained",
    "end_of_lease",
    "expire",
    "give_up",
    "impossible",
    "lease_over",
    "peer_lost",
    "peer_reincarnated",
]

Stepped = tuple[SourceHandoff, tuple[Effect, ...]]


def lease_over(state: SourceHandoff, now: Instant) -> bool:
    """Whether the reaper has something to do: the lease has run out and its end has not been dealt with."""
    if state.lease_ends is None or now < state.lease_ends:
        return False
    if state.mode is not TriggerMode.PULL:
        return state.outcome is LogicalOutcome.PENDING
    return state.grant_open or state.phase is SourcePhase.DRAINING


def expire(state: SourceHandoff, event: Expire) -> Stepped:
    if not lease_over(state, event.now):
        raise impossible(state, "expire")
    return end_of_lease(state)


def end_of_lease(state: SourceHandoff) -> Stepped:
    """Expiry ends the logical grant. Whether it frees the blocks is the drain table's to say."""
    effects: tuple[Effect, ...] = ()
    outcome = state.outcome
    if state.grant_open:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
        outcome = LogicalOutcome.FAILED
    evidence = Evidence.LEASE_EXPIRED_ONE_TENANT if state.sole_tenant else Evidence.LEASE_EXPIRED_MANY_TENANTS
    if drains_source(state.transport, evidence):
        return _release(state, outcome, evidence, effects, SourcePhase.EXPIRED)
    doubted = replace(state, phase=SourcePhase.IN_DOUBT, outcome=outcome, access=PhysicalAccess.IN_DOUBT)
    return doubted, (*effects, QuarantineBlocks(blocks=state.blocks, epoch=state.epoch))


def give_up(state: SourceHandoff, outcome: LogicalOutcome) -> Stepped:
    """End the hand-off logically, whoever asks for it; free the blocks if nobody can be touching them."""
    if outcome not in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED):
        raise Bug(f"hand-off {state.handoff} given up as {outcome}", field="outcome")
    if state.phase is SourcePhase.COMPUTING:
        draining = replace(state, phase=SourcePhase.DRAINING, outcome=outcome, access=PhysicalAccess.DRAINING)
        return draining, (StopCompute(),)
    if state.phase is SourcePhase.HELD:
        return _release(state, outcome, Evidence.OWN_WORK_ENDED)
    if state.grant_open:
        draining = replace(state, phase=SourcePhase.DRAINING, outcome=outcome, access=PhysicalAccess.DRAINING)
        return draining, (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
    return state, ()


def drained(state: SourceHandoff, evidence: Evidence) -> Stepped:
    if state.ended:
        return state, ()  # an engine may both finish and report that it has stopped
    if state.phase is SourcePhase.DRAINING and state.grant is None:
        if evidence is not Evidence.OWN_WORK_ENDED:
            return state, ()  # it is our engine's end that is awaited, and nothing else tells of it
        effects = (EndUse(blocks=state.blocks, epoch=state.epoch),)
        return _release(state, state.outcome, evidence, effects)
    if state.phase in (SourcePhase.DRAINING, SourcePhase.IN_DOUBT):
        # Our engine's end says nothing of a reader: what does not settle the matter leaves the blocks where they are.
        if evidence is not Evidence.OWN_WORK_ENDED and drains_source(state.transport, evidence):
            return _release(state, state.outcome, evidence)
        return state, ()
    raise impossible(state, "drained")


def acknowledged(state: SourceHandoff, outcome: LogicalOutcome) -> Stepped:
    """The holder reads no more. A grant that is still open ends with `outcome`."""
    effects: tuple[Effect, ...] = ()
    if state.grant_open:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
    else:
        outcome = state.outcome
    if not drains_source(state.transport, Evidence.ACKNOWLEDGED):
        raise Bug(f"{state.transport}: an acknowledgement must drain a source", field="transport")
    return _release(state, outcome, Evidence.ACKNOWLEDGED, effects)


def peer_lost(state: SourceHandoff, event: PeerLost) -> Stepped:
    if (event.worker, event.incarnation) != (state.holder, state.holder_incarnation) or state.ended:
        return state, ()
    if event.evidence not in DEATH_PROVEN:
        return state, ()  # a silent peer may be paused, and the lease will tell
    given_up, effects = give_up(state, LogicalOutcome.FAILED)
    if given_up.ended or given_up.grant is None or not drains_source(state.transport, event.evidence):
        return given_up, effects
    return _release(given_up, given_up.outcome, event.evidence, effects)


def peer_reincarnated(state: SourceHandoff, event: PeerReincarnated) -> Stepped:
    """Another life answers under the holder's name: the hand-off cannot succeed, and who still reads is not known."""
    if event.worker != state.holder or event.incarnation == state.holder_incarnation:
        return state, ()
    return give_up(state, LogicalOutcome.FAILED)


def _release(
    state: SourceHandoff,
    outcome: LogicalOutcome,
    evidence: Evidence,
    before: tuple[Effect, ...] = (),
    phase: SourcePhase = SourcePhase.RELEASED,
) -> Stepped:
    """Free the blocks on `evidence`; what remains is the tombstone."""
    released = replace(
        state,
        phase=phase,
        outcome=outcome,
        access=PhysicalAccess.DRAINED,
        evidence=evidence,
        blocks=(),
        lease_ends=None,
    )
    free = FreeBlocks(blocks=state.blocks, epoch=state.epoch, evidence=evidence)
    return released, (*before, free, RememberTombstone())


def impossible(state: SourceHandoff, event: str) -> Bug:
    return Bug(f"hand-off {state.handoff}: {event} cannot be in {state.phase}", field="phase")
