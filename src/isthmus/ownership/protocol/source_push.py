"""The producer's side where it writes (push, and send): what differs from being read.

    COMPUTING ─► HELD ─► PUBLISHED (we write, then wait for the consumer's word) ─► RELEASED
        └── send: PUBLISHED's writing begins while computing ──┘

The source is exposed to nobody: only our own engine and our own transfer touch it, so that its blocks are free as soon
as both have ended, whatever the consumer does. What the consumer registered and what we have filled may come in either
order. The consumer's word that it has installed releases; its silence ends in the end of the lease, which it renews
under the grant while it computes, receives or verifies. Owns I6 here.
"""

from msgspec.structs import replace

from isthmus.core.clock import after
from isthmus.core.errors import Bug
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence
from isthmus.ownership.protocol.effects import (
    BeginUse,
    Effect,
    EndUse,
    FreeBlocks,
    MarkResident,
    Refusal,
    RememberTombstone,
    ReplyConfirmed,
    ReplyRefused,
    StopCompute,
    StopSend,
)
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Complete,
    Confirm,
    Drained,
    Expire,
    Fence,
    PeerLost,
    PeerReincarnated,
    Publish,
    ReadSeen,
    Register,
    Renew,
    ReserveSource,
    Sent,
    SourceEvent,
)
from isthmus.ownership.protocol.grants import refusal, same_grant
from isthmus.ownership.protocol.source_ends import lease_over
from isthmus.ownership.protocol.states import LogicalOutcome, PhysicalAccess, SourceHandoff, SourcePhase, TriggerMode

__all__ = ["step"]

Stepped = tuple[SourceHandoff, tuple[Effect, ...]]


def step(state: SourceHandoff, event: SourceEvent) -> Stepped:
    """As `source.step`, for a hand-off that is known and in which the producer writes."""
    match event:
        case Register():
            return _register(state, event)
        case Complete():
            return _complete(state)
        case Publish():
            return _publish(state, event)
        case Sent():
            return _sent(state, event)
        case Confirm():
            return _confirm(state, event)
        case Drained():
            return _drained(state, event.evidence)
        case Expire():
            return _expire(state, event)
        case Abandon():
            return _abandon(state, event)
        case Abort():
            return _give_up(state, event.outcome)
        case Fence():
            return _give_up(state, LogicalOutcome.FAILED)
        case PeerLost() | PeerReincarnated():
            return _peer_gone(state, event)
        case Renew():
            return _renew(state, event)
        case ReadSeen():
            return _refused(state, Refusal.NOT_AUTHORISED)  # nobody reads a source that is written from
        case ReserveSource():
            raise Bug(f"hand-off {state.handoff} reserved twice", field="handoff")


# towards the end


def _register(state: SourceHandoff, event: Register) -> Stepped:
    if (event.holder, event.holder_incarnation) != (state.holder, state.holder_incarnation):
        return _refused(state, Refusal.NOT_AUTHORISED)
    if state.target is not None and not (same_grant(event.grant, state.target) and event.epoch == state.target_epoch):
        return _refused(state, Refusal.NOT_AUTHORISED)  # one registration, once
    if state.outcome in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED):
        return _refused(state, Refusal.ENDED)  # a repetition too: who waits to be written learns that it waits in vain
    if state.target is not None:
        return state, ()
    return replace(state, target=event.grant, target_epoch=event.epoch), ()


def _complete(state: SourceHandoff) -> Stepped:
    resident = MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=False)
    if state.phase is SourcePhase.COMPUTING:
        phase = SourcePhase.HELD if state.grant is None else SourcePhase.PUBLISHED
        return replace(state, phase=phase, computing=False), (resident,)
    if state.phase is SourcePhase.DRAINING and state.computing:
        ended, effects = _drained(state, Evidence.OWN_WORK_ENDED)
        return ended, (*effects, ReplyRefused(reason=Refusal.ENDED))
    if state.outcome in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED) and not state.computing:
        return _refused(state, Refusal.ENDED)  # it had reported that it stopped, and had just finished
    raise _impossible(state, "complete")


def _publish(state: SourceHandoff, event: Publish) -> Stepped:
    early = state.mode is TriggerMode.SEND and state.phase is SourcePhase.COMPUTING and state.grant is None
    if state.phase is not SourcePhase.HELD and not early:
        if state.outcome is not LogicalOutcome.PENDING and state.grant is None:
            return _refused(state, Refusal.ENDED)
        raise _impossible(state, "publish")
    if state.target is None:
        raise Bug(f"hand-off {state.handoff}: nothing is registered to write into", field="target")
    writing = replace(
        state,
        phase=state.phase if early else SourcePhase.PUBLISHED,
        grant=event.grant,
        lease_ends=after(event.now, event.lease),
        sending=True,
    )
    return writing, (BeginUse(blocks=state.blocks, epoch=state.epoch),)


def _sent(state: SourceHandoff, event: Sent) -> Stepped:
    if not state.sending:
        if state.grant is not None and not state.sent and state.outcome is not LogicalOutcome.PENDING:
            return state, ()  # it had reported that it stopped, and had just ended
        raise _impossible(state, "sent")
    if state.phase is SourcePhase.DRAINING:
        return _own_end(state, computing=state.computing, sending=False)
    if not event.ok:
        unsent = replace(state, sending=False)
        given_up, effects = _give_up(unsent, LogicalOutcome.FAILED)
        return given_up, (EndUse(blocks=state.blocks, epoch=state.epoch), *effects)
    if state.computing:
        raise Bug(f"hand-off {state.handoff}: all sent before all is filled", field="computing")
    return replace(state, sending=False, sent=True), (EndUse(blocks=state.blocks, epoch=state.epoch),)


def _confirm(state: SourceHandoff, event: Confirm) -> Stepped:
    """The consumer has verified and installed."""
    is_holder = (event.holder, event.holder_incarnation) == (state.holder, state.holder_incarnation)
    reason = refusal(state, event.grant, event.epoch, is_holder=is_holder)
    if reason is not None:
        return _refused(state, reason)
    yes = ReplyConfirmed(epoch=state.epoch)
    if state.outcome is LogicalOutcome.SUCCEEDED:
        return state, (yes,)
    if state.outcome is not LogicalOutcome.PENDING:
        return _refused(state, Refusal.STALE_EPOCH)
    if state.sent:
        released, effects = _release(state, LogicalOutcome.SUCCEEDED, Evidence.OWN_TRANSFER_ENDED)
        return released, (*effects, yes)
    if state.computing:
        return _refused(state, Refusal.NOT_AUTHORISED)  # nobody can have what is not computed yet
    # All has arrived over there, and our own transfer has not told us yet that it has ended.
    draining = replace(
        state, phase=SourcePhase.DRAINING, outcome=LogicalOutcome.SUCCEEDED, access=PhysicalAccess.DRAINING
    )
    return draining, (yes,)


def _renew(state: SourceHandoff, event: Renew) -> Stepped:
    """The consumer is alive: what is computed, written or verified for longer than a lease is not cut off."""
    is_holder = (event.holder, event.holder_incarnation) == (state.holder, state.holder_incarnation)
    reason = refusal(state, event.grant, event.epoch, is_holder=is_holder)
    if reason is not None:
        return _refused(state, reason)
    if state.lease_ends is None or state.outcome is not LogicalOutcome.PENDING:
        return _refused(state, Refusal.STALE_EPOCH)
    if lease_over(state, event.now):
        ended, effects = _give_up(state, LogicalOutcome.FAILED)
        return ended, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    # I6: the later of the two.
    return replace(state, lease_ends=max(state.lease_ends, after(event.now, event.lease))), ()


# endings


def _give_up(state: SourceHandoff, outcome: LogicalOutcome) -> Stepped:
    if outcome not in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED):
        raise Bug(f"hand-off {state.handoff} given up as {outcome}", field="outcome")
    if state.ended or state.phase is SourcePhase.DRAINING:
        return state, ()
    if not state.computing and not state.sending:
        evidence = Evidence.OWN_TRANSFER_ENDED if state.sent else Evidence.OWN_WORK_ENDED
        return _release(state, outcome, evidence)
    stops: list[Effect] = []
    if state.computing:
        stops.append(StopCompute())
    if state.sending:
        stops.append(StopSend())
    draining = replace(state, phase=SourcePhase.DRAINING, outcome=outcome, access=PhysicalAccess.DRAINING)
    return draining, tuple(stops)


def _drained(state: SourceHandoff, evidence: Evidence) -> Stepped:
    """Our engine, or our transfer, has stopped. What a peer does has no bearing on a source that it cannot reach."""
    if state.phase is not SourcePhase.DRAINING:
        if state.ended:
            return state, ()
        raise _impossible(state, "drained")
    if evidence is Evidence.OWN_WORK_ENDED and state.computing:
        return _own_end(state, computing=False, sending=state.sending)
    if evidence is Evidence.OWN_TRANSFER_ENDED and state.sending:
        return _own_end(state, computing=state.computing, sending=False)
    return state, ()


def _own_end(state: SourceHandoff, *, computing: bool, sending: bool) -> Stepped:
    """One of our two users has ended; with the last of them the blocks are free."""
    ended = replace(state, computing=computing, sending=sending)
    use = EndUse(blocks=state.blocks, epoch=state.epoch)
    if computing or sending:
        return ended, (use,)
    evidence = Evidence.OWN_WORK_ENDED if state.grant is None else Evidence.OWN_TRANSFER_ENDED
    released, effects = _release(ended, state.outcome, evidence)
    return released, (use, *effects)


def _expire(state: SourceHandoff, event: Expire) -> Stepped:
    if not lease_over(state, event.now):
        raise _impossible(state, "expire")
    return _give_up(state, LogicalOutcome.FAILED)


def _abandon(state: SourceHandoff, event: Abandon) -> Stepped:
    if (event.holder, event.holder_incarnation) != (state.holder, state.holder_incarnation):
        return _refused(state, Refusal.NOT_AUTHORISED)
    return _give_up(state, LogicalOutcome.CANCELLED)


def _peer_gone(state: SourceHandoff, event: PeerLost | PeerReincarnated) -> Stepped:
    if event.worker != state.holder:
        return state, ()
    if isinstance(event, PeerReincarnated):
        return (state, ()) if event.incarnation == state.holder_incarnation else _give_up(state, LogicalOutcome.FAILED)
    if event.incarnation != state.holder_incarnation or event.evidence not in DEATH_PROVEN:
        return state, ()
    return _give_up(state, LogicalOutcome.FAILED)


def _release(state: SourceHandoff, outcome: LogicalOutcome, evidence: Evidence) -> Stepped:
    """Free the blocks on `evidence`; what remains is the tombstone."""
    released = replace(
        state,
        phase=SourcePhase.RELEASED,
        outcome=outcome,
        access=PhysicalAccess.DRAINED,
        evidence=evidence,
        blocks=(),
        lease_ends=None,
    )
    return released, (FreeBlocks(blocks=state.blocks, epoch=state.epoch, evidence=evidence), RememberTombstone())


def _refused(state: SourceHandoff, reason: Refusal) -> Stepped:
    return state, (ReplyRefused(reason=reason),)


def _impossible(state: SourceHandoff, event: str) -> Bug:
    return Bug(f"hand-off {state.handoff}: {event} cannot be in {state.phase}", field="phase")
