"""The consumer's side of a hand-off as a pure, total function: `step(state, event) -> (state, effects)`.

Owns the rules of I1 (the reader's half), I7 and I9: INSTALLED is reached from verified bytes of every part, and under
pull only with the owners' confirmation of the very epochs that were read. `destination_push` has what is special where
the producer writes, `destination_ends` every way to freed or quarantined blocks. Refuses to know the ledger, the clock
and the network.
"""

from msgspec.structs import replace

from isthmus.core.errors import Bug
from isthmus.ownership.protocol import destination_push
from isthmus.ownership.protocol.destination_ends import (
    doubt,
    drained,
    finish,
    give_up,
    impossible,
    install,
    peer_lost,
    peer_reincarnated,
    release,
    settle,
    too_late,
)
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.effects import Effect, MarkFilling, Refusal, ReplyRefused
from isthmus.ownership.protocol.events import (
    Abort,
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Doubt,
    Drained,
    Expire,
    Expose,
    Fence,
    Finish,
    Install,
    PeerLost,
    PeerReincarnated,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.parts import own_active, phase_of, with_part
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    Part,
    PartStage,
    PhysicalAccess,
    TriggerMode,
)

__all__ = ["step"]

Stepped = tuple[DestinationHandoff, tuple[Effect, ...]]
_Progress = Arrived | ConvertDone | VerifyOk | VerifyBad

_READING = (DestinationPhase.RECEIVING, DestinationPhase.CONVERTING, DestinationPhase.VERIFYING)
_NEXT = {
    Arrived: (PartStage.RECEIVING, PartStage.CONVERTING),
    ConvertDone: (PartStage.CONVERTING, PartStage.VERIFYING),
    VerifyOk: (PartStage.VERIFYING, PartStage.VERIFIED),
}


def step(state: DestinationHandoff | None, event: DestinationEvent) -> Stepped:
    """What `event` makes of `state`, and what is to be done about it."""
    if state is None:
        return _reserve(event)
    if state.mode is TriggerMode.PULL:
        return _step(state, event)
    if isinstance(event, Submit | Arrived | Confirmed | ConfirmRefused):
        return destination_push.of_pull(state, event)
    return destination_push.closing(state, _step(state, event))


def _step(state: DestinationHandoff, event: DestinationEvent) -> Stepped:
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
            return finish(state)
        case Drained():
            return drained(state, event.evidence)
        case Abort():
            return give_up(state, event.outcome)
        case Fence():
            return give_up(state, LogicalOutcome.FAILED)
        case PeerLost():
            return peer_lost(state, event)
        case PeerReincarnated():
            return peer_reincarnated(state, event)
        case Doubt():
            return doubt(state)
        case Expose() | WriteSeen() | Written() | Install() | Expire():
            return destination_push.step(state, event)
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
        mode=event.mode,
        parts=(Part(),) * event.num_parts,
    )
    return state, ()


# towards the commit


def _submit(state: DestinationHandoff, event: Submit) -> Stepped:
    if too_late(state):
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    first = state.phase is DestinationPhase.RESERVED
    if not (first or state.phase in _READING):
        raise impossible(state, "submit")
    if state.parts[event.part].stage is not PartStage.WAITING:
        raise impossible(state, "submit")
    if event.tenant != state.tenant:  # I7: what is never read can never be installed
        return state, (ReplyRefused(reason=Refusal.NOT_AUTHORISED),)
    receiving = replace(
        state,
        phase=DestinationPhase.RECEIVING,
        access=PhysicalAccess.POSSIBLY_EXPOSED,
        parts=with_part(state, event.part, PartStage.RECEIVING, grant=event.grant, epoch=event.epoch),
    )
    return receiving, (MarkFilling(blocks=state.blocks, epoch=state.epoch),) if first else ()


def _progress(state: DestinationHandoff, event: _Progress) -> Stepped:
    """One stage of a part has ended: its next begins, unless the hand-off was given up meanwhile."""
    stage = state.parts[event.part].stage
    if state.phase in (DestinationPhase.ABORTING, DestinationPhase.IN_DOUBT) and own_active(state, stage):
        # The stage that we asked to stop has ended by itself, and no other begins.
        ended = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
        settled, effects = settle(ended, Evidence.OWN_TRANSFER_ENDED)
        return settled, (*effects, ReplyRefused(reason=Refusal.ENDED))
    if too_late(state):
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    if state.phase not in _READING:
        raise impossible(state, type(event).__name__)
    if isinstance(event, VerifyBad):
        if stage is not PartStage.VERIFYING:
            raise impossible(state, "VerifyBad")
        # I1: a doubt about bytes ends the hand-off, always.
        bad = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
        return give_up(bad, LogicalOutcome.FAILED)
    before, after = _NEXT[type(event)]
    if stage is not before:
        raise impossible(state, type(event).__name__)
    parts = with_part(state, event.part, after)
    phase = phase_of(parts)
    moved = replace(state, parts=parts, phase=phase)
    if phase is DestinationPhase.VERIFYING and moved.prepared:
        return replace(moved, access=PhysicalAccess.DRAINED), ()
    return moved, ()


def _confirmed(state: DestinationHandoff, event: Confirmed) -> Stepped:
    part = state.parts[event.part]
    repeated = event.epoch == part.epoch and part.stage is PartStage.CONFIRMED
    if repeated and state.phase in (DestinationPhase.VERIFYING, DestinationPhase.INSTALLED):
        return state, ()
    if state.phase is not DestinationPhase.VERIFYING:
        if state.phase in (*_READING, DestinationPhase.RESERVED):
            raise impossible(state, "confirmed")
        return state, (ReplyRefused(reason=Refusal.ENDED),)
    if not state.prepared:
        raise Bug(f"hand-off {state.handoff}: to be installed before its bytes were verified", field="parts")  # I9
    if event.epoch != part.epoch:
        # I1: the owner speaks of another epoch than the one that was read.
        released, effects = release(state, LogicalOutcome.FAILED, Evidence.OWN_TRANSFER_ENDED)
        return released, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    confirmed = replace(state, parts=with_part(state, event.part, PartStage.CONFIRMED))
    if any(each.stage is not PartStage.CONFIRMED for each in confirmed.parts):
        return confirmed, ()  # parts are installed together
    return install(confirmed)


def _confirm_refused(state: DestinationHandoff) -> Stepped:
    if state.phase in (DestinationPhase.RESERVED, DestinationPhase.RECEIVING):
        raise impossible(state, "confirm_refused")
    if state.phase in _READING:
        return give_up(state, LogicalOutcome.FAILED)
    return state, ()  # given up already, or installed on an earlier yes of the same owner
