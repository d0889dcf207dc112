"""Counts that are not interchangeable, and a duration that always says its unit."""

from dataclasses import dataclass
from typing import NewType, Self

__all__ = ["GIB", "KIB", "MIB", "BlockCount", "ByteCount", "Duration", "TokenCount", "blocks_for"]

ByteCount = NewType("ByteCount", int)
TokenCount = NewType("TokenCount", int)
BlockCount = NewType("BlockCount", int)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A span of time in whole nanoseconds. Durations travel between hosts; absolute times never do."""

    ns: int

    def __post_init__(self) -> None:
        if self.ns < 0:
            raise ValueError(f"a duration is not negative: {self.ns} ns")

    @classmethod
    def of_ms(cls, ms: float) -> Self:
        return cls(round(ms * 1_000_000))

    @classmethod
    def of_seconds(cls, seconds: float) -> Self:
        return cls(round(seconds * 1_000_000_000))

    @property
    def ms(self) -> float:
        return self.ns / 1_000_000

    @property
    def seconds(self) -> float:
        return self.ns / 1_000_000_000

    def __truediv__(self, divisor: float) -> "Duration":
        return Duration(round(self.ns / divisor))

    def __mul__(self, factor: float) -> "Duration":
        return Duration(round(self.ns * factor))

    def __str__(self) -> str:
        return f"{self.ms:g} ms"


def blocks_for(tokens: int, block_size: int) -> BlockCount:
    """How many blocks hold `tokens` tokens: ceil(tokens / block_size)."""
    return BlockCount(-(-tokens // block_size))
