"""What a tier behind the pool is to whoever moves blocks (`tiers`): a store of payloads by key, with a bound.

A payload is one block, and the same bytes in every tier: the digests of its tokens, then the block as the pool stores
it. What a store hands out it has held against a checksum of its own; it knows nothing of blocks, prompts and policies.
"""

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Protocol

from isthmus.core.clock import Clock, Instant
from isthmus.core.ids import Digest
from isthmus.core.waiting import in_thread
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.residency import Tier, TierState

__all__ = [
    "DIGEST_BYTES",
    "Install",
    "Kept",
    "Leaving",
    "Loads",
    "OnGivenUp",
    "TierCounts",
    "TierStore",
    "digests_in",
    "sum_of",
]

DIGEST_BYTES = 8
_NEW_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A block that leaves its tier. `write` lays its payload into memory, until whoever was offered it returns."""

    key: FileKey
    logical_digest: int
    recompute_ms: float
    write: Callable[[memoryview], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A payload that has just been found whole. Its memory is the store's, until the block that it goes to is written.

    `logical_digest` is the sum of the digests in it, as they were made at the fill (I1).
    """

    payload: memoryview
    logical_digest: int


Install = Callable[[Kept], bool]
"""Takes the next payload, in a store's thread; False: it is in doubt, and none after it is wanted."""

OnGivenUp = Callable[[Leaving, Tier], bool]
"""Told of a block that a tier gives up, before its room is used again; whether it lies in another one now."""


@dataclass(slots=True, kw_only=True)
class TierCounts:
    """What has happened so far, in blocks. `discarded` left this tier and went nowhere; `failed` could not be written,
    or was not there, or not whole, when it was to be loaded.
    """

    written: int = 0
    loaded: int = 0
    discarded: int = 0
    failed: int = 0

    def row(self) -> dict[str, int]:
        return asdict(self)


class TierStore(Protocol):
    """One tier. On the event loop, but for what a store itself gives to a thread."""

    tier: Tier
    counts: TierCounts

    @property
    def bytes_held(self) -> int:
        """Of payloads, now: never more than its bound."""
        ...

    def state(self) -> TierState:
        """As a policy sees it."""
        ...

    def recompute_ms(self, key: FileKey) -> float | None:
        """What making a block again would take; None: it does not lie here."""
        ...

    def keep(self, leaving: Leaving) -> bool:
        """Keep a block, giving up what is worth least where there is no room; False: it cannot, now."""
        ...

    def holding(self, keys: Sequence[FileKey]) -> AbstractContextManager[None]:
        """For the body, none of these is given up if that can be helped; a use of each."""
        ...

    async def load(self, keys: Sequence[FileKey], install: Install) -> int:
        """Hand these to `install`, one by one and in order, until one is in doubt; how many it took."""
        ...

    def when_given_up(self, callback: OnGivenUp) -> None:
        """Call `callback` for each block that is given up."""
        ...

    def give_up_all(self) -> Iterator[None]:
        """The worker ends: give up what ends with it, one block a step, first what is worth most."""
        ...

    async def settled(self) -> None:
        """Return when nothing that was kept still waits to be written."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Take memory, or open files, for the body. Raises ConfigInvalid."""
        ...


class Loads:
    """One tier's loads: in a thread of its own, in order, counted, and how fast they are, the latest most."""

    def __init__(self, name: str, counts: TierCounts, clock: Clock, *, latency_ms: float, bytes_per_ms: float) -> None:
        """Until a load was seen, a first byte is taken to need `latency_ms`, and what follows `bytes_per_ms`."""
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"isthmus-{name}")
        self.latency_ms = latency_ms
        self.bytes_per_ms = bytes_per_ms
        self._counts = counts
        self._clock = clock

    async def run(self, keys: Sequence[FileKey], get: Callable[[FileKey], Kept | None], install: Install) -> int:
        """As `TierStore.load`; `get` is asked in the thread."""
        asked = self._clock.now()

        def work(stop: threading.Event) -> tuple[int, int, Instant]:
            began, installed, size_bytes = self._clock.now(), 0, 0
            for key in keys:
                kept = None if stop.is_set() else get(key)
                if kept is None or not install(kept):
                    break
                installed += 1
                size_bytes += len(kept.payload)
            return installed, size_bytes, began

        installed, size_bytes, began = await in_thread(self.thread, work)
        self._counts.loaded += installed
        self._counts.failed += installed < len(keys)
        self._learn(size_bytes, waited_ns=began - asked, took_ns=self._clock.now() - began)
        return installed

    def _learn(self, size_bytes: int, *, waited_ns: int, took_ns: int) -> None:
        if size_bytes and took_ns:
            self.latency_ms += _NEW_WEIGHT * (waited_ns / 1e6 - self.latency_ms)
            self.bytes_per_ms += _NEW_WEIGHT * (size_bytes / (took_ns / 1e6) - self.bytes_per_ms)


def sum_of(digests: Sequence[int]) -> int:
    """The digest of all that these are of."""
    return sum(digests) % (1 << 64)


def digests_in(payload: memoryview, count: int) -> tuple[Digest, ...]:
    """The first `count` digests of a payload."""
    return tuple(Digest(value) for value in array("Q", payload[: count * DIGEST_BYTES].tobytes()))
