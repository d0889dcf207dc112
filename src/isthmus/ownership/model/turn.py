"""One atomic move of one request: a view under change, production's `step`, and its effects carried out.

A move sees one request and the two workers it is between. Owns the checks of I1, I6, I7, I9 and I10 at the moment at
which they could break. `memory` has what moves do to bytes, `tidying` how a move ends.
"""

from typing import Final, NamedTuple

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.accounts import execute, owned, staged, unpin
from isthmus.ownership.model.records import (
    NOBODY,
    Part,
    Request,
    Worker,
)
from isthmus.ownership.model.rules import Steps
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.drain import TransportKind
from isthmus.ownership.protocol.effects import Effect, FreeBlocks, Refusal, ReplyConfirmed, ReplyRefused
from isthmus.ownership.protocol.events import (
    DestinationEvent,
    Renew,
    SourceEvent,
)
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    SourceHandoff,
    TriggerMode,
)

__all__ = [
    "CONSUMER",
    "GRANT",
    "HANDOFF",
    "LEASE",
    "LIFE",
    "OWN_BLOCKS",
    "OWN_EPOCH",
    "PRODUCER",
    "Turn",
    "View",
    "now",
    "tenant",
]

# In its own frame every hand-off has the same names: the protocol compares names only for equality.
HANDOFF: Final = HandoffId("own")
GRANT: Final = GrantId("own")
OWN_EPOCH: Final = Epoch(1)
PRODUCER, CONSUMER = WorkerId("producer"), WorkerId("consumer")
LIFE: Final = Incarnation("own")
OWN_BLOCKS: Final = (BlockId(0),)
LEASE: Final = Duration(1)


def now(over: bool) -> Instant:
    """Time, as far as a lease can tell: 0 while it runs, 1 once it is over."""
    return Instant(1 if over else 0)


def tenant(index: int) -> TenantId:
    return TenantId(f"tenant-{index}")


class View(NamedTuple):
    """What a move may see and change."""

    request: Request
    producer: Worker
    consumer: Worker


class Turn:
    """A view under change."""

    def __init__(self, scope: Scope, steps: Steps, index: int, view: View, marks: set[str]) -> None:
        self.scope = scope
        self.steps = steps
        self.index = index
        self.request, self.producer, self.consumer = view
        self.marks = marks
        self.refusal: Refusal | None = None

    # what there is

    @property
    def pulls(self) -> bool:
        return self.scope.mode is TriggerMode.PULL

    def claim(self, part: int = 0) -> int:
        return self.index * self.scope.parts + part

    def part(self, part: int) -> Part:
        return self.request.parts[part]

    def source_state(self, part: int) -> SourceHandoff | None:
        return self.steps.sources[self.request.parts[part].source]

    def destination_state(self) -> DestinationHandoff | None:
        return self.steps.destinations[self.request.destination]

    def destination_over(self) -> bool:
        """The consumer's side has ended, or died with its worker."""
        state = self.destination_state()
        return state is None or state.ended

    def source_over(self, part: int) -> bool:
        """The producer's side has ended, or died with its worker, or will never begin."""
        state = self.source_state(part)
        return self.request.parts[part].barred if state is None else state.ended

    def change_part(self, part: int, **changes: object) -> None:
        parts = self.request.parts
        changed = parts[part]._replace(**changes)  # type: ignore[arg-type]
        self.request = self.request._replace(parts=(*parts[:part], changed, *parts[part + 1 :]))

    def send(self, part: int, message: int) -> None:
        self.change_part(part, sent=self.request.parts[part].sent | message)

    # the protocol

    def source(self, part: int, event: SourceEvent) -> None:
        """Production's step at the producer, and its effects."""
        before = self.request.parts[part].source
        after, effects = self.steps.source(before, event)
        if after != before:
            self.change_part(part, source=after)
        self.refusal = None
        for effect in effects:
            if isinstance(effect, ReplyRefused):
                self.refusal = effect.reason
            elif isinstance(effect, ReplyConfirmed):
                self._committed(part)
            else:
                self.producer = self._carried_out(self.producer, self.claim(part), effect)
                if isinstance(effect, FreeBlocks) and self.request.parts[part].prefix:
                    self.producer = unpin(self.producer)
        if isinstance(event, Renew):
            self._check_renewal(before, after)

    def destination(self, event: DestinationEvent) -> None:
        """Production's step at the consumer, and its effects."""
        before = self.request.destination
        after, effects = self.steps.destination(before, event)
        self.refusal = None
        for effect in effects:
            if isinstance(effect, ReplyRefused):
                self.refusal = effect.reason
            else:
                self.consumer = self._carried_out(self.consumer, self.claim(), effect)
        if after != before:
            self.request = self.request._replace(destination=after)
            self._moved(self.steps.destinations[before], self.steps.destinations[after])

    def _carried_out(self, worker: Worker, claim: int, effect: Effect) -> Worker:
        changed = execute(worker, claim, effect)
        index = owned(worker, claim)
        if (
            index != NOBODY
            and owned(changed, claim) == NOBODY
            and worker.slots[index].account == BlockState.QUARANTINED
        ):
            self.marks.add("a quarantine was released")
        elif index != NOBODY and changed.slots[index].account == BlockState.QUARANTINED:
            self.marks.add("blocks were quarantined")
        return changed

    def _committed(self, part: int) -> None:
        state = self.source_state(part)
        if state is None or state.outcome is not LogicalOutcome.SUCCEEDED:
            raise Violation("I9", "the owner says yes to a hand-off that has not succeeded")
        self.change_part(part, committed=True)

    def _check_renewal(self, before: int, after: int) -> None:
        was, is_ = self.steps.sources[before], self.steps.sources[after]
        if was is None or is_ is None or was.lease_ends is None or is_.lease_ends is None:
            return
        if is_.lease_ends < was.lease_ends:
            raise Violation("I6", f"a renewal moved the lease's end from {was.lease_ends} to {is_.lease_ends}")

    def _moved(self, before: DestinationHandoff | None, after: DestinationHandoff | None) -> None:
        """The consumer's side has changed: has it been installed, and rightly? has it been given up?"""
        if after is None:
            return
        if after.phase is DestinationPhase.INSTALLED and (before is None or before.phase is not after.phase):
            self._check_install(after)
        if after.outcome in (LogicalOutcome.FAILED, LogicalOutcome.CANCELLED) and (after.ended or not self.pulls):
            # The owners are told. Under pull that says that nobody reads any more, so that it waits until nobody does.
            self.request = self.request._replace(abandoned=True)

    def _check_install(self, state: DestinationHandoff) -> None:
        self.marks.add("installed")
        index = owned(self.consumer, self.claim())
        if index == NOBODY:
            raise Violation("I3", "installed without blocks")
        if self.pulls and any(not part.committed for part in self.request.parts):
            raise Violation("I9", "installed without the owner's yes")
        if state.tenant != tenant(self.scope.tenant(self.index)):
            raise Violation("I7", "installed across tenants")
        wanted = self.whole()
        if self.consumer.slots[index].stamps != wanted:
            raise Violation("I1", f"installed {self.consumer.slots[index].stamps} where {wanted} is right")

    def cut_by_fence(self) -> bool:
        """Whether a peer's copies end with its fencing: physics, not what the drain table says of it. Where each
        process has mapped the memory, closing a socket ends nothing.
        """
        return self.scope.transport is not TransportKind.SHM

    def check_staging(self) -> None:
        """I10: what is staged at once fits the budget."""
        budget, held = self.scope.staging, staged(self.consumer)
        if budget is not None and held > budget:
            raise Violation("I10", f"{held} requests are staged, and there is room for {budget}")

    # what a block holds

    def whole(self) -> tuple[int, int]:
        """What this request's block holds when all parts have arrived: each part has its share of the two chunks."""
        last = self.scope.parts - 1
        return (self.claim(0) + 1, self.claim(last) + 1)

    @property
    def stranger(self) -> int:
        """A stamp that is nobody's in particular."""
        return -1 - self.scope.tenant(self.index)
