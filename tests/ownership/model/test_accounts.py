"""The model's accounts are production's ledger, on one block: what one refuses the other does, and both end alike."""

from itertools import product

import pytest

from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, HandoffId, TenantId
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.model.accounts import assign, execute, owned
from isthmus.ownership.model.records import FREE_SLOT, NOBODY, Worker
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.owner import execute as carry_out
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.effects import (
    BeginUse,
    CloseGrant,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    OpenGrant,
    QuarantineBlocks,
    ReleaseStaging,
)

KINDS = (
    MarkFilling,
    MarkResident,
    BeginUse,
    EndUse,
    OpenGrant,
    CloseGrant,
    QuarantineBlocks,
    FreeBlocks,
    ReleaseStaging,
)


def effect(kind: type, blocks: tuple[BlockId, ...], epoch: int) -> object:
    if kind is ReleaseStaging:
        return kind(epoch=epoch)
    extra = {"evidence": Evidence.OWN_WORK_ENDED} if kind is FreeBlocks else {}
    extra |= {"in_use": False} if kind is MarkResident else {}
    return kind(blocks=blocks, epoch=epoch, **extra)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_sequence_of_effects_goes_as_far_in_the_model_as_in_the_ledger(length: int) -> None:
    for kinds in product(KINDS, repeat=length):
        ledger = Ledger(num_blocks=1, block_bytes=1, staging_bytes=1)
        assignment = ledger.try_reserve(HandoffId("a"), tenant=TenantId("t"), blocks=1, staging_bytes=1)
        assert assignment is not None
        worker = Worker(lives=0, naps=0, paused=False, fenced=False, slots=(FREE_SLOT,))
        worker = assign(worker, 0, 0, staging=True)
        for kind in kinds:
            one = effect(kind, assignment.blocks, assignment.epoch)
            refused = False
            try:
                carry_out(ledger, one)  # type: ignore[arg-type]
            except Bug:
                refused = True
            try:
                worker = execute(worker, 0, one)  # type: ignore[arg-type]
            except Violation:
                assert refused, f"{kinds}: only the model refuses {kind.__name__}"
                break
            assert not refused, f"{kinds}: only the ledger refuses {kind.__name__}"
            slot, held = worker.slots[0], ledger.held()
            assert ledger.state(BlockId(0)) == BlockState(slot.account)
            assert (held.grants, held.active, held.staging_bytes) == (slot.grants, slot.active, slot.staged != NOBODY)
            assert (ledger.owner(BlockId(0)) is None) == (owned(worker, 0) == NOBODY)
