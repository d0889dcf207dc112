"""One atomic move of one request: what it changes, and what it must not.

A move sees one request and the two workers it is between. It drives production's `step`, carries out the effects, and
in the end is tidied: what can never matter again is forgotten, so that it does not tell states apart. Owns the checks
of I1, I2, I6, I7 and I9 at the moment at which they could break, and I3 and I4 after each move.
"""

from typing import Final, NamedTuple

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.accounts import execute, owned, staged, tidy, with_slot
from isthmus.ownership.model.records import (
    ABSENT,
    CONFIRM,
    EMPTY,
    IDLE,
    MINE,
    NO,
    NOBODY,
    OFFER,
    OTHER,
    WRITTEN,
    YES,
    Engine,
    Part,
    Request,
    Stage,
    Worker,
)
from isthmus.ownership.model.rules import Steps
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import Effect, Refusal, ReplyConfirmed, ReplyRefused
from isthmus.ownership.protocol.events import (
    Abort,
    Confirmed,
    ConfirmRefused,
    DestinationEvent,
    Drained,
    PeerLost,
    Renew,
    SourceEvent,
)
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    PartStage,
    SourceHandoff,
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
    "forgotten",
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


_LATE: Final = (
    Confirmed(epoch=OWN_EPOCH),
    ConfirmRefused(),
    PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED),
    Drained(evidence=Evidence.OWN_TRANSFER_ENDED),
    Abort(outcome=LogicalOutcome.CANCELLED),
)
"""What may still come to a consumer's side that has ended."""


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

    def claim(self, part: int = 0) -> int:
        return self.index * self.scope.parts + part

    def part(self, part: int) -> Part:
        return self.request.parts[part]

    def source_state(self, part: int) -> SourceHandoff | None:
        return self.steps.sources[self.request.parts[part].source]

    def destination_state(self) -> DestinationHandoff | None:
        return self.steps.destinations[self.request.destination]

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
        if index != NOBODY and owned(changed, claim) == NOBODY and worker.slots[index].account == BlockState.QUARANTINED:
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
        """The consumer's side has changed: has it been installed, and rightly? has it ended?"""
        if after is None:
            return
        if after.phase is DestinationPhase.INSTALLED and (before is None or before.phase is not after.phase):
            self._check_install(after)
        if after.ended and after.outcome is not LogicalOutcome.SUCCEEDED:
            self.request = self.request._replace(abandoned=True)  # and the owners are told

    def _check_install(self, state: DestinationHandoff) -> None:
        self.marks.add("installed")
        index = owned(self.consumer, self.claim())
        if index == NOBODY:
            raise Violation("I3", "installed without blocks")
        if any(not part.committed for part in self.request.parts):
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

    # memory

    def whole(self) -> tuple[int, int]:
        """What this request's block holds when all parts have arrived: each part has its share of the two chunks."""
        last = self.scope.parts - 1
        return (self.claim(0) + 1, self.claim(last) + 1)

    def pointed(self, worker: Worker, claim: int) -> int:
        """Index of the slot that `claim` has the address of; NOBODY if that memory is gone."""
        for index, slot in enumerate(worker.slots):
            if slot.pointers >> claim & 1:
                return index
        return NOBODY

    def seen(self, part: int, chunk: int) -> int:
        """Copy a chunk of the source, one-sidedly: what is there now is what is seen."""
        claim = self.claim(part)
        at = self.pointed(self.producer, claim)
        if at == NOBODY:
            return EMPTY
        slot = self.producer.slots[at]
        stamp = slot.stamps[chunk]
        if slot.owner != claim:
            self.marks.add("a read after its block was freed")
        if stamp == claim + 1:
            return MINE
        if stamp == EMPTY:
            return EMPTY
        if self._tenant_of(stamp) != self.scope.tenant(self.index):
            raise Violation("I7", "a reader was shown another tenant's bytes")
        self.marks.add("a read saw another request's bytes")
        return OTHER

    def _tenant_of(self, stamp: int) -> int:
        return -stamp - 1 if stamp < 0 else self.scope.tenant((stamp - 1) // self.scope.parts)

    def fill(self, part: int, chunk: int) -> None:
        """The producer's engine writes a chunk."""
        self.producer = self._written(self.producer, self.claim(part), (chunk,), self.claim(part) + 1)

    def convert(self, part: int) -> None:
        """The consumer writes what it has copied into its own block, each part its share."""
        copied = self.request.parts[part].copied
        stamp = self.claim(part) + 1 if copied == (MINE, MINE) else -1 - self.scope.tenant(self.index)
        chunks = (0, 1) if self.scope.parts == 1 else (part,)
        self.consumer = self._written(self.consumer, self.claim(), chunks, stamp)
        self.change_part(part, copied=())

    def _written(self, worker: Worker, claim: int, chunks: tuple[int, ...], stamp: int) -> Worker:
        index = self.pointed(worker, claim)
        if index == NOBODY:
            return worker
        slot = worker.slots[index]
        if slot.owner != claim:
            raise Violation("I2", "a write reached a block that is not assigned to its writer any more")
        stamps = tuple(stamp if chunk in chunks else old for chunk, old in enumerate(slot.stamps))
        return with_slot(worker, index, slot._replace(stamps=(stamps[0], stamps[1])))

    # the end of a move

    def end(self, *, accounts: bool = True) -> View:
        """Tidy, check the accounts, and give the view back."""
        self._tidy_destination()
        self._tidy_messages()
        self._tidy_pointers()
        if self.scope.reduced:
            self._tidy_stamps()
        if accounts:
            self._check_accounts()
        if self._over():
            last = self.request._replace(
                ended=True,
                producer=0,
                consumer=0,
                destination=0,
                abandoned=False,
                registered=False,
                over=False,
                producer_died=False,
                consumer_died=False,
                parts=(IDLE,) * self.scope.parts,
            )
            self.request = last
        return View(self.request, self.producer, self.consumer)

    def destination_over(self) -> bool:
        """The consumer's side has ended, or died with its worker."""
        state = self.destination_state()
        return state is None or state.ended

    def source_over(self, part: int) -> bool:
        """The producer's side has ended, or died with its worker, or will never begin."""
        state = self.source_state(part)
        return self.request.parts[part].barred if state is None else state.ended

    def _over(self) -> bool:
        idle = all(part.engine == Engine.OFF and not part.writes for part in self.request.parts)
        quiet = all(part.stage == Stage.NOTHING for part in self.request.parts)
        ended = all(self.source_over(part) for part in range(self.scope.parts))
        return self.request.begun and idle and quiet and ended and self.destination_over()

    def _tidy_destination(self) -> None:
        """A tombstone changes no more, whatever it is told, so that how it ended need not be remembered."""
        state = self.destination_state()
        if state is None or not state.ended or any(part.stage != Stage.NOTHING for part in self.request.parts):
            return
        if state.outcome is LogicalOutcome.PENDING:
            raise Violation("I5", "a request has ended without an outcome")
        for event in _LATE:
            if self.steps.destination(self.request.destination, event)[0] != self.request.destination:
                raise Violation("I4", f"{type(event).__name__} changed a hand-off that had ended")
        self._check_accounts()
        self.request = self.request._replace(destination=ABSENT)

    def _tidy_messages(self) -> None:
        """Messages to who has ended change nothing: ended states are absorbing."""
        receiver_over = self.destination_over()
        for index in range(self.scope.parts):
            part = self.request.parts[index]
            sent, copied = part.sent, part.copied
            if receiver_over:
                sent &= ~(OFFER | YES | NO | WRITTEN)
                copied = () if part.stage == Stage.NOTHING else copied
                if self.source_over(index):
                    sent &= ~CONFIRM
            over = part.over and not self.source_over(index)
            if (sent, copied, over) != (part.sent, part.copied, part.over):
                self.change_part(index, sent=sent, copied=copied, over=over)

    def _tidy_pointers(self) -> None:
        for index in range(self.scope.parts):
            part = self.request.parts[index]
            if part.engine == Engine.OFF and not part.writes and not self._may_read(index, part):
                self.producer = _unpointed(self.producer, self.claim(index))
        if all(part.stage == Stage.NOTHING and not part.writes for part in self.request.parts):
            state = self.destination_state()
            if state is None or state.phase is not DestinationPhase.RESERVED:
                self.consumer = _unpointed(self.consumer, self.claim())

    def _tidy_stamps(self) -> None:
        """Bytes whose writer has no more to do with the block are to everybody else just a stranger's."""
        stranger = -1 - self.scope.tenant(self.index)
        for part in range(self.scope.parts):
            self.producer = _disowned(self.producer, self.claim(part), stranger)

    def _may_read(self, index: int, part: Part) -> bool:
        """Whether the consumer has, or may yet get, the address of the source and a reason to read."""
        if part.stage == Stage.READ:
            return True
        state = self.destination_state()
        if state is None or state.outcome is not LogicalOutcome.PENDING or not part.sent & OFFER:
            return False
        return state.parts[index].stage is PartStage.WAITING

    def _check_accounts(self) -> None:
        """I3 and I4: what the ledgers say of this request's blocks is what its protocol states say."""
        for index in range(self.scope.parts):
            source = self.source_state(index)
            at = owned(self.producer, self.claim(index))
            if (source is not None and bool(source.blocks)) != (at != NOBODY):
                raise Violation("I3", "the producer's ledger and the hand-off disagree on who has the block")
            if source is not None and at != NOBODY and self.producer.slots[at].grants != int(source.grant_open):
                raise Violation("I4", "open grants at the producer and their count differ")
        state = self.destination_state()
        at = owned(self.consumer, self.claim())
        if (state is not None and bool(state.blocks)) != (at != NOBODY):
            raise Violation("I3", "the consumer's ledger and the hand-off disagree on who has the block")
        if state is not None and at != NOBODY and self.consumer.slots[at].grants != int(state.grant_open):
            raise Violation("I4", "open grants at the consumer and their count differ")


def forgotten(worker: Worker, claim: int, scope: Scope) -> Worker:
    """The worker once `claim` uses no address in it any more."""
    worker = _unpointed(worker, claim)
    return _disowned(worker, claim, -1 - scope.tenant(claim // scope.parts)) if scope.reduced else worker


def _unpointed(worker: Worker, claim: int) -> Worker:
    bit = 1 << claim
    slots = worker.slots
    if any(slot.pointers & bit or (slot.stamps != (EMPTY, EMPTY) and not slot.pointers) for slot in slots):
        return worker._replace(slots=tuple(tidy(slot._replace(pointers=slot.pointers & ~bit)) for slot in slots))
    return worker


def _disowned(worker: Worker, claim: int, stranger: int) -> Worker:
    for index, slot in enumerate(worker.slots):
        if claim + 1 in slot.stamps and slot.owner != claim and not slot.pointers >> claim & 1:
            first, second = (stranger if stamp == claim + 1 else stamp for stamp in slot.stamps)
            worker = with_slot(worker, index, slot._replace(stamps=(first, second)))
    return worker
