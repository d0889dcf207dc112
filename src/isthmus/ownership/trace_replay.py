"""One life, replayed: every event through production's own `step`, every effect through a fresh `Ledger`.

The fresh ledger chooses blocks and epochs of its own; those that the journal names are kept beside it, and held to the
rule that matters of them: none is assigned to two hand-offs at a time. An event that `step` cannot explain, an effect
that the ledger refuses, and a sum that differs at the end are faults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec
from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.journal import Entry
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import execute
from isthmus.ownership.protocol import destination, source
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence, drains_destination, drains_source
from isthmus.ownership.protocol.effects import Effect, QuarantineBlocks, ReplyConfirmed
from isthmus.ownership.protocol.events import (
    Arrived,
    Confirm,
    Confirmed,
    DestinationEvent,
    PeerLost,
    ReserveDestination,
    ReserveSource,
    SourceEvent,
)
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, SourceHandoff
from isthmus.ownership.side import Side
from isthmus.ownership.trace_files import UNREADABLE, Life

__all__ = ["Passed", "Replayed", "replay"]

State = SourceHandoff | DestinationHandoff
Event = SourceEvent | DestinationEvent

_TYPES: Mapping[Side, Mapping[str, type[Any]]] = {
    Side.PRODUCER: {kind.__name__: kind for kind in get_args(SourceEvent)},
    Side.CONSUMER: {kind.__name__: kind for kind in get_args(DestinationEvent)},
}


@dataclass(slots=True, kw_only=True)
class Passed:
    """What one hand-off went through in one life. `confirms`: of each yes, the epoch and when. `peer_lost`: when this
    side was told that the other is gone, by evidence that drains what it could touch.
    """

    handoff: HandoffId
    peer: WorkerId
    peer_incarnation: Incarnation
    tenant: TenantId
    began: Instant
    state: State
    ended: Instant | None = None
    peer_lost: Instant | None = None
    confirms: list[tuple[Epoch, Instant]] = field(default_factory=list)
    arrived: Instant | None = None
    installed: Instant | None = None


@dataclass(slots=True, kw_only=True)
class Replayed:
    """One life after its replay."""

    life: Life
    handoffs: dict[HandoffId, Passed] = field(default_factory=dict)
    events: int = 0
    unexplained_before_start: int = 0
    quarantines: int = 0
    quarantined_max: int = 0
    faults: list[str] = field(default_factory=list)

    def orphaned(self, died: Mapping[Incarnation, Instant]) -> list[tuple[Passed, Instant]]:
        """Hand-offs that ended after their peer had died, and when it did. What was installed by then is decode's."""
        found = [(passed, died.get(passed.peer_incarnation)) for passed in self.handoffs.values()]
        return [
            (passed, at)
            for passed, at in found
            if at is not None
            and passed.began <= at
            and (passed.ended is not None and passed.ended > at)
            and (passed.installed is None or passed.installed > at)
        ]

    @property
    def open(self) -> list[Passed]:
        """Hand-offs that had not ended when the journal did."""
        return [passed for passed in self.handoffs.values() if passed.ended is None]


def replay(life: Life) -> Replayed:
    """Replay a life; the first event that cannot be explained ends it."""
    replayed = Replayed(life=life, faults=list(life.faults))
    replayer = _Replayer(life, replayed)
    for entry in life.entries:
        replayed.events += 1
        try:
            replayer.take(entry)
        except (Bug, *UNREADABLE) as error:
            replayed.faults.append(f"event {replayed.events}, {entry.event} of {entry.handoff[:8]}: {error}")
            return replayed
    replayer.finish()
    return replayed


def _observe(at: Instant, event: Event, effects: tuple[Effect, ...], passed: Passed) -> None:
    """Keep what the other side's journal will be asked about."""
    match event:
        case Confirm() if any(isinstance(effect, ReplyConfirmed) for effect in effects):
            passed.confirms.append((event.epoch, at))
        case PeerLost(evidence=evidence, worker=worker, incarnation=life) if _drains(passed.state, evidence):
            if (worker, life) == (passed.peer, passed.peer_incarnation) and passed.peer_lost is None:
                passed.peer_lost = at
        case Arrived():
            passed.arrived = at
        case _:
            pass
    if passed.state.phase is DestinationPhase.INSTALLED and passed.installed is None:
        passed.installed = at
        if isinstance(event, Confirmed):
            passed.confirms.append((event.epoch, at))


def _drains(state: State, evidence: Evidence) -> bool:
    drains = drains_source if isinstance(state, SourceHandoff) else drains_destination
    return evidence in DEATH_PROVEN and drains(state.transport, evidence)


class _Replayer:
    """The shell of an owner, without anything that acts."""

    def __init__(self, life: Life, replayed: Replayed) -> None:
        header = life.header
        self._life = life
        self._replayed = replayed
        self._types = _TYPES[header.side]
        self._step: Any = source.step if header.side is Side.PRODUCER else destination.step
        self._ledger = Ledger(
            num_blocks=header.num_blocks, block_bytes=header.block_bytes, staging_bytes=header.staging_bytes
        )
        self._assigned: dict[Epoch, Assignment] = {}
        self._holders: dict[BlockId, HandoffId] = {}
        self._last_at = header.began

    def take(self, entry: Entry) -> None:
        """One event. Raises Bug where it cannot be."""
        kind = self._types.get(entry.event)
        if kind is None:
            raise Bug(f"no such event on the side of a {self._life.header.side}")
        event = msgspec.msgpack.decode(entry.body, type=kind)
        if entry.at < self._last_at:
            raise Bug("its instant lies before the event's before it")
        self._last_at = entry.at
        passed = self._replayed.handoffs.get(entry.handoff)
        if isinstance(event, ReserveSource | ReserveDestination):
            self._reserve(entry, event)
        elif passed is not None:
            self._apply(entry, event, passed)
        elif self._life.whole_from_start:
            raise Bug("for a hand-off that was never reserved")
        else:
            self._replayed.unexplained_before_start += 1

    def _reserve(self, entry: Entry, event: ReserveSource | ReserveDestination) -> None:
        if entry.handoff in self._replayed.handoffs or event.handoff != entry.handoff:
            raise Bug("a hand-off's id is used once")
        if len(set(event.blocks)) != len(event.blocks):
            raise Bug("a block is assigned to it twice")
        for block in event.blocks:
            holder = self._holders.get(block)
            if holder is not None:
                raise Bug(f"block {block} is assigned already, to {holder[:8]}")
        if event.epoch in self._assigned:
            raise Bug(f"epoch {event.epoch} is in use already")
        staging = event.staging_bytes if isinstance(event, ReserveDestination) else 0
        fresh = self._ledger.try_reserve(
            entry.handoff, tenant=event.tenant, blocks=len(event.blocks), staging_bytes=staging
        )
        if fresh is None:
            raise Bug(f"{len(event.blocks)} blocks and {staging} staging bytes do not fit")  # I10
        self._assigned[event.epoch] = fresh
        self._holders.update(dict.fromkeys(event.blocks, entry.handoff))
        state, effects = self._step(None, event)
        if isinstance(event, ReserveSource):
            peer, peer_incarnation = event.holder, event.holder_incarnation
        else:
            peer, peer_incarnation = event.producer, event.producer_incarnation
        self._replayed.handoffs[entry.handoff] = Passed(
            handoff=entry.handoff,
            peer=peer,
            peer_incarnation=peer_incarnation,
            tenant=event.tenant,
            began=entry.at,
            state=state,
        )
        self._execute(effects)

    def _apply(self, entry: Entry, event: Event, passed: Passed) -> None:
        before = passed.state
        state, effects = self._step(before, event)
        passed.state = state
        self._execute(effects)
        _observe(entry.at, event, effects, passed)
        if state.ended and not before.ended:
            passed.ended = entry.at
            for block in before.blocks:
                del self._holders[block]
            del self._assigned[before.epoch]

    def _execute(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            epoch = getattr(effect, "epoch", None)
            if epoch is None or isinstance(effect, ReplyConfirmed):
                continue
            fresh = self._assigned.get(epoch)
            if fresh is None:
                raise Bug(f"{type(effect).__name__} under epoch {epoch}, which nothing is assigned under")
            own: dict[str, Any] = {"epoch": fresh.epoch}
            if hasattr(effect, "blocks"):
                own["blocks"] = fresh.blocks
            execute(self._ledger, replace(effect, **own))
            if isinstance(effect, QuarantineBlocks):
                self._replayed.quarantines += 1
        self._replayed.quarantined_max = self._ledger.held().quarantined_max

    def finish(self) -> None:
        """The end of the journal. A clean end has a sum to be compared; and what held nothing has nothing open."""
        self._ledger.check_in_full()
        end, held = self._life.end, self._ledger.held().blocks
        if end is None or not self._life.whole_from_start or self._life.gaps:
            return
        if held != end.blocks_held:
            self._replayed.faults.append(f"{end.blocks_held} blocks held at the clean end, {held} by the replay")
        elif self._replayed.open and not held:
            self._replayed.faults.append(f"{len(self._replayed.open)} hand-offs open at a clean end that holds nothing")
