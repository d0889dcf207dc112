"""Where does it lie? The choice of a memory tier for what is kept (BP-8; whether to keep it is `retention`'s to say).

Pure: a policy is asked about one thing, with its size and what making it again would take, and the tiers as they stand;
it answers with a decision that somebody else carries out. A tier that is full stays full: to make room is to give
something up, and that is not decided here.

The one figure that decides is the time until the thing can be used again. A tier is no place for what would be made
again sooner than it could be loaded from there, unless a policy says that making costs more than time.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isthmus.core.errors import Bug, ConfigInvalid

__all__ = [
    "RESIDENCIES",
    "Discard",
    "Item",
    "Lie",
    "MemoryOnly",
    "NearestThatPays",
    "NearestWithRoom",
    "Residency",
    "Tier",
    "TierState",
    "residency_named",
]


class Tier(enum.StrEnum):
    """Kinds of memory, by the names that a manifest uses. To a policy, DEVICE is where KV is used: the pool."""

    DEVICE = "device"
    PINNED_HOST = "pinned_host"
    HOST = "host"
    FILE = "file"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """One tier now: its room, and what loading from it to where KV is used takes.

    `used_bytes` is what it cannot do without: a tier that gives up its least to take something new has room for it.
    """

    tier: Tier
    capacity_bytes: int
    used_bytes: int
    latency_ms: float
    bytes_per_ms: float

    def __post_init__(self) -> None:
        if not 0 <= self.used_bytes <= self.capacity_bytes or self.latency_ms < 0.0 or self.bytes_per_ms <= 0.0:
            raise Bug(f"no tier: {self}", field="tier")

    def fits(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self.capacity_bytes

    def load_ms(self, size_bytes: int) -> float:
        """Until it can be used."""
        return self.latency_ms + size_bytes / self.bytes_per_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is to lie somewhere."""

    size_bytes: int
    recompute_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """Let it lie in this tier: stay, or move there."""

    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """No tier is a place for it."""

    reason: str


class Residency(Protocol):
    """A policy. `tiers` are all there are, in any order, each once."""

    def place(self, item: Item, tiers: Sequence[TierState]) -> Lie | Discard:
        """Where something new is to lie."""
        ...

    def demote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie | Discard:
        """It has to leave its tier, which needs the room: whither?"""
        ...

    def promote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie:
        """It is used: where is it to lie from now on? Where it lies, if there is no nearer place, or none that pays."""
        ...


class NearestWithRoom:
    """The tier with room that loads soonest: whatever was made once is loaded, however long that takes.

    For where making is what there is too little of: prefill at its limit, and time to first token no concern.
    """

    def place(self, item: Item, tiers: Sequence[TierState]) -> Lie | Discard:
        return self._nearest(item, tiers)

    def demote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie | Discard:
        here = _of(lies_in, tiers).load_ms(item.size_bytes)
        # Only outwards: a move to a nearer tier would be a promotion that nobody's use has called for.
        return self._nearest(
            item, [tier for tier in tiers if tier.tier is not lies_in and tier.load_ms(item.size_bytes) >= here]
        )

    def promote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie:
        state = _of(lies_in, tiers)
        here = state.load_ms(item.size_bytes)
        nearer = [tier for tier in tiers if tier.load_ms(item.size_bytes) < here]
        found = self._nearest(item, nearer) if self._pays(item, state) else None
        return found if isinstance(found, Lie) else Lie(tier=lies_in)

    def _nearest(self, item: Item, tiers: Sequence[TierState]) -> Lie | Discard:
        if not tiers:
            return Discard(reason="there is no tier further out")
        pays = [tier for tier in tiers if self._pays(item, tier)]
        if not pays:
            soonest = min(tier.load_ms(item.size_bytes) for tier in tiers)
            return Discard(reason=f"made again in {item.recompute_ms:g} ms, loaded in {soonest:g} ms at best")
        room = [tier for tier in pays if tier.fits(item.size_bytes)]
        if not room:
            return Discard(reason=f"no room for {item.size_bytes} bytes in {', '.join(tier.tier for tier in pays)}")
        return Lie(tier=min(room, key=lambda tier: tier.load_ms(item.size_bytes)).tier)

    def _pays(self, item: Item, tier: TierState) -> bool:
        """Whether loading from a tier is worth it."""
        return True


class NearestThatPays(NearestWithRoom):
    """The tier with room that loads soonest, if it loads sooner than the thing could be made again."""

    def _pays(self, item: Item, tier: TierState) -> bool:
        return tier.load_ms(item.size_bytes) < item.recompute_ms


class MemoryOnly(NearestThatPays):
    """The same, but nothing goes to files: they are read, as an earlier life may have left them, and wear no disk."""

    def place(self, item: Item, tiers: Sequence[TierState]) -> Lie | Discard:
        return super().place(item, _without_files(tiers))

    def demote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie | Discard:
        return super().demote(item, lies_in, tiers if lies_in is Tier.FILE else _without_files(tiers))


RESIDENCIES: dict[str, type[NearestWithRoom]] = {
    "nearest_that_pays": NearestThatPays,
    "nearest_with_room": NearestWithRoom,
    "memory_only": MemoryOnly,
}
"""By the names that a configuration uses."""


def residency_named(name: str) -> Residency:
    """A built-in policy. Raises ConfigInvalid."""
    if name not in RESIDENCIES:
        raise ConfigInvalid(f"residency: got {name!r}, wanted one of {', '.join(RESIDENCIES)}", field="residency")
    return RESIDENCIES[name]()


def _of(tier: Tier, tiers: Sequence[TierState]) -> TierState:
    found = [state for state in tiers if state.tier is tier]
    if len(found) != 1:
        raise Bug(f"tier {tier} is given {len(found)} times", field="tiers")
    return found[0]


def _without_files(tiers: Sequence[TierState]) -> list[TierState]:
    return [tier for tier in tiers if tier.tier is not Tier.FILE]
