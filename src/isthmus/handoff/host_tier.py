"""Blocks in host memory, between the pool and files: one slab of equal slots, and for each the checksum of its bytes.

The slab is pinned where the pool is on an accelerator, so that a block crosses in one copy either way. Where the pool
lies in host memory itself, this is a second budget outside of it: what is kept here takes no block from admission, and
loading it is a copy within memory.

A slot that somebody loads from is held: it is neither given up nor written, so a thread may read it beside the loop. A
full tier gives up what is worth least (`retention`), and says so before the slot is used again.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import msgspec
import xxhash

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, ConfigInvalid
from isthmus.core.units import Duration
from isthmus.core.waiting import in_thread
from isthmus.handoff.tier_store import Install, Kept, Leaving, Loads, OnGivenUp, TierCounts
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.residency import Tier, TierState
from isthmus.ownership.retention import HALF_LIFE, Entry, EvictionOrder, Retention

__all__ = ["HostTier"]

_FIRST_LATENCY_MS = 0.05  # a thread's turn
_FIRST_BYTES_PER_MS = 5_000_000.0  # a copy by one core, with its checksum, until a load was seen

_encoder = msgspec.msgpack.Encoder()


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One block here. `held` counts those that load from it; `torn`: its bytes changed, and it goes when none does."""

    number: int
    key: FileKey
    entry: Entry
    logical_digest: int
    checksum: bytes
    held: int = 0
    torn: bool = False


class HostTier:
    """One worker's, at most `bytes_max` bytes of payloads; `memory` gives a slab of so many bytes, once it runs.

    Raises:
        ConfigInvalid: there is not room for one block.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        bytes_max: int,
        payload_bytes: int,
        memory: Callable[[int], memoryview],
        retention: Retention,
        clock: Clock,
        half_life: Duration = HALF_LIFE,
    ) -> None:
        if bytes_max < payload_bytes:
            raise ConfigInvalid(
                f"prefix_caching.host_bytes_max: got {bytes_max}, wanted at least one block's {payload_bytes}",
                field="host_bytes_max",
            )
        self.tier = tier
        self.counts = TierCounts()
        self._payload_bytes = payload_bytes
        self._slots_max = bytes_max // payload_bytes
        self._memory = memory
        self._clock = clock
        self._half_life = half_life
        self._loads = Loads("host", self.counts, clock, latency_ms=_FIRST_LATENCY_MS, bytes_per_ms=_FIRST_BYTES_PER_MS)
        self._retention = retention
        self._order = EvictionOrder(retention, entries_max=self._slots_max)
        self._slots: dict[bytes, _Slot] = {}
        self._slots_held = 0
        self._given_up: OnGivenUp = _nowhere

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As `TierStore.running`."""
        size_bytes = self._slots_max * self._payload_bytes
        self._slab = await in_thread(self._loads.thread, lambda _: self._memory(size_bytes))
        self._free = list(reversed(range(self._slots_max)))
        try:
            yield
        finally:
            self._loads.thread.shutdown()

    @property
    def bytes_held(self) -> int:
        return len(self._slots) * self._payload_bytes

    def state(self) -> TierState:
        """What is not held by a load is given up for what comes, so it is room."""
        return TierState(
            tier=self.tier,
            capacity_bytes=self._slots_max * self._payload_bytes,
            used_bytes=self._slots_held * self._payload_bytes,
            latency_ms=self._loads.latency_ms,
            bytes_per_ms=self._loads.bytes_per_ms,
        )

    def recompute_ms(self, key: FileKey) -> float | None:
        slot = self._slots.get(_name(key))
        return None if slot is None or slot.torn else slot.entry.recompute_ms

    def when_given_up(self, callback: OnGivenUp) -> None:
        self._given_up = callback

    # in

    def keep(self, leaving: Leaving) -> bool:
        """Copied at once. One that is here already stays, and has been used."""
        name = _name(leaving.key)
        slot = self._slots.get(name)
        if slot is not None:
            if not slot.held:
                self._use(slot)
            return not slot.torn
        if not self._free and not self._make_room():
            return False
        number = self._free.pop()
        memory = self._view(number)
        leaving.write(memory)
        entry = Entry.made(
            name,
            size_bytes=self._payload_bytes,
            recompute_ms=leaving.recompute_ms,
            now=self._clock.now(),
            half_life=self._half_life,
        )
        self._slots[name] = _Slot(
            number=number,
            key=leaving.key,
            entry=entry,
            logical_digest=leaving.logical_digest,
            checksum=xxhash.xxh3_128_digest(memory),
        )
        self._order.put(entry)
        self.counts.written += 1
        return True

    async def settled(self) -> None:
        """At once: a block is copied when it is kept."""

    # out

    @contextmanager
    def holding(self, keys: Sequence[FileKey]) -> Iterator[None]:
        """As `TierStore.holding`. A prefix's first block counts as used last: the others are nothing without it."""
        slots = [self._slots[_name(key)] for key in keys]
        for slot in slots:
            self._order.remove(slot.entry.key)
            self._slots_held += not slot.held
            slot.held += 1
        try:
            yield
        finally:
            for slot in reversed(slots):
                slot.held -= 1
                self._slots_held -= not slot.held
                if slot.torn and not slot.held:
                    self._forget(slot)
                elif not slot.held:
                    self._use(slot)

    async def load(self, keys: Sequence[FileKey], install: Install) -> int:
        """As `TierStore.load`, of blocks that are held. One whose checksum does not hold is found here no more."""
        return await self._loads.run(keys, self._get, install)

    def _get(self, key: FileKey) -> Kept | None:
        """In the thread: of a held slot nothing changes but `torn`."""
        slot = self._slots[_name(key)]
        if not slot.held:
            raise Bug("a block is loaded that nobody holds", field="key")
        payload = self._view(slot.number)
        slot.torn = slot.torn or xxhash.xxh3_128_digest(payload) != slot.checksum
        return None if slot.torn else Kept(payload=payload, logical_digest=slot.logical_digest)

    def give_up_all(self) -> Iterator[None]:
        """As `TierStore.give_up_all`: memory ends with the process."""
        for slot in sorted(self._slots.values(), key=lambda slot: self._retention.worth(slot.entry), reverse=True):
            if not slot.held:
                self._give_up(slot)
                yield

    # inside

    def _give_up(self, slot: _Slot) -> None:
        """Whole, or not at all: what takes it makes a checksum of its own, of whatever bytes it gets."""
        memory = self._view(slot.number)

        def write(into: memoryview) -> None:
            into[:] = memory

        if xxhash.xxh3_128_digest(memory) != slot.checksum:
            self.counts.failed += 1
        else:
            leaving = Leaving(
                key=slot.key,
                logical_digest=slot.logical_digest,
                recompute_ms=slot.entry.recompute_ms,
                write=write,
            )
            self.counts.discarded += not self._given_up(leaving, self.tier)
        self._forget(slot)

    def _make_room(self) -> bool:
        victim = self._order.pop()
        if victim is not None:
            self._give_up(self._slots[victim.key])
        return victim is not None

    def _forget(self, slot: _Slot) -> None:
        del self._slots[slot.entry.key]
        self._order.remove(slot.entry.key)
        self._free.append(slot.number)

    def _use(self, slot: _Slot) -> None:
        slot.entry = slot.entry.used(self._clock.now(), self._half_life)
        self._order.put(slot.entry)

    def _view(self, number: int) -> memoryview:
        return self._slab[number * self._payload_bytes : (number + 1) * self._payload_bytes]


def _name(key: FileKey) -> bytes:
    return _encoder.encode(key)


def _nowhere(leaving: Leaving, tier: Tier) -> bool:
    return False
