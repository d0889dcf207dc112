"""Is it worth keeping? The order in which retained things are given up (BP-8; where they lie is `residency`'s).

An `Entry` is what is known of one retained thing; a `Retention` says what it is worth, as a number that depends on the
entry alone. Nothing else may make the number move, so the order of what nobody uses never changes by itself, and a
heap keeps it: each operation costs O(log n), whatever the policy.

Reuse is estimated from what was seen. Each use counts one and fades by half every `half_life`. As all counts fade
alike, their order does not depend on when one looks, and neither does the logarithm kept here:

    heat = log2(sum over uses of 2 ** (instant / half_life))        uses expected now = 2 ** (heat - now / half_life)

Refuses to know blocks, tenants and tiers.
"""

import heapq
import math
from dataclasses import dataclass, replace
from typing import Protocol

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug, ConfigInvalid
from isthmus.core.units import Duration

__all__ = [
    "HALF_LIFE",
    "RETENTIONS",
    "CostAware",
    "Entry",
    "EvictionOrder",
    "LeastFrequent",
    "LeastRecent",
    "Retention",
    "retention_named",
    "reuses_expected",
]

HALF_LIFE = Duration.of_seconds(300)
"""How fast a use is forgotten, unless configured otherwise: a conversation's next turn comes within minutes."""

_HEAP_SLACK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One retained thing, as of its last use. `uses` counts its making as one, so that none starts without hope."""

    key: bytes
    size_bytes: int
    recompute_ms: float
    uses: int
    last_used: Instant
    heat: float

    @classmethod
    def made(
        cls, key: bytes, *, size_bytes: int, recompute_ms: float, now: Instant, half_life: Duration = HALF_LIFE
    ) -> "Entry":
        if size_bytes < 1 or recompute_ms < 0.0:
            raise Bug(f"an entry of {size_bytes} bytes that takes {recompute_ms} ms to make", field="size_bytes")
        return cls(
            key=key,
            size_bytes=size_bytes,
            recompute_ms=recompute_ms,
            uses=1,
            last_used=now,
            heat=now / half_life.ns,
        )

    def used(self, now: Instant, half_life: Duration = HALF_LIFE) -> "Entry":
        """The entry after one use more."""
        low, high = sorted((self.heat, now / half_life.ns))
        heat = high + math.log2(1.0 + 2.0 ** (low - high))
        return replace(self, uses=self.uses + 1, last_used=max(self.last_used, now), heat=heat)


def reuses_expected(entry: Entry, now: Instant, half_life: Duration = HALF_LIFE) -> float:
    """Uses seen, faded: what is expected of the next half-life if the near future is like the near past."""
    return float(2.0 ** (entry.heat - now / half_life.ns))


class Retention(Protocol):
    """A policy. Pure: equal entries are worth the same, at any time."""

    def worth(self, entry: Entry) -> float:
        """Lower goes first."""
        ...


class LeastRecent:
    """What was not used for longest goes first."""

    def worth(self, entry: Entry) -> float:
        return float(entry.last_used)


class LeastFrequent:
    """What is expected to be used least goes first."""

    def worth(self, entry: Entry) -> float:
        return entry.heat


class CostAware:
    """What saves the least time for its room goes first.

    Keeping an entry is expected to save bytes * (recompute time / byte) * reuses; it takes its bytes of room. What
    orders entries is the saving for each byte: a large entry is worth more than a small one, and takes more.
    """

    def worth(self, entry: Entry) -> float:
        if entry.recompute_ms == 0.0:
            return -math.inf
        return entry.heat + math.log2(entry.recompute_ms / entry.size_bytes)


RETENTIONS: dict[str, type[LeastRecent | LeastFrequent | CostAware]] = {
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "cost": CostAware,
}
"""By the names that a configuration uses."""


def retention_named(name: str) -> Retention:
    """A built-in policy. Raises ConfigInvalid."""
    if name not in RETENTIONS:
        raise ConfigInvalid(f"retention: got {name!r}, wanted one of {', '.join(RETENTIONS)}", field="retention")
    return RETENTIONS[name]()


class EvictionOrder:
    """Entries that may be given up, least worth first; of equals, the one that came first.

    A heap whose outdated items are skipped when they surface, and swept out once they are the majority: at most twice
    as many items as entries, O(log n) for each operation on average over any sequence of them.
    """

    def __init__(self, retention: Retention, *, entries_max: int) -> None:
        self._retention = retention
        self._entries_max = entries_max
        self._entries: dict[bytes, tuple[int, Entry]] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._last = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace the one of its key."""
        if entry.key not in self._entries and len(self._entries) >= self._entries_max:
            raise Bug(f"{len(self._entries)} entries, wanted at most {self._entries_max}", field="entries")
        self._last += 1
        self._entries[entry.key] = (self._last, entry)
        heapq.heappush(self._heap, (self._retention.worth(entry), self._last, entry.key))
        if len(self._heap) > 2 * len(self._entries) + _HEAP_SLACK:
            self._sweep()

    def remove(self, key: bytes) -> Entry | None:
        """Take an entry out, whatever it is worth; None where it is not in."""
        found = self._entries.pop(key, None)
        return None if found is None else found[1]

    def pop(self) -> Entry | None:
        """Take out what is worth least; None where nothing is left."""
        while self._heap:
            _, number, key = heapq.heappop(self._heap)
            current = self._entries.get(key)
            if current is not None and current[0] == number:
                del self._entries[key]
                return current[1]
        return None

    def _sweep(self) -> None:
        self._heap = [(self._retention.worth(entry), number, key) for key, (number, entry) in self._entries.items()]
        heapq.heapify(self._heap)
