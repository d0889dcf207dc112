"""Memory, and those who touch it without asking: engines that fill, copies in either direction, conversions.

A block is two chunks, each with the stamp of who wrote it. Whoever has a block's address reads or writes what is there
at that moment, whoever's it is by then. Owns the checks of I2 and I7 on bytes themselves.
"""

from isthmus.ownership.model.accounts import owned, with_slot
from isthmus.ownership.model.records import EMPTY, FLIPPED, MINE, NOBODY, OTHER, PREFIX, PREFIX_STAMP, SPOILED, Worker
from isthmus.ownership.model.turn import Turn
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.states import DestinationPhase, LogicalOutcome

__all__ = ["convert", "fill", "see", "spoiled", "write"]


def see(turn: Turn, part: int, chunk: int) -> int:
    """Copy a chunk of the source, one-sidedly: what is there now is what is seen."""
    claim = turn.claim(part)
    shared = turn.part(part).prefix and chunk == 0
    at = _pointed(turn.producer, claim + turn.scope.claims if shared else claim)
    if at == NOBODY:
        return EMPTY
    slot = turn.producer.slots[at]
    stamp = slot.stamps[chunk]
    if slot.owner != (PREFIX if shared else claim):
        turn.marks.add("a read after its prefix was evicted" if shared else "a read after its block was freed")
    if stamp == (PREFIX_STAMP if shared else claim + 1):
        return MINE
    if stamp == PREFIX_STAMP:
        return OTHER  # retained for every request of the tenant, but not what this one is to read here
    if stamp == EMPTY:
        return EMPTY
    if _tenant_of(turn, stamp) != turn.scope.tenant(turn.index):
        raise Violation("I7", "a reader was shown another tenant's bytes")
    turn.marks.add("a read saw another request's bytes")
    return OTHER


def fill(turn: Turn, part: int, chunk: int) -> None:
    """The producer's engine writes a chunk."""
    claim = turn.claim(part)
    turn.producer = _written(turn.producer, claim, claim, (chunk,), claim + 1)


def convert(turn: Turn, part: int) -> None:
    """The consumer writes what it has copied into its own block, each part its share."""
    copied = turn.part(part).copied
    stamp = turn.claim(part) + 1 if copied == (MINE, MINE) else SPOILED if FLIPPED in copied else turn.stranger
    chunks = (0, 1) if turn.scope.parts == 1 else (part,)
    turn.consumer = _written(turn.consumer, turn.claim(), turn.claim(part), chunks, stamp)
    turn.change_part(part, copied=())


def spoiled(turn: Turn) -> bool:
    """Whether what has been converted has been changed on the way, as its digest will tell."""
    index = owned(turn.consumer, turn.claim())
    return index != NOBODY and SPOILED in turn.consumer.slots[index].stamps


def write(turn: Turn, part: int, chunk: int) -> None:
    """The producer's transfer writes a chunk of what it has into the consumer's memory, without asking anybody."""
    stamp = turn.claim(part) + 1 if see(turn, part, chunk) == MINE else turn.stranger
    state = turn.destination_state()
    if state is not None and _pointed(turn.consumer, turn.claim(part)) != NOBODY:
        if state.phase in (DestinationPhase.INSTALLED, DestinationPhase.DRAINING):
            raise Violation("I2", "a write reached a block from which decode reads")
        if state.outcome is not LogicalOutcome.PENDING:
            turn.marks.add("a late write reached a block kept for it")
    turn.consumer = _written(turn.consumer, turn.claim(), turn.claim(part), (chunk,), stamp)


def _pointed(worker: Worker, claim: int) -> int:
    """Index of the slot that `claim` has the address of; NOBODY if that memory is gone."""
    for index, slot in enumerate(worker.slots):
        if slot.pointers >> claim & 1:
            return index
    return NOBODY


def _written(worker: Worker, owner: int, writer: int, chunks: tuple[int, ...], stamp: int) -> Worker:
    index = _pointed(worker, writer)
    if index == NOBODY:
        return worker
    slot = worker.slots[index]
    if slot.owner != owner:
        raise Violation("I2", "a write reached a block that is not assigned to its writer any more")
    stamps = tuple(stamp if chunk in chunks else old for chunk, old in enumerate(slot.stamps))
    return with_slot(worker, index, slot._replace(stamps=(stamps[0], stamps[1])))


def _tenant_of(turn: Turn, stamp: int) -> int:
    return -stamp - 1 if stamp < 0 else turn.scope.tenant((stamp - 1) // turn.scope.parts)
