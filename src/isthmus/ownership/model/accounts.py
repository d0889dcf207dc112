"""A pool's accounts in the model: effects of a step carried out on slots, with the ledger's own checks.

A re-statement of `ownership.ledger` for values instead of arrays. Owns I2, I3 and I4 as the ledger has them: an effect
reaches only blocks that are assigned to who asked for it, and counts end once and at zero.
"""

from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.records import EMPTY, NOBODY, PREFIX, Slot, Worker
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.effects import (
    BeginUse,
    CloseGrant,
    Effect,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    OpenGrant,
    QuarantineBlocks,
    ReleaseStaging,
)

__all__ = ["assign", "execute", "owned", "pin", "point", "staged", "takeable", "tidy", "unpin", "with_slot"]

_ON_BLOCKS = (
    MarkFilling,
    MarkResident,
    BeginUse,
    EndUse,
    OpenGrant,
    CloseGrant,
    FreeBlocks,
    QuarantineBlocks,
)


def owned(worker: Worker, claim: int) -> int:
    """Index of the slot assigned to `claim`; -1 if none is."""
    for index, slot in enumerate(worker.slots):
        if slot.owner == claim:
            return index
    return NOBODY


def staged(worker: Worker) -> int:
    """How many units of staging are in use."""
    return sum(slot.staged != NOBODY for slot in worker.slots)


def with_slot(worker: Worker, index: int, slot: Slot) -> Worker:
    return worker._replace(slots=(*worker.slots[:index], slot, *worker.slots[index + 1 :]))


def takeable(scope: Scope, slot: Slot) -> bool:
    """Whether the ledger may give a block away: it is free, or retained and used by nobody."""
    if slot.owner == PREFIX:
        return not slot.active or scope.switches.evict_while_used
    if slot.account == BlockState.QUARANTINED:
        return scope.switches.reuse_in_doubt
    return slot.account == BlockState.FREE


def assign(worker: Worker, index: int, claim: int, *, staging: bool) -> Worker:
    """The ledger gives a free slot to a hand-off, and a unit of staging with it."""
    slot = worker.slots[index]
    if slot.account not in (BlockState.FREE, BlockState.QUARANTINED) and slot.owner != PREFIX:
        raise Violation("I10", f"a block that is {BlockState(slot.account).name.lower()} was given away")
    reserved = slot._replace(
        account=int(BlockState.RESERVED),
        owner=claim,
        active=0,
        staged=claim if staging else NOBODY,
    )
    return with_slot(worker, index, reserved)


def point(worker: Worker, owner: int, claim: int) -> Worker:
    """`claim` gets the address of `owner`'s block."""
    index = owned(worker, owner)
    slot = worker.slots[index]
    return worker if index == NOBODY else with_slot(worker, index, slot._replace(pointers=slot.pointers | 1 << claim))


def pin(worker: Worker, claim: int) -> Worker:
    """One user more of the retained block, of which `claim` is the address."""
    index = owned(worker, PREFIX)
    slot = worker.slots[index]
    return with_slot(worker, index, slot._replace(active=slot.active + 1, pointers=slot.pointers | 1 << claim))


def unpin(worker: Worker) -> Worker:
    """One user less."""
    index = owned(worker, PREFIX)
    slot = worker.slots[index]
    return worker if index == NOBODY else with_slot(worker, index, slot._replace(active=_less(slot.active, "use")))


def execute(worker: Worker, claim: int, effect: Effect) -> Worker:
    """Carry out an effect of `claim`'s hand-off."""
    if isinstance(effect, ReleaseStaging):
        return _unstaged(worker, claim)
    if not isinstance(effect, _ON_BLOCKS):
        return worker
    if not effect.blocks:
        raise Violation("I4", f"{type(effect).__name__} for a hand-off that has ended")
    index = owned(worker, claim)
    if index == NOBODY:
        # The ledger's check of the epoch: what acts under an old one does not reach the block's next owner.
        raise Violation("I2", f"{type(effect).__name__} for blocks that are not assigned to the hand-off any more")
    return with_slot(worker, index, _slot(worker.slots[index], effect))


def _unstaged(worker: Worker, claim: int) -> Worker:
    for index, slot in enumerate(worker.slots):
        if slot.staged == claim:
            return with_slot(worker, index, slot._replace(staged=NOBODY))
    raise Violation("I4", "staging was released twice")


def _slot(slot: Slot, effect: Effect) -> Slot:
    match effect:
        case MarkFilling():
            return _moved(slot, BlockState.RESERVED, BlockState.FILLING)._replace(active=slot.active + 1)
        case MarkResident():
            moved = _moved(slot, BlockState.FILLING, BlockState.RESIDENT)
            return moved if effect.in_use else moved._replace(active=_less(slot.active, "use"))
        case BeginUse():
            return slot._replace(active=slot.active + 1)
        case EndUse():
            return slot._replace(active=_less(slot.active, "use"))
        case OpenGrant():
            return slot._replace(grants=slot.grants + 1)
        case CloseGrant():
            return slot._replace(grants=_less(slot.grants, "grant"))
        case QuarantineBlocks():
            return slot._replace(account=int(BlockState.QUARANTINED))
        case _:
            if slot.grants or slot.active:
                raise Violation("I4", f"a block was freed with {slot.grants} grants and {slot.active} users on it")
            return slot._replace(account=int(BlockState.FREE), owner=NOBODY)


def _moved(slot: Slot, before: BlockState, to: BlockState) -> Slot:
    if slot.account != before:
        raise Violation("I3", f"a block that is {BlockState(slot.account).name.lower()} became {to.name.lower()}")
    return slot._replace(account=int(to))


def _less(count: int, what: str) -> int:
    if not count:
        raise Violation("I4", f"a {what} ended twice")
    return count - 1


def tidy(slot: Slot) -> Slot:
    """What nobody can see any more is forgotten: the bytes of a free block that nobody points at."""
    if slot.account == BlockState.FREE and not slot.pointers and slot.stamps != (EMPTY, EMPTY):
        return slot._replace(stamps=(EMPTY, EMPTY))
    return slot
