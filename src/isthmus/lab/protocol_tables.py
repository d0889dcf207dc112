"""The protocol's transition tables, found by running it: every state that a hand-off can come to, times every event.

States are all that are reached from a reservation by the events below, one part each; an event that is a `Bug` there
cannot be and has no row, and neither has one that changes nothing and answers nothing. Knows nothing of Markdown.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol import destination, events, source
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import Effect, FreeBlocks, MarkResident, Refusal, ReplyConfirmed, ReplyRefused
from isthmus.ownership.protocol.states import DestinationPhase, LogicalOutcome, SourcePhase, TriggerMode

__all__ = ["Transition", "transitions_of_consumer", "transitions_of_producer"]

_HANDOFF, _PEER, _LIFE, _NEXT_LIFE = HandoffId("a" * 32), WorkerId("peer"), Incarnation("b" * 32), Incarnation("e" * 32)
_GRANT, _OTHER_GRANT, _EPOCH, _OTHER_EPOCH = GrantId("c" * 64), GrantId("d" * 64), Epoch(7), Epoch(6)
_TENANT, _OTHER_TENANT = TenantId("one"), TenantId("other")
_BLOCKS, _LEASE = (BlockId(0),), Duration.of_seconds(2)
_EARLY = Instant(1_000)
_LATE = after(_EARLY, _LEASE * 9)


class Transition(NamedTuple):
    """What some events do in some phases: where they lead ("" is where it was) and what they ask for."""

    events: tuple[str, ...]
    phases: tuple[str, ...]
    leads_to: str
    effects: tuple[str, ...]


def transitions_of_producer(mode: TriggerMode) -> list[Transition]:
    """Of `source.step`. Over TCP; within one tenant and across tenants."""
    starts = [
        events.ReserveSource(
            handoff=_HANDOFF,
            holder=_PEER,
            holder_incarnation=_LIFE,
            tenant=_TENANT,
            transport=TransportKind.TCP,
            sole_tenant=sole_tenant,
            blocks=_BLOCKS,
            epoch=_EPOCH,
            mode=mode,
        )
        for sole_tenant in (True, False)
    ]
    return _explored(source.step, starts, _of_producer() | _of_both())


def transitions_of_consumer(mode: TriggerMode) -> list[Transition]:
    """Of `destination.step`, over TCP, of one part."""
    start = events.ReserveDestination(
        handoff=_HANDOFF,
        producer=_PEER,
        producer_incarnation=_LIFE,
        tenant=_TENANT,
        transport=TransportKind.TCP,
        blocks=_BLOCKS,
        staging_bytes=1,
        epoch=_EPOCH,
        mode=mode,
    )
    return _explored(destination.step, [start], _of_consumer() | _of_both())


def _of_both() -> dict[str, Any]:
    died = events.PeerLost(worker=_PEER, incarnation=_LIFE, evidence=Evidence.FENCED_AND_CLOSED)
    return {
        "Abort": events.Abort(outcome=LogicalOutcome.FAILED),
        "Fence": events.Fence(),
        "Drained: own work": events.Drained(evidence=Evidence.OWN_WORK_ENDED),
        "Drained: own transfer": events.Drained(evidence=Evidence.OWN_TRANSFER_ENDED),
        "PeerLost: fenced and closed": died,
        "PeerReincarnated": events.PeerReincarnated(worker=_PEER, incarnation=_NEXT_LIFE),
        "Expire": events.Expire(now=_LATE),
    }


def _of_producer() -> dict[str, Any]:
    said: dict[str, Any] = {"holder": _PEER, "holder_incarnation": _LIFE}
    under: dict[str, Any] = {"grant": _GRANT, "epoch": _EPOCH} | said
    other = under | {"grant": _OTHER_GRANT}
    reading: dict[str, Any] = {"grant": _GRANT, "epoch": _EPOCH, "reader": _PEER}
    return {
        "Register": events.Register(grant=_OTHER_GRANT, epoch=_EPOCH, **said),
        "Complete": events.Complete(),
        "Publish": events.Publish(now=_EARLY, grant=_GRANT, lease=_LEASE),
        "Sent: all": events.Sent(ok=True),
        "Sent: not all": events.Sent(ok=False),
        "ReadSeen": events.ReadSeen(now=_EARLY, **reading),
        "ReadSeen: late": events.ReadSeen(now=_LATE, **reading),
        "Renew": events.Renew(now=_EARLY, lease=_LEASE * 3, **under),
        "Renew: late": events.Renew(now=_LATE, lease=_LEASE, **under),
        "Confirm": events.Confirm(now=_EARLY, **under),
        "Confirm: late": events.Confirm(now=_LATE, **under),
        "Confirm: another grant": events.Confirm(now=_EARLY, **other),
        "Confirm: another epoch": events.Confirm(now=_EARLY, **(under | {"epoch": _OTHER_EPOCH})),
        "Confirm: another life": events.Confirm(now=_EARLY, **(under | {"holder_incarnation": _NEXT_LIFE})),
        "Abandon": events.Abandon(**said),
    }


def _of_consumer() -> dict[str, Any]:
    under: dict[str, Any] = {"now": _EARLY, "grant": _GRANT, "epoch": _EPOCH, "writer": _PEER}
    words: dict[str, Any] = {
        "writer_incarnation": _LIFE,
        "tenant": _TENANT,
        "evidence": Evidence.OWN_TRANSFER_ENDED,
    }
    return {
        "Submit": events.Submit(tenant=_TENANT, grant=_GRANT, epoch=_EPOCH),
        "Submit: another tenant": events.Submit(tenant=_OTHER_TENANT, grant=_GRANT, epoch=_EPOCH),
        "Expose": events.Expose(now=_EARLY, grants=(_GRANT,), lease=_LEASE),
        "WriteSeen": events.WriteSeen(lease=_LEASE, **under),
        "WriteSeen: late": events.WriteSeen(lease=_LEASE, **(under | {"now": _LATE})),
        "WriteSeen: another grant": events.WriteSeen(lease=_LEASE, **(under | {"grant": _OTHER_GRANT})),
        "Written": events.Written(**under, **words),
        "Written: late": events.Written(**(under | {"now": _LATE}), **words),
        "Written: another tenant": events.Written(**under, **(words | {"tenant": _OTHER_TENANT})),
        "Arrived": events.Arrived(),
        "ConvertDone": events.ConvertDone(),
        "VerifyOk": events.VerifyOk(),
        "VerifyBad": events.VerifyBad(),
        "Confirmed": events.Confirmed(epoch=_EPOCH),
        "Confirmed: another epoch": events.Confirmed(epoch=_OTHER_EPOCH),
        "ConfirmRefused": events.ConfirmRefused(),
        "Install": events.Install(),
        "Doubt": events.Doubt(),
        "Finish": events.Finish(),
    }


_UNKNOWN = (f"answer: no ({Refusal.GRANT_UNKNOWN})",)
"""Before there is a grant, whatever is said under one is answered so: no row says it."""

_Step = Callable[[Any, Any], tuple[Any, tuple[Effect, ...]]]


def _explored(step: _Step, starts: Iterable[Any], vocabulary: Mapping[str, Any]) -> list[Transition]:
    """By event and outcome; events that do the same everywhere share a row."""
    found: dict[tuple[str, str, tuple[str, ...]], dict[str, None]] = {}
    reached: dict[Any, None] = {}
    for start in starts:
        state, effects = step(None, start)
        reached[state] = None
        found[type(start).__name__, _name(state), _said(effects)] = {"": None}
    for state in (waiting := list(reached)):  # grows while it is gone through
        for event_name, event in vocabulary.items():
            try:
                after_, effects = step(state, event)
            except Bug:
                continue
            if after_ not in reached:
                reached[after_] = None
                waiting.append(after_)
            said = _said(effects)
            unknown_yet = said == _UNKNOWN and "another grant" not in event_name
            if (after_ != state or effects) and not unknown_yet:
                leads_to = "" if _name(after_) == _name(state) else _name(after_)
                found.setdefault((event_name, leads_to, said), {})[_name(state)] = None
    shared: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[str]] = {}
    for (event_name, leads_to, said), phases in found.items():
        shared.setdefault((_in_order(phases), leads_to, said), []).append(event_name)
    order = {name: index for index, name in enumerate(vocabulary)}
    rows = [
        Transition(tuple(sorted(names, key=lambda name: order.get(name, -1))), phases, leads_to, said)
        for (phases, leads_to, said), names in shared.items()
    ]
    return sorted(rows, key=lambda row: order.get(row.events[0], -1))


def _in_order(phases: Iterable[str]) -> tuple[str, ...]:
    known = [phase.name for phase in (*SourcePhase, *DestinationPhase)]
    return tuple(sorted(phases, key=lambda phase: known.index(phase) if phase else -1))


def _name(state: Any) -> str:
    return str(state.phase.value).upper()


def _said(effects: Iterable[Effect]) -> tuple[str, ...]:
    return tuple(_word(effect) for effect in effects)


def _word(effect: Effect) -> str:
    match effect:
        case FreeBlocks():
            return f"FreeBlocks({effect.evidence})"
        case MarkResident():
            return "MarkResident(in use)" if effect.in_use else "MarkResident"
        case ReplyConfirmed():
            return "answer: yes"
        case ReplyRefused():
            return f"answer: no ({effect.reason})"
        case _:
            return type(effect).__name__
