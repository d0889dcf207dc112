"""The end of a move: what can never matter again is forgotten, and the accounts are checked.

Without it states would differ by what nobody can see any more. Each rule says why nobody can. Owns I3 and I4 as sums
(what the ledgers say of a request's blocks is what its protocol states say) and that ended hand-offs stay ended.
"""

from typing import Final

from isthmus.ownership.model.accounts import owned, tidy, with_slot
from isthmus.ownership.model.records import (
    ABSENT,
    CONFIRM,
    EMPTY,
    IDLE,
    NO,
    NOBODY,
    OFFER,
    WRITTEN,
    YES,
    Engine,
    Image,
    Part,
    Request,
    Stage,
    Worker,
)
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.turn import LIFE, OWN_EPOCH, PRODUCER, Turn, View
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.events import Abort, Confirmed, ConfirmRefused, Drained, PeerLost
from isthmus.ownership.protocol.states import LogicalOutcome, PartStage

__all__ = ["end", "forgotten"]

_LATE: Final = (
    Confirmed(epoch=OWN_EPOCH),
    ConfirmRefused(),
    PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED),
    Drained(evidence=Evidence.OWN_TRANSFER_ENDED),
    Abort(outcome=LogicalOutcome.CANCELLED),
)
"""What may still come to a consumer's side that has ended."""


def end(turn: Turn, *, accounts: bool = True) -> View:
    """Tidy, check the accounts, and give the view back."""
    _tidy_destination(turn)
    _tidy_messages(turn)
    _tidy_pointers(turn)
    if turn.scope.reduced:
        # Bytes whose writer has no more to do with the block are to everybody else just a stranger's.
        for part in range(turn.scope.parts):
            turn.producer = _disowned(turn.producer, turn.claim(part), turn.stranger)
    if accounts:
        _check_accounts(turn)
    if _over(turn):
        _check_nothing_left(turn)
        for part in range(turn.scope.parts):
            turn.producer = forgotten(turn.producer, turn.claim(part), turn.scope)
            turn.consumer = forgotten(turn.consumer, turn.claim(part), turn.scope)
        turn.request = Request(
            begun=True,
            ended=True,
            producer=0,
            consumer=0,
            destination=ABSENT,
            abandoned=False,
            over=False,
            producer_died=False,
            consumer_died=False,
            parts=(IDLE,) * turn.scope.parts,
        )
    return View(turn.request, turn.producer, turn.consumer)


def forgotten(worker: Worker, claim: int, scope: Scope) -> Worker:
    """The worker once `claim` uses no address in it any more."""
    worker = _unpointed(worker, claim)
    return _disowned(worker, claim, -1 - scope.tenant(claim // scope.parts)) if scope.reduced else worker


def _over(turn: Turn) -> bool:
    """Both sides have ended, and nobody works for the request any more."""
    request = turn.request
    quiet = all(part.engine == Engine.OFF and not part.writes and part.stage == Stage.NOTHING for part in request.parts)
    ended = all(turn.source_over(part) for part in range(turn.scope.parts))
    return request.begun and quiet and ended and turn.destination_over()


def _tidy_destination(turn: Turn) -> None:
    """A tombstone changes no more, whatever it is told, so that how it ended need not be remembered."""
    state = turn.destination_state()
    if state is None or not state.ended or any(part.stage != Stage.NOTHING for part in turn.request.parts):
        return
    if state.outcome is LogicalOutcome.PENDING:
        raise Violation("I5", "a request has ended without an outcome")
    for event in _LATE:
        if turn.steps.destination(turn.request.destination, event)[0] != turn.request.destination:
            raise Violation("I4", f"{type(event).__name__} changed a hand-off that had ended")
    _check_accounts(turn)
    turn.request = turn.request._replace(destination=ABSENT)


def _tidy_messages(turn: Turn) -> None:
    """Messages to who has ended change nothing, and a lease that has ended has no time."""
    receiver_over = turn.destination_over()
    state = turn.destination_state()
    if turn.request.over and (state is None or state.lease_ends is None):
        turn.request = turn.request._replace(over=False)
    for index, part in enumerate(turn.request.parts):
        sent, copied = part.sent, part.copied
        source_over = turn.source_over(index)
        if receiver_over:
            sent &= ~(OFFER | YES | NO | WRITTEN)
            copied = () if part.stage == Stage.NOTHING else copied
            if source_over:
                sent &= ~CONFIRM
        over = part.over and not source_over
        if (sent, copied, over) != (part.sent, part.copied, part.over):
            turn.change_part(index, sent=sent, copied=copied, over=over)


def _tidy_pointers(turn: Turn) -> None:
    """An address that nobody will use is none."""
    for index, part in enumerate(turn.request.parts):
        if part.engine == Engine.OFF and not part.writes and not _may_read(turn, index, part):
            turn.producer = _unpointed(turn.producer, turn.claim(index))
        if part.prefix and turn.source_over(index) and not _may_read(turn, index, part):
            turn.producer = _unpointed(turn.producer, turn.claim(index) + turn.scope.claims)
        if part.stage == Stage.NOTHING and part.image != Image.OPEN:
            turn.consumer = _unpointed(turn.consumer, turn.claim(index))


def _may_read(turn: Turn, index: int, part: Part) -> bool:
    """Whether the consumer has, or may yet get, the address of the source and a reason to read."""
    if part.stage == Stage.READ:
        return True
    state = turn.destination_state()
    if state is None or state.outcome is not LogicalOutcome.PENDING or not part.sent & OFFER:
        return False
    return state.parts[index].stage is PartStage.WAITING


def _check_accounts(turn: Turn) -> None:
    if turn.scope.switches.reuse_in_doubt:
        return  # where blocks are taken from under a hand-off, it is the damage that is looked for
    for index in range(turn.scope.parts):
        source = turn.source_state(index)
        at = owned(turn.producer, turn.claim(index))
        if (source is not None and bool(source.blocks)) != (at != NOBODY):
            raise Violation("I3", "the producer's ledger and the hand-off disagree on who has the block")
        if source is not None and at != NOBODY and turn.producer.slots[at].grants != int(source.grant_open):
            raise Violation("I4", "open grants at the producer and their count differ")
    state = turn.destination_state()
    at = owned(turn.consumer, turn.claim())
    if (state is not None and bool(state.blocks)) != (at != NOBODY):
        raise Violation("I3", "the consumer's ledger and the hand-off disagree on who has the block")
    if state is not None and at != NOBODY and turn.consumer.slots[at].grants != int(state.grant_open):
        raise Violation("I4", "open grants at the consumer and their count differ")


def _check_nothing_left(turn: Turn) -> None:
    """I8 for one request: from here on it is named nowhere."""
    for part in range(turn.scope.parts):
        claim = turn.claim(part)
        for slot in turn.producer.slots + turn.consumer.slots:
            if claim in (slot.owner, slot.staged):
                raise Violation("I8", "a request has ended, and a block or staging is still held for it")


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
