"""The consumer's side where the producer writes (push, and send): what differs from reading.

    RESERVED ─► EXPOSED ─► RECEIVING ─► CONVERTING ─► VERIFYING ─► INSTALLED
                   └───────────┴──► lease over, or given up ─► ABORTING ─► RELEASED, or IN_DOUBT ─► RELEASED

Owns I2 for what a peer writes: a write counts only under a part's own grant, at its own epoch, before that part has
been said to be complete; and what was ever exposed is not used again before its writer is shown to have stopped. We own
the epoch that is written, so nobody is asked before the commit: that every byte is the producer's, and no more will
come, is known by its word and the transport's evidence, and checked by digest.
"""

from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.core.ids import Epoch, GrantId
from isthmus.ownership.protocol.destination_ends import give_up, impossible, install, settle, too_late
from isthmus.ownership.protocol.drain import Evidence, drains_pushed
from isthmus.ownership.protocol.effects import CloseGrant, Effect, MarkFilling, OpenGrant, Refusal, ReplyRefused
from isthmus.ownership.protocol.events import (
    Arrived,
    Confirmed,
    ConfirmRefused,
    Expire,
    Expose,
    Install,
    Submit,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.grants import same_grant
from isthmus.ownership.protocol.parts import peer_active, phase_of, some_peer_active, with_part
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    Part,
    PartStage,
    PhysicalAccess,
    TriggerMode,
)

__all__ = ["closing", "lease_over", "of_pull", "step"]

Stepped = tuple[DestinationHandoff, tuple[Effect, ...]]


def step(state: DestinationHandoff, event: Expose | WriteSeen | Written | Install | Expire) -> Stepped:
    """As `destination.step`, for the events that are of push and send alone."""
    if state.mode is TriggerMode.PULL:
        if isinstance(event, WriteSeen | Written):
            return _refused(state, Refusal.NOT_AUTHORISED)  # nobody writes what is read
        raise impossible(state, type(event).__name__)
    match event:
        case WriteSeen():
            return _write_seen(state, event)
        case Written():
            return _written(state, event)
        case Expose():
            return _expose(state, event)
        case Install():
            return _install(state)
        case Expire():
            if not lease_over(state, event.now):
                raise impossible(state, "expire")
            return _end_of_lease(state)


def of_pull(state: DestinationHandoff, event: Submit | Arrived | Confirmed | ConfirmRefused) -> Stepped:
    """What is of pull alone: nothing is read here, and no owner is asked."""
    if isinstance(event, Confirmed | ConfirmRefused):
        return _refused(state, Refusal.NOT_AUTHORISED)
    raise impossible(state, type(event).__name__)


def closing(before: DestinationHandoff, stepped: Stepped) -> Stepped:
    """I4: whatever ends a grant to write, it is closed here, once."""
    state, effects = stepped
    if before.grant_open and not state.grant_open:
        return state, (CloseGrant(blocks=before.blocks, epoch=before.epoch), *effects)
    return stepped


def lease_over(state: DestinationHandoff, now: Instant) -> bool:
    """Whether the reaper has something to do: the lease has run out and the producer may still write."""
    return state.lease_ends is not None and now >= state.lease_ends and some_peer_active(state)


def _expose(state: DestinationHandoff, event: Expose) -> Stepped:
    if too_late(state):
        return _refused(state, Refusal.ENDED)
    if state.phase is not DestinationPhase.RESERVED:
        raise impossible(state, "expose")
    if len(event.grants) != len(state.parts):
        raise Bug(f"hand-off {state.handoff}: {len(event.grants)} grants, {len(state.parts)} parts", field="grants")
    exposed = replace(
        state,
        phase=DestinationPhase.EXPOSED,
        access=PhysicalAccess.POSSIBLY_EXPOSED,
        parts=tuple(Part(grant=grant, epoch=state.epoch) for grant in event.grants),
        lease_ends=after(event.now, event.lease),
    )
    blocks, epoch = state.blocks, state.epoch
    return exposed, (MarkFilling(blocks=blocks, epoch=epoch), OpenGrant(blocks=blocks, epoch=epoch))


def _write_seen(state: DestinationHandoff, event: WriteSeen) -> Stepped:
    reason = _refusal(state, event.part, event.grant, event.epoch)
    if reason is None and event.writer != state.producer:
        reason = Refusal.NOT_AUTHORISED
    if reason is not None:
        return _refused(state, reason)
    if not state.grant_open or not peer_active(state, state.parts[event.part]):
        return _refused(state, Refusal.STALE_EPOCH)  # I2: nothing is written any more
    if lease_over(state, event.now):
        return _too_late_now(state)
    # I6: the later of the two. Writing is a sign of life, so a push needs no other renewal.
    lease_ends = max(state.lease_ends or Instant(0), after(event.now, event.lease))
    parts = with_part(state, event.part, PartStage.RECEIVING)
    return replace(state, parts=parts, phase=DestinationPhase.RECEIVING, lease_ends=lease_ends), ()


def _written(state: DestinationHandoff, event: Written) -> Stepped:
    reason = _refusal(state, event.part, event.grant, event.epoch)
    if reason is None and (event.writer, event.writer_incarnation) != (state.producer, state.producer_incarnation):
        reason = Refusal.NOT_AUTHORISED
    if reason is not None:
        return _refused(state, reason)
    if not drains_pushed(state.transport, event.evidence):
        raise Bug(f"{event.evidence} over {state.transport} does not end a write", field="evidence")
    active = peer_active(state, state.parts[event.part])
    if not state.grant_open:
        if active:  # given up meanwhile: that it writes no more is the evidence we wait for
            state = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
            settled, effects = settle(state, event.evidence)
            return settled, (*effects, ReplyRefused(reason=Refusal.ENDED))
        return (state, ()) if not too_late(state) else _refused(state, Refusal.ENDED)  # a repeated word
    if not active:
        return state, ()
    if event.tenant != state.tenant or lease_over(state, event.now):  # I7, and a lease is a promise
        state = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
        reason = Refusal.NOT_AUTHORISED if event.tenant != state.tenant else Refusal.STALE_EPOCH
        given_up, effects = give_up(state, LogicalOutcome.FAILED)
        return given_up, (*effects, ReplyRefused(reason=reason))
    parts = with_part(state, event.part, PartStage.CONVERTING)
    return replace(state, parts=parts, phase=phase_of(parts)), ()


def _install(state: DestinationHandoff) -> Stepped:
    if state.outcome is LogicalOutcome.SUCCEEDED:
        return state, ()
    if too_late(state):
        return _refused(state, Refusal.ENDED)
    if not state.prepared:
        raise Bug(f"hand-off {state.handoff}: to be installed before its bytes were verified", field="parts")  # I9
    return install(state)


def _end_of_lease(state: DestinationHandoff) -> Stepped:
    """Expiry ends the grant. The blocks wait in quarantine until the writer is shown to have stopped."""
    over = replace(state, lease_ends=None)
    if state.outcome is LogicalOutcome.PENDING:
        return give_up(over, LogicalOutcome.FAILED)
    return settle(over, Evidence.SILENCE)


def _too_late_now(state: DestinationHandoff) -> Stepped:
    ended, effects = _end_of_lease(state)
    return ended, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))


def _refusal(state: DestinationHandoff, index: int, grant: GrantId, epoch: Epoch) -> Refusal | None:
    """Why a message under a grant is not to be believed; None when it is of this part's own grant."""
    own = state.parts[index].grant if 0 <= index < len(state.parts) else None
    if own is None or not same_grant(grant, own):
        return Refusal.GRANT_UNKNOWN
    return None if epoch == state.epoch else Refusal.STALE_EPOCH


def _refused(state: DestinationHandoff, reason: Refusal) -> Stepped:
    return state, (ReplyRefused(reason=reason),)
