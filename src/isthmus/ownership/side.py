"""The two sides of a hand-off, seen from one worker."""

import enum

__all__ = ["Side"]


class Side(enum.StrEnum):
    """Which side of its hand-offs an owner, or a reservation, is on."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
