"""The consumer's side of a hand-off as a pure, total function: `step(state, event) -> (state, effects)`.

Owns the rules of I1 (the reader's half), I7 and I9: INSTALLED is reached in one place, from verified bytes and the
owner's confirmation of the very epoch that was read. Refuses to know the ledger, the clock and the network.
"""

from msgspec.structs import replace

from isthmus.core.errors import Bug
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence, drains_destination
from isthmus.ownership.protocol.effects import (
    Effect,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    QuarantineBlocks,
    Refusal,
    ReleaseStaging,
    RememberTombstone,
    ReplyRefused,
    StopDecode,
    StopRead,
)
from isthmus.ownership.protocol.events import (
    Abort,
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Doubt,
    Drained,
    Fence,
    Finish,
    PeerLost,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
)
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, LogicalOutcome, PhysicalAccess

__all__ = ["step"]

Stepped = tuple[DestinationHandoff, tuple[Effect, ...]]
_Progress = Arrived | ConvertDone | VerifyOk | VerifyBad

_READING = (DestinationPhase.RECEIVING, DestinationPhase.CONVERTING, DestinationPhase.VERIFYING)


def step(state: DestinationHandoff | None, event: DestinationEvent) -> Stepped:
    """What `event` makes of `state`, and what is to be done about it."""
    if state is None:
        return _reserve(event)
    match event:
        case Arrived() | ConvertDone() | VerifyOk() | VerifyBad():
            return _progress(state, event)
        case Submit():
            return _submit(state, event)
        case Confirmed():
            return _confirmed(state, event)
        case ConfirmRefused():
            return _confirm_refused(state)
        case Finish():
            return _finish(state)
        case Drained():
            return _drained(state, event.evidence)
        case Abort():
            return _give_up(state, event.outcome)
        case Fence():
            return _give_up(state, LogicalOutcome.FAILED)
        case PeerLost():
            return _peer_lost(state, event)
        case Doubt():
            return _doubt(state)
        case ReserveDestination():
            raise Bug(f"hand-off {state.handoff} reserved twice", field="handoff")


def _reserve(event: DestinationEvent) -> Stepped:
    if not isinstance(event, ReserveDestination):
        raise Bug(f"{type(event).__name__} for a hand-off that was never reserved", field="handoff")
    state = DestinationHandoff(
        handoff=event.handoff,
        producer=event.producer,
        producer_incarnation=event.producer_incarnation,
        tenant=event.tenant,
        transport=event.transport,
        blocks=event.blocks,
        num_blocks=len(event.blocks),
        staging_bytes=event.staging_bytes,
        epoch=event.epoch,
    )
    return state, ()


# towards the commit


def _submit(state: DestinationHandoff, event: Submit) -> Stepped:
    if _too_late(state):
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    if state.phase is not DestinationPhase.RESERVED:
        raise _impossible(state, "submit")
    if event.tenant != state.tenant:  # I7: what is never read can never be installed
        return state, (ReplyRefused(reason=Refusal.NOT_AUTHORISED),)
    receiving = replace(
        state,
        phase=DestinationPhase.RECEIVING,
        access=PhysicalAccess.POSSIBLY_EXPOSED,
        grant=event.grant,
        grant_epoch=event.epoch,
    )
    return receiving, (MarkFilling(blocks=state.blocks, epoch=state.epoch),)


def _progress(state: DestinationHandoff, event: _Progress) -> Stepped:
    """One stage of reading has ended: the next begins, unless the hand-off was given up meanwhile."""
    if state.phase is DestinationPhase.ABORTING:
        # The stage that we asked to stop has ended by itself, and no other begins.
        released, effects = _drained(state, Evidence.OWN_TRANSFER_ENDED)
        return released, (*effects, ReplyRefused(reason=Refusal.ENDED))
    if _too_late(state):
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    match state.phase, event:
        case DestinationPhase.RECEIVING, Arrived():
            return replace(state, phase=DestinationPhase.CONVERTING), ()
        case DestinationPhase.CONVERTING, ConvertDone():
            return replace(state, phase=DestinationPhase.VERIFYING), ()
        case DestinationPhase.VERIFYING, VerifyOk() if not state.verified:
            return replace(state, verified=True, access=PhysicalAccess.DRAINED), ()
        case DestinationPhase.VERIFYING, VerifyBad() if not state.verified:
            # I1: a doubt about bytes ends the hand-off, always.
            return _release(state, LogicalOutcome.FAILED, Evidence.OWN_TRANSFER_ENDED)
        case _:
            raise _impossible(state, type(event).__name__)


def _confirmed(state: DestinationHandoff, event: Confirmed) -> Stepped:
    if state.phase is DestinationPhase.INSTALLED and event.epoch == state.grant_epoch:
        return state, ()  # a repeated answer
    if state.phase is not DestinationPhase.VERIFYING:
        if state.phase in (*_READING, DestinationPhase.RESERVED):
            raise _impossible(state, "confirmed")
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    if not state.verified:
        raise Bug(f"hand-off {state.handoff}: to be installed before its bytes were verified", field="verified")  # I9
    if event.epoch != state.grant_epoch:
        # I1: the owner speaks of another epoch than the one that was read.
        released, effects = _release(state, LogicalOutcome.FAILED, Evidence.OWN_TRANSFER_ENDED)
        return released, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    installed = replace(state, phase=DestinationPhase.INSTALLED, outcome=LogicalOutcome.SUCCEEDED)
    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True), *_staging(state))


def _confirm_refused(state: DestinationHandoff) -> Stepped:
    if state.phase in (DestinationPhase.RESERVED, DestinationPhase.RECEIVING):
        raise _impossible(state, "confirm_refused")
    if state.phase in _READING:
        return _give_up(state, LogicalOutcome.FAILED)
    return state, ()  # given up already, or installed on an earlier yes of the same owner


def _finish(state: DestinationHandoff) -> Stepped:
    if state.phase in (DestinationPhase.INSTALLED, DestinationPhase.DRAINING):
        return _release(state, state.outcome, Evidence.OWN_WORK_ENDED)
    if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:
        return state, ()  # decode may both finish and report that it has stopped
    raise _impossible(state, "finish")


# endings


def _give_up(state: DestinationHandoff, outcome: LogicalOutcome) -> Stepped:
    if outcome not in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED):
        raise Bug(f"hand-off {state.handoff} given up as {outcome}", field="outcome")
    if state.phase is DestinationPhase.RESERVED:
        return _release(state, outcome, Evidence.NEVER_EXPOSED)
    if state.phase is DestinationPhase.VERIFYING and state.verified:
        return _release(state, outcome, Evidence.OWN_TRANSFER_ENDED)
    if state.phase in _READING:
        aborting = replace(state, phase=DestinationPhase.ABORTING, outcome=outcome, access=PhysicalAccess.DRAINING)
        return aborting, (StopRead(),)
    if state.phase is DestinationPhase.INSTALLED:
        # The outcome stays: the hand-off has succeeded, and it is decode that is given up.
        return replace(state, phase=DestinationPhase.DRAINING, access=PhysicalAccess.DRAINING), (StopDecode(),)
    return state, ()


def _drained(state: DestinationHandoff, evidence: Evidence) -> Stepped:
    if state.ended:
        return state, ()  # a stage may both end and report that it has stopped
    if state.phase not in (DestinationPhase.ABORTING, DestinationPhase.DRAINING, DestinationPhase.IN_DOUBT):
        raise _impossible(state, "drained")
    if not drains_destination(state.transport, evidence):
        raise Bug(f"{evidence} over {state.transport} does not drain a destination", field="evidence")
    return _release(state, state.outcome, evidence)


def _doubt(state: DestinationHandoff) -> Stepped:
    if state.phase is not DestinationPhase.ABORTING:
        raise _impossible(state, "doubt")
    doubted = replace(state, phase=DestinationPhase.IN_DOUBT, access=PhysicalAccess.IN_DOUBT)
    blocks, epoch = state.blocks, state.epoch
    return doubted, (EndUse(blocks=blocks, epoch=epoch), QuarantineBlocks(blocks=blocks, epoch=epoch))


def _peer_lost(state: DestinationHandoff, event: PeerLost) -> Stepped:
    if (event.worker, event.incarnation) != (state.producer, state.producer_incarnation):
        return state, ()
    if event.evidence not in DEATH_PROVEN:
        return state, ()  # a silent producer may answer yet; the request's deadline decides
    if state.phase is DestinationPhase.IN_DOUBT and drains_destination(state.transport, event.evidence):
        return _release(state, state.outcome, event.evidence)
    if state.outcome is not LogicalOutcome.PENDING:
        return state, ()  # installed KV is ours: its producer's death does not matter any more
    return _give_up(state, LogicalOutcome.FAILED)


def _release(state: DestinationHandoff, outcome: LogicalOutcome, evidence: Evidence) -> Stepped:
    """Free blocks and staging on `evidence`; what remains is the tombstone."""
    phase, access = DestinationPhase.RELEASED, PhysicalAccess.DRAINED
    released = replace(state, phase=phase, outcome=outcome, access=access, evidence=evidence, blocks=())
    effects: list[Effect] = []
    if state.phase not in (DestinationPhase.RESERVED, DestinationPhase.IN_DOUBT):
        effects.append(EndUse(blocks=state.blocks, epoch=state.epoch))
    effects.append(FreeBlocks(blocks=state.blocks, epoch=state.epoch, evidence=evidence))
    if state.phase not in (DestinationPhase.INSTALLED, DestinationPhase.DRAINING):
        effects.extend(_staging(state))
    return released, (*effects, RememberTombstone())


def _staging(state: DestinationHandoff) -> tuple[Effect, ...]:
    """Staging counts until the commit or the end, whichever comes first (I10)."""
    return (ReleaseStaging(epoch=state.epoch),) if state.staging_bytes else ()


def _too_late(state: DestinationHandoff) -> bool:
    return state.outcome in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED)


def _impossible(state: DestinationHandoff, event: str) -> Bug:
    return Bug(f"hand-off {state.handoff}: {event} cannot be in {state.phase}", field="phase")
