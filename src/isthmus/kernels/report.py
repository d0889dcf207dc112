"""What an execution of a plan reports. Without torch, so that `handoff` can name it."""

from dataclasses import dataclass, field

from isthmus.core.ids import Digest

__all__ = ["Executed", "Verified"]

_WORD = 1 << 64


@dataclass(slots=True, kw_only=True)
class Executed:
    """What kernels found on their way; sums over moves, layers and chunks.

    `before` and `after` are logical digests of what was gathered and of what was scattered; where no element changes
    they are one. By component: elements beyond the target's largest value (`saturated`), that were no numbers, and
    that lie further from their source than the plan's bound allows (`outside`).
    """

    before: int = 0
    after: int = 0
    rows: int = 0
    error_max: float = 0.0
    saturated: dict[str, int] = field(default_factory=dict)
    not_a_number: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Executed") -> None:
        """Another's sums too."""
        self.before = (self.before + other.before) % _WORD
        self.after = (self.after + other.after) % _WORD
        self.rows += other.rows
        self.error_max = max(self.error_max, other.error_max)
        for mine, theirs in (
            (self.saturated, other.saturated),
            (self.not_a_number, other.not_a_number),
            (self.outside, other.outside),
        ):
            for component, count in theirs.items():
                mine[component] = mine.get(component, 0) + count


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What an execution found: the digests before and after the element operations, the largest error seen,
    and how many rows (layer, token, head, K or V) were checked.
    """

    producer_digest: Digest
    consumer_digest: Digest
    error_max: float
    rows: int
