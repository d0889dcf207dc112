"""Blocks in files, behind everything in memory: they outlive the process, and its next life finds them.

    kept ─► copied, queued ─► written by the index, in its thread, one at a time

The index makes room by its own retention; what it gives up lies nowhere any more. Tenants' bytes lie in the folder as
they lie in memory: it is readable to this user only, and no more is promised.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.clock import Clock
from isthmus.core.errors import ConfigInvalid, Lost
from isthmus.core.limits import FILE_WRITES_QUEUED_BYTES_MAX
from isthmus.core.waiting import in_thread
from isthmus.handoff.tier_store import Install, Kept, Leaving, Loads, OnGivenUp, TierCounts
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.residency import Tier, TierState

__all__ = ["FileTier", "kept_secret"]

_FIRST_LATENCY_MS = 0.1
_FIRST_BYTES_PER_MS = 500_000.0  # a slow NVMe disk's, until a load was seen


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    """A block on its way to a file."""

    key: FileKey
    payload: bytearray
    logical_digest: int
    recompute_ms: float


class FileTier:
    """One worker's, at most `bytes_max` bytes of payloads, as its index has it."""

    tier = Tier.FILE

    def __init__(self, index: DurableIndex, *, bytes_max: int, payload_bytes: int, clock: Clock) -> None:
        self.counts = TierCounts()
        self._index = index
        self._bytes_max = bytes_max
        self._payload_bytes = payload_bytes
        self._loads = Loads("files", self.counts, clock, latency_ms=_FIRST_LATENCY_MS, bytes_per_ms=_FIRST_BYTES_PER_MS)
        self._queue: deque[_Queued] = deque()
        self._more = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As `TierStore.running`; what is queued at the end of the body is written before this ends."""
        await in_thread(self._loads.thread, lambda _: self._index.open())
        writing = asyncio.create_task(self._write_forever())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            await self.settled()
            await in_thread(self._loads.thread, lambda _: self._index.close())
            self._loads.thread.shutdown()

    @property
    def bytes_held(self) -> int:
        return self._index.size_bytes

    def state(self) -> TierState:
        """The index makes room, so there always is some."""
        return TierState(
            tier=self.tier,
            capacity_bytes=self._bytes_max,
            used_bytes=0,
            latency_ms=self._loads.latency_ms,
            bytes_per_ms=self._loads.bytes_per_ms,
        )

    def recompute_ms(self, key: FileKey) -> float | None:
        return self._index.recompute_ms(key)

    # in

    def keep(self, leaving: Leaving) -> bool:
        """Queued, and written later; not where too much is queued already."""
        if self.recompute_ms(leaving.key) is not None:
            return True
        if (len(self._queue) + 1) * self._payload_bytes > FILE_WRITES_QUEUED_BYTES_MAX:
            return False
        payload = bytearray(self._payload_bytes)
        leaving.write(memoryview(payload))
        self._queue.append(
            _Queued(
                key=leaving.key,
                payload=payload,
                logical_digest=leaving.logical_digest,
                recompute_ms=leaving.recompute_ms,
            )
        )
        self._more.set()
        return True

    async def settled(self) -> None:
        """Return when nothing is queued: write it oneself."""
        while self._queue:
            await self._write_one()

    async def _write_forever(self) -> None:
        while True:
            self._more.clear()
            await self.settled()
            await self._more.wait()

    async def _write_one(self) -> None:
        """One at a time, so that a load waits for one write at most."""
        queued = self._queue.popleft()
        try:
            await in_thread(self._loads.thread, lambda _: self._put(queued))
            self.counts.written += 1
        except Lost:
            self.counts.failed += 1  # a full disk: what could not be kept is computed again
        self.counts.discarded = self._index.counts.evicted

    def _put(self, queued: _Queued) -> None:
        self._index.put(
            queued.key,
            bytes(queued.payload),
            logical_digest=queued.logical_digest,
            recompute_ms=queued.recompute_ms,
        )

    # out

    def holding(self, keys: Sequence[FileKey]) -> AbstractContextManager[None]:
        """The index may have to give up one that is about to be read: then it is computed again."""
        return nullcontext()

    async def load(self, keys: Sequence[FileKey], install: Install) -> int:
        """As `TierStore.load`; the index holds each file against its checksum and its key."""
        return await self._loads.run(keys, self._get, install)

    def _get(self, key: FileKey) -> Kept | None:
        stored = self._index.get(key)
        if stored is None or len(stored.payload) != self._payload_bytes:
            return None
        return Kept(payload=memoryview(stored.payload), logical_digest=stored.header.logical_digest)

    def when_given_up(self, callback: OnGivenUp) -> None:
        """Nothing lies further out."""

    def give_up_all(self) -> Iterator[None]:
        """As `TierStore.give_up_all`: nothing, files stay."""
        return iter(())
