"""Retained blocks that leave memory lie in files from then on, and come back when a prompt begins with them.

    a block is given up ─► (residency: does a file pay?) ─► copied, queued, written by the index
    a prompt begins     ─► blocks of the cache's own are filled from files, behind what is here already, and retained

A block comes back as if a hand-off had filled it: reserved, filled, settled, retained. So the ledger knows no other way
in, and a load that fails leaves nothing behind. It takes free blocks, and retained ones that are worth less, and none
while anybody waits for some. What is read is held against its checksum, its key and its logical digest before it is
retained (I1); what does not hold is computed again.

Tenants' bytes lie in the folder as they lie in memory: it is readable to this user only, and no more is promised.
"""

import asyncio
import contextlib
import os
import threading
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, ConfigInvalid, Lost
from isthmus.core.ids import BlockId, Digest, HandoffId, TenantId
from isthmus.core.limits import FILE_WRITES_QUEUED_BYTES_MAX
from isthmus.core.waiting import in_thread
from isthmus.handoff.seams import BlockStore
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import Evicted, PrefixCache, PrefixGone
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.residency import Discard, Item, Residency, Tier, TierState

__all__ = ["FileTier", "FileTierCounts", "kept_secret"]

_WORD = 8
_LATENCY_MS = 0.1
_FIRST_BYTES_PER_MS = 500_000.0  # a slow NVMe disk's, until a load was seen
_MEMORY_BYTES_PER_MS = 1e12  # it is where it is used
_NEW_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """One block that was read and found whole."""

    digests: tuple[Digest, ...]
    recompute_ms: float


def kept_secret(folder: Path, clock: Clock) -> bytes:
    """What names in this folder are made with: drawn once, and kept beside the files, or no name would be found again.

    Raises:
        ConfigInvalid: the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "secret"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(clock.token().encode())
                file.flush()
                os.fsync(descriptor)
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"folder: {folder}: {error.strerror}", field="folder") from None


@dataclass(slots=True, kw_only=True)
class FileTierCounts:
    """What has happened so far, in blocks."""

    written: int = 0
    loaded: int = 0
    discarded: int = 0
    failed: int = 0


class FileTier:
    """One worker's. `digests_per_block`: of how many tokens a block's digests are kept with it: all, or none.

    `idle` says whether nobody waits for blocks.
    """

    def __init__(
        self,
        index: DurableIndex,
        *,
        bytes_max: int,
        residency: Residency,
        store: BlockStore,
        cache: PrefixCache,
        ledger: Ledger,
        clock: Clock,
        identity: bytes,
        representation: bytes,
        digests_per_block: int,
        idle: Callable[[], bool],
    ) -> None:
        self.counts = FileTierCounts()
        self._index = index
        self._bytes_max = bytes_max
        self._residency = residency
        self._store = store
        self._cache = cache
        self._ledger = ledger
        self._clock = clock
        self._identity = identity
        self._representation = representation
        self._digests = digests_per_block
        self._idle = idle
        self._lies_in = Tier(store.residency.tier)
        self._bytes_per_ms = _FIRST_BYTES_PER_MS
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isthmus-files")
        self._queue: deque[tuple[Evicted, bytes]] = deque()
        self._queued_bytes = 0
        self._more = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the index for the body; what is queued at its end is written before this ends.

        Raises:
            ConfigInvalid: the folder cannot be used.
        """
        await in_thread(self._thread, lambda _: self._index.open())
        self._cache.when_evicted(self.demote)
        writing = asyncio.create_task(self._write_forever())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            while self._queue:
                await self._write_one()
            await in_thread(self._thread, lambda _: self._index.close())
            self._thread.shutdown()

    # out

    def demote(self, gone: Evicted) -> None:
        """A block is given up by the cache: keep its bytes, if they are worth a place further out."""
        size = self._payload_bytes
        item = Item(size_bytes=size, recompute_ms=gone.recompute_ms)
        decision = self._residency.demote(item, self._lies_in, self._tiers())
        if isinstance(decision, Discard) or self._queued_bytes + size > FILE_WRITES_QUEUED_BYTES_MAX:
            self.counts.discarded += 1
            return
        if len(gone.digests) != self._digests:
            raise Bug(f"{len(gone.digests)} digests of a block, wanted {self._digests}", field="digests")
        self._queue.append((gone, array("Q", gone.digests).tobytes() + self._store.take_block(gone.block)))
        self._queued_bytes += size
        self._more.set()

    async def _write_forever(self) -> None:
        while True:
            self._more.clear()
            while self._queue:
                await self._write_one()
            await self._more.wait()

    async def _write_one(self) -> None:
        """One at a time, so that a load waits for one write at most."""
        gone, payload = self._queue.popleft()
        self._queued_bytes -= len(payload)
        digest = sum(gone.digests) % (1 << 64)
        key = self._key(gone.label, gone.name)
        try:
            await in_thread(
                self._thread,
                lambda _: self._index.put(key, payload, logical_digest=digest, recompute_ms=gone.recompute_ms),
            )
            self.counts.written += 1
        except Lost:
            self.counts.failed += 1  # a full disk: what could not be kept is computed again

    # in

    async def promote(self, names: Sequence[bytes], matched: int, *, label: bytes, tenant: TenantId) -> int:
        """Bring back what follows the `matched` blocks of a prompt that are here; how many blocks were."""
        missing = names[matched:]
        there = await in_thread(self._thread, lambda _: self._count(label, missing))
        if not there or not self._idle():
            return 0
        loader = HandoffId(self._clock.token())
        try:
            self._cache.pin(loader, names[:matched])
        except PrefixGone:
            return 0
        own = self._reserve(loader, tenant, there)
        if own is None:
            self._cache.unpin(loader)
            return 0
        self._ledger.fill(own.blocks, own.epoch)
        loaded: list[_Loaded] = []
        try:
            started = self._clock.now()
            loaded = await in_thread(self._thread, lambda stop: self._load(label, missing, own.blocks, stop))
            self._learn(len(loaded), self._clock.now() - started)
        finally:
            self._ledger.settle(own.blocks, own.epoch, in_use=False)
            if loaded:
                self._cache.offer(
                    loader,
                    names[: matched + len(loaded)],
                    own.blocks,
                    label=label,
                    digests=[each.digests for each in loaded],
                    recompute_ms=loaded[-1].recompute_ms,
                )
            self._cache.ending(loader, own.blocks, own.epoch)
            self._ledger.free(own.blocks, own.epoch, Evidence.OWN_WORK_ENDED)
        self.counts.loaded += len(loaded)
        return len(loaded)

    def _reserve(self, loader: HandoffId, tenant: TenantId, wanted: int) -> Assignment | None:
        """Free blocks; if there are too few, those of prefixes that nobody has asked for as lately."""
        self._cache.reclaim(max(0, wanted - self._ledger.available().blocks))
        blocks = min(wanted, self._ledger.available().blocks)
        return self._ledger.try_reserve(loader, tenant=tenant, blocks=blocks, staging_bytes=0) if blocks else None

    # inside; what follows runs in the index's thread

    def _count(self, label: bytes, names: Sequence[bytes]) -> int:
        """How many blocks are in files, from the first on."""
        found = 0
        while found < len(names) and self._index.has(self._key(label, names[found])):
            found += 1
        return found

    def _load(
        self, label: bytes, names: Sequence[bytes], blocks: Sequence[BlockId], stop: threading.Event
    ) -> list[_Loaded]:
        """Read and check, block by block, until one is not there or does not hold."""
        loaded: list[_Loaded] = []
        for name, block in zip(names, blocks, strict=False):
            stored = None if stop.is_set() else self._index.get(self._key(label, name))
            if stored is None or len(stored.payload) != self._payload_bytes:
                break
            head = self._digests * _WORD
            digests = tuple(Digest(value) for value in array("Q", stored.payload[:head]))
            if sum(digests) % (1 << 64) != stored.header.logical_digest:
                break
            self._store.put_block(block, stored.payload[head:])
            loaded.append(_Loaded(digests=digests, recompute_ms=stored.header.recompute_ms))
        return loaded

    # and this on the loop again

    @property
    def _payload_bytes(self) -> int:
        return self._digests * _WORD + self._store.block_bytes

    def _key(self, label: bytes, name: bytes) -> FileKey:
        return FileKey(prefix=name, tenant=label, identity=self._identity, representation=self._representation)

    def _tiers(self) -> tuple[TierState, TierState]:
        """The pool is full, or nothing would be given up; in files the index makes room, by its own retention."""
        pool_bytes = self._ledger.num_blocks * self._ledger.block_bytes
        return (
            TierState(
                tier=self._lies_in,
                capacity_bytes=pool_bytes,
                used_bytes=pool_bytes,
                latency_ms=0.0,
                bytes_per_ms=_MEMORY_BYTES_PER_MS,
            ),
            TierState(
                tier=Tier.FILE,
                capacity_bytes=self._bytes_max,
                used_bytes=0,
                latency_ms=_LATENCY_MS,
                bytes_per_ms=self._bytes_per_ms,
            ),
        )

    def _learn(self, blocks: int, elapsed_ns: int) -> None:
        """How fast loads are is what was seen, the latest most."""
        if blocks and elapsed_ns:
            seen = blocks * self._payload_bytes / (elapsed_ns / 1e6)
            self._bytes_per_ms += _NEW_WEIGHT * (seen - self._bytes_per_ms)
