"""What may happen next, as data: a line for people, the move, and whether it is progress or a fault."""

from collections.abc import Callable
from typing import NamedTuple

from isthmus.ownership.model.turn import Turn

__all__ = ["Option"]


class Option(NamedTuple):
    """One enabled move. `progress` moves happen in the end if nothing else does; the others are faults."""

    label: str
    act: Callable[[Turn], None]
    progress: bool = True
