"""The words of the ledger: what a block is accounted as, why it is kept, and what sums are reported."""

import enum

import msgspec

from isthmus.core.ids import BlockId, Epoch
from isthmus.core.units import BlockCount, ByteCount

__all__ = ["Assignment", "Available", "BlockState", "Count", "Held"]


class BlockState(enum.IntEnum):
    """What a block is accounted as."""

    FREE = 0
    RESERVED = 1
    FILLING = 2
    RESIDENT = 3
    QUARANTINED = 4


class Count(enum.IntEnum):
    """Reasons to keep a block: open grants on it, active users of it, and retention for reuse."""

    GRANTS = 0
    ACTIVE = 1
    RETENTION = 2


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks given to a hand-off, under an epoch that no other assignment of this ledger ever has."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class Available(msgspec.Struct, frozen=True, kw_only=True):
    """What could be reserved now."""

    blocks: BlockCount
    staging_bytes: ByteCount


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is held now, by state and by count. `quarantined_max` is the high-water mark since the start."""

    reserved: int
    filling: int
    resident: int
    quarantined: int
    quarantined_max: int
    grants: int
    active: int
    retention: int
    staging_bytes: int

    @property
    def blocks(self) -> int:
        return self.reserved + self.filling + self.resident + self.quarantined

    @property
    def blocks_of_handoffs(self) -> int:
        """Those that a hand-off holds; what is retained outlives hand-offs, whoever still uses it."""
        return self.blocks - self.retention
