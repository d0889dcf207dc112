"""What an owner remembers of its hand-offs: the live ones, tombstones of ended ones, and a log for people. All bounded.

A tombstone is a hand-off's last state, so that a repeated message gets its answer from the same `step`.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, HandoffId, Incarnation, WorkerId
from isthmus.core.limits import HANDOFFS_LOGGED_MAX, MOMENTS_PER_HANDOFF_MAX, TOMBSTONES_MAX
from isthmus.core.units import Duration
from isthmus.ownership.capability import digest_of_blocks
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, SourceHandoff, SourcePhase

__all__ = ["Moment", "Record", "Records", "Remembered", "peer_of"]


StateT = TypeVar("StateT", SourceHandoff, DestinationHandoff)
KeyT = TypeVar("KeyT")


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a hand-off's timeline."""

    ms: float
    event: str
    phase: str


Phase = SourcePhase | DestinationPhase


@dataclass(slots=True, kw_only=True)
class Record(Generic[StateT]):
    """One hand-off: its state, when it began, and what happened to it."""

    state: StateT
    began: Instant
    asked_to_stop: bool = False
    noted: list[tuple[Instant, str, Phase]] = field(default_factory=list)
    digested: tuple[tuple[BlockId, ...], bytes] = ((), b"")

    def note(self, now: Instant, event: str) -> None:
        """Add to the timeline. A repetition (a renewal, a further read) replaces the one before it."""
        noted, phase = self.noted, self.state.phase
        if noted and noted[-1][1] == event and noted[-1][2] is phase:
            noted.pop()
        elif len(noted) == MOMENTS_PER_HANDOFF_MAX:
            del noted[0]
        noted.append((now, event, phase))

    def digest_of(self, blocks: tuple[BlockId, ...]) -> bytes:
        """Of the state's blocks, b"" where it has none any more. Taken once for as long as they are the same tuple."""
        if self.digested[0] is not blocks:
            self.digested = (blocks, digest_of_blocks(blocks) if blocks else b"")
        return self.digested[1]

    @property
    def timeline(self) -> list[Moment]:
        """What was noted, made readable: every event notes, and few are ever looked at."""
        return [Moment(ms=Duration(at - self.began).ms, event=event, phase=phase) for at, event, phase in self.noted]

    def age(self, now: Instant) -> Duration:
        return Duration(now - self.began)


class Remembered(Generic[KeyT]):
    """A set that forgets its oldest members: at most `size_max` of them."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._members: OrderedDict[KeyT, None] = OrderedDict()

    def add(self, member: KeyT) -> None:
        self._members[member] = None
        if len(self._members) > self._size_max:
            self._members.popitem(last=False)

    def __contains__(self, member: KeyT) -> bool:
        return member in self._members


class Records(Generic[StateT]):
    """Live hand-offs by id, then `tombstones_max` ended ones, oldest forgotten first."""

    def __init__(self, tombstones_max: int = TOMBSTONES_MAX) -> None:
        self._live: dict[HandoffId, Record[StateT]] = {}
        self._tombstones: OrderedDict[HandoffId, Record[StateT]] = OrderedDict()
        self._of_peer: dict[WorkerId, int] = {}
        self._tombstones_max = tombstones_max
        self._log: deque[Record[StateT]] = deque(maxlen=HANDOFFS_LOGGED_MAX)

    def __len__(self) -> int:
        return len(self._live)

    def of_peer(self, worker: WorkerId) -> int:
        """How many live ones are with this peer."""
        return self._of_peer.get(worker, 0)

    def live(self) -> list[Record[StateT]]:
        """All live ones, as a list that stays as it is while their states change."""
        return list(self._live.values())

    def logged(self) -> Iterator[Record[StateT]]:
        """The last ended ones, latest first."""
        return reversed(self._log)

    def begin(self, handoff: HandoffId, record: Record[StateT]) -> None:
        if self.find(handoff) is not None:
            raise Bug(f"hand-off {handoff} recorded twice", field="handoff")
        self._live[handoff] = record
        peer, _ = peer_of(record.state)
        self._of_peer[peer] = self._of_peer.get(peer, 0) + 1

    def find(self, handoff: HandoffId) -> Record[StateT] | None:
        """Live or ended; None if never known or forgotten."""
        return self._live.get(handoff) or self._tombstones.get(handoff)

    def bury(self, handoff: HandoffId) -> list[StateT]:
        """A live one has ended. Returns the states of those forgotten to make room for its tombstone."""
        record = self._live.pop(handoff)
        peer, _ = peer_of(record.state)
        left = self._of_peer[peer] - 1
        if left:
            self._of_peer[peer] = left
        else:
            del self._of_peer[peer]
        self._log.append(record)
        # The timeline stays with the log only: a tombstone is for answering, and there are many.
        self._tombstones[handoff] = Record(state=record.state, began=record.began)
        forgotten: list[StateT] = []
        while len(self._tombstones) > self._tombstones_max:
            forgotten.append(self._tombstones.popitem(last=False)[1].state)
        return forgotten


def peer_of(state: SourceHandoff | DestinationHandoff) -> tuple[WorkerId, Incarnation]:
    """The other side, and which life of it."""
    if isinstance(state, SourceHandoff):
        return state.holder, state.holder_incarnation
    return state.producer, state.producer_incarnation
