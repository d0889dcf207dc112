"""What may happen next, as data: a line for people, the move, and why it may happen."""

import enum
from collections.abc import Callable
from typing import NamedTuple

from isthmus.ownership.model.turn import Turn

__all__ = ["Option", "Why"]


class Why(enum.Enum):
    """PROGRESS: somebody's own work, time, or the registry's word: it happens in the end if nothing else does.
    DELIVERY: a message arrives, which it may never do. FAULT: something goes wrong, or an enemy acts.
    """

    PROGRESS = enum.auto()
    DELIVERY = enum.auto()
    FAULT = enum.auto()


class Option(NamedTuple):
    """One enabled move."""

    label: str
    act: Callable[[Turn], None]
    why: Why = Why.PROGRESS
