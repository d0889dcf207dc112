"""The part of a pool that a worker with both roles keeps for its producer's side.

Consumers hold their blocks while they wait for a producer's, in another worker; where a pool could fill up with those
that wait, two workers would wait for each other. So a consumer never gets a block of this part, and what the producer's
side holds always comes free by itself: its readers have all they need.
"""

from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import BlockId, Epoch, TenantId
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.ledger import Ledger

__all__ = ["ProducerPart"]


class ProducerPart:
    """`size` blocks, whichever they are, and who holds how many of them. Size 0: the worker has one role."""

    def __init__(self, ledger: Ledger, size: int) -> None:
        if not 0 <= size < ledger.num_blocks:
            raise ConfigInvalid(
                f"producer_blocks: got {size}, wanted 0 to num_blocks - 1 = {ledger.num_blocks - 1}",
                field="producer_blocks",
            )
        self.size = size
        self._ledger = ledger
        self._held: dict[Epoch, tuple[TenantId, BlockId, int]] = {}

    def take(self, tenant: TenantId, assignment: Assignment) -> None:
        self._held[assignment.epoch] = (tenant, assignment.blocks[0], len(assignment.blocks))

    def held(self) -> int:
        """Blocks held now. Hand-offs that have ended are forgotten on the way: the ledger alone knows of ends."""
        ended = [epoch for epoch, (_, block, _) in self._held.items() if not self._ledger.assigned_to(block, epoch)]
        for epoch in ended:
            del self._held[epoch]
        return sum(blocks for _, _, blocks in self._held.values())

    def unheld(self) -> int:
        return max(0, self.size - self.held()) if self.size else 0

    def held_by(self, tenant: TenantId) -> int:
        """What of that is one tenant's."""
        if not self._held:
            return 0
        self.held()
        return sum(blocks for holder, _, blocks in self._held.values() if holder == tenant)
