"""Chance from a seed: two runs of one seed draw the same faults, in the same order."""

import math
from collections.abc import Sequence
from typing import TypeVar

from isthmus.core.clock import ManualClock
from isthmus.core.units import Duration

__all__ = ["Chance"]

Item = TypeVar("Item")


class Chance:
    """Draws from the clock of a seed, the one place that chance comes from."""

    def __init__(self, seed: int) -> None:
        self._clock = ManualClock(seed)

    def fraction(self) -> float:
        """In [0, 1)."""
        return int(self._clock.token()[:13], 16) / 16**13

    def happens(self, probability: float) -> bool:
        return self.fraction() < probability

    def below(self, bound: int) -> int:
        return int(self.fraction() * bound)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def duration(self, shortest: Duration, longest: Duration) -> Duration:
        """Short ones as likely as long ones: the logarithm is drawn."""
        return shortest * math.exp(self.fraction() * math.log(longest.ns / shortest.ns))
