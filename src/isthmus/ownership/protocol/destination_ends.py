"""How the consumer's side ends: the commit, and every path to freed or quarantined blocks, with its evidence.

Owns I8 (no path ends without blocks freed or kept for a named reason).
"""

from msgspec.structs import replace

from isthmus.core.errors import Bug
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence, drains_destination, drains_pushed
from isthmus.ownership.protocol.effects import (
    Effect,
    EndUse,
    FreeBlocks,
    MarkResident,
    QuarantineBlocks,
    ReleaseStaging,
    RememberTombstone,
    StopDecode,
    StopRead,
)
from isthmus.ownership.protocol.events import PeerLost, PeerReincarnated
from isthmus.ownership.protocol.parts import all_written, end_parts, some_own_active, some_peer_active
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    PartStage,
    PhysicalAccess,
    TriggerMode,
)

__all__ = [
    "doubt",
    "drained",
    "finish",
    "give_up",
    "impossible",
    "install",
    "peer_lost",
    "peer_reincarnated",
    "release",
    "settle",
    "too_late",
]

Stepped = tuple[DestinationHandoff, tuple[Effect, ...]]


def install(state: DestinationHandoff) -> Stepped:
    """Commit: all parts at once. The blocks become decode's, the staging comes free."""
    installed = replace(state, phase=DestinationPhase.INSTALLED, outcome=LogicalOutcome.SUCCEEDED, lease_ends=None)
    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True), *_staging(state))


def finish(state: DestinationHandoff) -> Stepped:
    if state.phase in (DestinationPhase.INSTALLED, DestinationPhase.DRAINING):
        return release(state, state.outcome, Evidence.OWN_WORK_ENDED)
    if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:
        return state, ()  # decode may both finish and report that it has stopped
    raise impossible(state, "finish")


def give_up(
    state: DestinationHandoff, outcome: LogicalOutcome, evidence: Evidence = Evidence.OWN_TRANSFER_ENDED
) -> Stepped:
    """End the hand-off logically, whoever asks for it; free the blocks, on `evidence`, if nobody touches them now."""
    if outcome not in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED):
        raise Bug(f"hand-off {state.handoff} given up as {outcome}", field="outcome")
    if state.phase is DestinationPhase.INSTALLED:
        # The outcome stays: the hand-off has succeeded, and it is decode that is given up.
        return replace(state, phase=DestinationPhase.DRAINING, access=PhysicalAccess.DRAINING), (StopDecode(),)
    if state.outcome is not LogicalOutcome.PENDING:
        return state, ()
    if state.phase is DestinationPhase.RESERVED:
        return release(state, outcome, Evidence.NEVER_EXPOSED)
    stop = (StopRead(),) if some_own_active(state) else ()
    aborting = replace(state, phase=DestinationPhase.ABORTING, outcome=outcome, access=PhysicalAccess.DRAINING)
    settled, effects = settle(aborting, evidence)
    return settled, (*stop, *effects)


def settle(state: DestinationHandoff, evidence: Evidence) -> Stepped:
    """Given up: wait while anybody may touch the blocks, in quarantine once the lease is over; else free them."""
    if some_own_active(state):
        return state, ()
    if not some_peer_active(state):
        return release(state, state.outcome, evidence)
    if state.phase is DestinationPhase.ABORTING and state.lease_ends is None:
        return _quarantined(state)
    return state, ()


def drained(state: DestinationHandoff, evidence: Evidence) -> Stepped:
    if state.ended:
        return state, ()  # a stage may both end and report that it has stopped
    if state.phase is DestinationPhase.DRAINING:
        if evidence is not Evidence.OWN_WORK_ENDED:
            raise Bug(f"{evidence}: it is our own decode's end that is awaited", field="evidence")
        return release(state, state.outcome, evidence)
    if state.phase not in (DestinationPhase.ABORTING, DestinationPhase.IN_DOUBT):
        raise impossible(state, "drained")
    if state.mode is not TriggerMode.PULL:
        # Our engine's end says nothing of a writer, and a writer's end nothing of our engine.
        own = evidence is Evidence.OWN_WORK_ENDED
        peer = drains_pushed(state.transport, evidence)
        return settle(end_parts(state, own=own, peer=peer), evidence)
    doubted = state.phase is DestinationPhase.IN_DOUBT and drains_destination(state.transport, evidence)
    if evidence is not Evidence.OWN_TRANSFER_ENDED and not doubted:
        raise Bug(f"{evidence} over {state.transport} does not drain a destination", field="evidence")
    return release(state, state.outcome, evidence)


def doubt(state: DestinationHandoff) -> Stepped:
    """Quarantine. Under pull: our own transfer can neither be completed nor be shown to have stopped.

    A conversion or a check of ours is never in doubt: it ends, and the producer's death says nothing of it.
    """
    stages = {part.stage for part in state.parts}
    ours = state.mode is TriggerMode.PULL and not stages.isdisjoint((PartStage.CONVERTING, PartStage.VERIFYING))
    if state.phase is not DestinationPhase.ABORTING or ours:
        raise impossible(state, "doubt")
    if state.mode is TriggerMode.PULL:
        return _quarantined(state)
    return settle(replace(state, lease_ends=None), Evidence.OWN_TRANSFER_ENDED)


def peer_lost(state: DestinationHandoff, event: PeerLost) -> Stepped:
    if (event.worker, event.incarnation) != (state.producer, state.producer_incarnation) or state.ended:
        return state, ()
    if event.evidence not in DEATH_PROVEN:
        return state, ()  # a silent producer may answer yet; the request's deadline decides
    if state.mode is TriggerMode.PULL:
        proven = drains_destination(state.transport, event.evidence)
        if state.phase is DestinationPhase.IN_DOUBT and proven:
            return release(state, state.outcome, event.evidence)
    else:
        proven = drains_pushed(state.transport, event.evidence)
        if proven and some_peer_active(state):
            state = end_parts(state, own=False, peer=True)
            if state.outcome is not LogicalOutcome.PENDING:
                return settle(state, event.evidence)
    if state.outcome is not LogicalOutcome.PENDING or all_written(state):
        return state, ()  # installed KV is ours, and so is what was written: its producer's death does not matter
    ended_by = event.evidence if proven else Evidence.OWN_TRANSFER_ENDED
    return give_up(state, LogicalOutcome.FAILED, ended_by)


def peer_reincarnated(state: DestinationHandoff, event: PeerReincarnated) -> Stepped:
    """Another life answers under the producer's name: nothing more will come of this hand-off's."""
    if event.worker != state.producer or event.incarnation == state.producer_incarnation:
        return state, ()
    if state.outcome is not LogicalOutcome.PENDING or all_written(state):
        return state, ()
    return give_up(state, LogicalOutcome.FAILED)


def release(state: DestinationHandoff, outcome: LogicalOutcome, evidence: Evidence) -> Stepped:
    """Free blocks and staging on `evidence`; what remains is the tombstone."""
    released = replace(
        state,
        phase=DestinationPhase.RELEASED,
        outcome=outcome,
        access=PhysicalAccess.DRAINED,
        evidence=evidence,
        blocks=(),
        lease_ends=None,
    )
    effects: list[Effect] = []
    if state.phase not in (DestinationPhase.RESERVED, DestinationPhase.IN_DOUBT):
        effects.append(EndUse(blocks=state.blocks, epoch=state.epoch))
    effects.append(FreeBlocks(blocks=state.blocks, epoch=state.epoch, evidence=evidence))
    if state.outcome is not LogicalOutcome.SUCCEEDED:
        effects.extend(_staging(state))
    return released, (*effects, RememberTombstone())


def too_late(state: DestinationHandoff) -> bool:
    return state.outcome is LogicalOutcome.FAILED or state.outcome is LogicalOutcome.CANCELLED


def impossible(state: DestinationHandoff, event: str) -> Bug:
    return Bug(f"hand-off {state.handoff}: {event} cannot be in {state.phase}", field="phase")


def _quarantined(state: DestinationHandoff) -> Stepped:
    doubted = replace(state, phase=DestinationPhase.IN_DOUBT, access=PhysicalAccess.IN_DOUBT, lease_ends=None)
    blocks, epoch = state.blocks, state.epoch
    return doubted, (EndUse(blocks=blocks, epoch=epoch), QuarantineBlocks(blocks=blocks, epoch=epoch))


def _staging(state: DestinationHandoff) -> tuple[Effect, ...]:
    """Staging counts until the commit or the end, whichever comes first (I10)."""
    return (ReleaseStaging(epoch=state.epoch),) if state.staging_bytes else ()
