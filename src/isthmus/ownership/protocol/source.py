"""The producer's side of a hand-off as a pure, total function: `step(state, event) -> (state, effects)`.

`state` is None for a hand-off that is not known, or not any more. A peer's event that cannot be is answered with
`ReplyRefused`; one of our own that cannot be raises `Bug`. Here the consumer reads (pull); `source_push` has the
modes in which the producer writes.

Owns the rules of I1 (the owner's half) and I6; `source_ends` owns how a hand-off ends. Refuses to know
the ledger, the clock and the network.
"""

from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.ownership.protocol import source_push
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.effects import (
    Effect,
    MarkFilling,
    MarkResident,
    OpenGrant,
    Refusal,
    ReplyConfirmed,
    ReplyRefused,
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
from isthmus.ownership.protocol.grants import refusal
from isthmus.ownership.protocol.source_ends import (
    acknowledged,
    drained,
    end_of_lease,
    expire,
    give_up,
    impossible,
    peer_lost,
    peer_reincarnated,
)
from isthmus.ownership.protocol.states import LogicalOutcome, PhysicalAccess, SourceHandoff, SourcePhase, TriggerMode

__all__ = ["step"]

Stepped = tuple[SourceHandoff, tuple[Effect, ...]]


def step(state: SourceHandoff | None, event: SourceEvent) -> tuple[SourceHandoff | None, tuple[Effect, ...]]:
    """What `event` makes of `state`, and what is to be done about it."""
    if state is None:
        return _unknown(event)
    if state.mode is not TriggerMode.PULL:
        return source_push.step(state, event)
    match event:
        case ReadSeen():
            return _read_seen(state, event)
        case Confirm():
            return _confirm(state, event)
        case Renew():
            return _renew(state, event)
        case Complete():
            return _complete(state)
        case Publish():
            return _publish(state, event)
        case Expire():
            return expire(state, event)
        case Drained():
            return drained(state, event.evidence)
        case PeerLost():
            return peer_lost(state, event)
        case PeerReincarnated():
            return peer_reincarnated(state, event)
        case Abandon():
            return _abandon(state, event)
        case Abort():
            return give_up(state, event.outcome)
        case Fence():
            return give_up(state, LogicalOutcome.FAILED)
        case Register():
            return _refused(state, Refusal.NOT_AUTHORISED)  # this one is to be read
        case Sent():
            raise impossible(state, "sent")
        case ReserveSource():
            raise Bug(f"hand-off {state.handoff} reserved twice", field="handoff")


def _unknown(event: SourceEvent) -> tuple[SourceHandoff | None, tuple[Effect, ...]]:
    match event:
        case ReserveSource():
            state = SourceHandoff(
                handoff=event.handoff,
                holder=event.holder,
                holder_incarnation=event.holder_incarnation,
                tenant=event.tenant,
                transport=event.transport,
                sole_tenant=event.sole_tenant,
                blocks=event.blocks,
                num_blocks=len(event.blocks),
                epoch=event.epoch,
                mode=event.mode,
                computing=event.mode is not TriggerMode.PULL,
            )
            return state, (MarkFilling(blocks=event.blocks, epoch=event.epoch),)
        case ReadSeen() | Renew() | Confirm() | Abandon() | Register():
            return None, (ReplyRefused(reason=Refusal.GRANT_UNKNOWN),)
        case _:
            raise Bug(f"{type(event).__name__} for a hand-off that was never reserved", field="handoff")


# the engine's


def _complete(state: SourceHandoff) -> Stepped:
    if state.phase is SourcePhase.COMPUTING:
        held = replace(state, phase=SourcePhase.HELD)
        return held, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=False),)
    if state.phase is SourcePhase.DRAINING and state.grant is None:
        # Given up while the engine was finishing: that it has finished is the evidence we waited for.
        released, effects = drained(state, Evidence.OWN_WORK_ENDED)
        return released, (*effects, ReplyRefused(reason=Refusal.ENDED))
    if state.ended and state.grant is None:
        return state, (ReplyRefused(reason=Refusal.ENDED),)  # it had reported that it stopped, and had just finished
    raise impossible(state, "complete")


def _publish(state: SourceHandoff, event: Publish) -> Stepped:
    if state.phase is SourcePhase.HELD:
        published = replace(
            state,
            phase=SourcePhase.PUBLISHED,
            access=PhysicalAccess.POSSIBLY_EXPOSED,
            grant=event.grant,
            lease_ends=after(event.now, event.lease),
        )
        return published, (OpenGrant(blocks=state.blocks, epoch=state.epoch),)
    if state.ended and state.grant is None:
        return state, (ReplyRefused(reason=Refusal.ENDED),)  # given up between complete and publish
    raise impossible(state, "publish")


# the holder's


def _refused(state: SourceHandoff, reason: Refusal) -> Stepped:
    return state, (ReplyRefused(reason=reason),)


def _overdue(state: SourceHandoff, now: Instant) -> bool:
    return state.lease_ends is not None and now >= state.lease_ends


def _read_seen(state: SourceHandoff, event: ReadSeen) -> Stepped:
    reason = refusal(state, event.grant, event.epoch, is_holder=event.reader == state.holder)
    if reason is not None:
        return _refused(state, reason)
    if not state.grant_open:
        return _refused(state, Refusal.STALE_EPOCH)
    if _overdue(state, event.now):
        ended, effects = end_of_lease(state)
        return ended, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    if state.phase is SourcePhase.EXPOSED:
        return state, ()
    return replace(state, phase=SourcePhase.EXPOSED), ()


def _renew(state: SourceHandoff, event: Renew) -> Stepped:
    is_holder = (event.holder, event.holder_incarnation) == (state.holder, state.holder_incarnation)
    reason = refusal(state, event.grant, event.epoch, is_holder=is_holder)
    if reason is not None:
        return _refused(state, reason)
    if not state.grant_open or state.lease_ends is None:
        return _refused(state, Refusal.STALE_EPOCH)
    if _overdue(state, event.now):
        ended, effects = end_of_lease(state)
        return ended, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    # I6: the later of the two, so that a short or delayed renewal cannot take time away.
    return replace(state, lease_ends=max(state.lease_ends, after(event.now, event.lease))), ()


def _confirm(state: SourceHandoff, event: Confirm) -> Stepped:
    is_holder = (event.holder, event.holder_incarnation) == (state.holder, state.holder_incarnation)
    # I1: yes only to the holder, for this grant at this epoch, while the grant is open: then no block has changed hands
    # since the first byte was read. I9: and it is this yes that lets decode begin.
    reason = refusal(state, event.grant, event.epoch, is_holder=is_holder)
    if reason is not None:
        return _refused(state, reason)
    if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:
        return state, (ReplyConfirmed(epoch=state.epoch),)  # a repeated question gets the same answer
    if state.ended:
        return _refused(state, Refusal.STALE_EPOCH)
    if not state.grant_open or _overdue(state, event.now):
        # Too late for a yes; but the reader has said that it reads no more, and that drains.
        released, effects = acknowledged(state, LogicalOutcome.FAILED)
        return released, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))
    released, effects = acknowledged(state, LogicalOutcome.SUCCEEDED)
    return released, (*effects, ReplyConfirmed(epoch=state.epoch))


def _abandon(state: SourceHandoff, event: Abandon) -> Stepped:
    if (event.holder, event.holder_incarnation) != (state.holder, state.holder_incarnation):
        return _refused(state, Refusal.NOT_AUTHORISED)
    if state.ended or (state.phase is SourcePhase.DRAINING and state.grant is None):
        return state, ()
    if state.grant is None:
        return give_up(state, LogicalOutcome.CANCELLED)
    return acknowledged(state, LogicalOutcome.CANCELLED)
