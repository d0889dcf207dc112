"""What outlives the process: the index of payloads in files, in SQLite, with a bound and an order of eviction.

    folder/index.sqlite       what each file is, how often it was used, where its payload begins (`index_rows`)
    folder/<hash>.kv          payloads (`index_file`)
    folder/lock               held while the index is open: one process at a time

The files are the truth, and the rows are what is remembered of them. A row without a whole file is dropped when the
index is opened, and again before each use; a whole file without a row gets one. So the database may lose its last
commits, or all of it, and nothing wrong is served: a row that comes back after its file was removed finds no file.

Every lookup reads the whole file and holds its checksum and its key against what was asked (fail closed). Decides
nothing of what is worth keeping (`retention`) and of where it lies (`residency`). Blocking, and of one thread.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from isthmus.core.clock import Clock
from isthmus.core.errors import BadInput, ConfigInvalid, Lost
from isthmus.core.limits import INDEX_ENTRIES_MAX, INDEX_PAYLOAD_BYTES_MAX
from isthmus.ownership.index_file import (
    FileHeader,
    FileKey,
    Stored,
    Torn,
    file_name,
    read_file,
    write_file,
)
from isthmus.ownership.index_rows import Rows
from isthmus.ownership.retention import Entry, EvictionOrder, Retention

__all__ = ["DurableIndex", "IndexCounts"]


@dataclass(slots=True, kw_only=True)
class IndexCounts:
    """What has happened since the index was opened; `dropped` were found torn, and not served."""

    hits: int = 0
    misses: int = 0
    evicted: int = 0
    dropped: int = 0
    adopted: int = 0


class DurableIndex:
    """Payloads by key, at most `bytes_max` of them in all. Open it, or use it with `with`."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        clock: Clock,
        retention: Retention,
        entries_max: int = INDEX_ENTRIES_MAX,
    ) -> None:
        self.counts = IndexCounts()
        self._folder = folder
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._clock = clock
        self._order = EvictionOrder(retention, entries_max=INDEX_ENTRIES_MAX)
        self._entries: dict[str, Entry] = {}
        self._bytes = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Drop what is torn, adopt what is whole, and come within the bounds.

        Raises:
            ConfigInvalid: the folder cannot be used, or another process uses it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigInvalid(f"folder: {self._folder}: {error.strerror}", field="folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigInvalid(f"folder: {self._folder} is in use by another process", field="folder") from None
        self._rows = Rows(self._folder)
        self._recover()

    def close(self) -> None:
        """Let go of the folder. In the thread that opened."""
        self._rows.close()
        os.close(self._lock)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Payload bytes held."""
        return self._bytes

    def recompute_ms(self, key: FileKey) -> float | None:
        """What making a payload again would take; None: it is not here. From any thread: it looks into memory only.

        Whether a file can be believed shows when it is read.
        """
        entry = self._entries.get(file_name(key))
        return None if entry is None else entry.recompute_ms

    def put(self, key: FileKey, payload: bytes, *, logical_digest: int, recompute_ms: float) -> bool:
        """Keep a payload; False where it is larger than everything that may be kept. One that is here already stays.

        Raises:
            BadInput: the payload is empty or larger than any may be.
            Lost: the disk refuses; nothing is kept.
        """
        if not 1 <= len(payload) <= INDEX_PAYLOAD_BYTES_MAX:
            raise BadInput(f"payload: {len(payload)} bytes, wanted 1 to {INDEX_PAYLOAD_BYTES_MAX}", field="payload")
        name = file_name(key)
        if name in self._entries:
            return True
        if len(payload) > self._bytes_max:
            return False
        self._make_room(len(payload))
        header = FileHeader(
            key=key, payload_bytes=len(payload), logical_digest=logical_digest, recompute_ms=recompute_ms
        )
        try:
            stored = write_file(self._folder, header, payload)
        except OSError as error:
            raise Lost(f"folder: {self._folder}: {error.strerror}", field="folder") from None
        self._record(name, stored)
        return True

    def get(self, key: FileKey) -> Stored | None:
        """The payload of a key, read and checked now; None where there is none that can be believed."""
        name = file_name(key)
        if name not in self._entries:
            self.counts.misses += 1
            return None
        try:
            stored = self._checked(name, key)
        except Torn:
            self.counts.dropped += 1
            self.counts.misses += 1
            self._drop(name)
            return None
        self.counts.hits += 1
        self._remember(self._entries[name].used(self._clock.now()), name)
        self._rows.hit(name)
        return stored

    # inside

    def _checked(self, name: str, key: FileKey | None) -> Stored:
        """The file of a row; where a key is given, that very key's. Raises Torn."""
        stored = read_file(self._folder / name)
        if file_name(stored.header.key) != name or (key is not None and stored.header.key != key):
            raise Torn(f"{name}: the file is of another key")
        return stored

    def _record(self, name: str, stored: Stored) -> None:
        header = stored.header
        made = Entry.made(
            name.encode(),
            size_bytes=header.payload_bytes,
            recompute_ms=header.recompute_ms,
            now=self._clock.now(),
        )
        self._rows.insert(stored, created=self._clock.unix_seconds())
        self._remember(made, name)

    def _remember(self, entry: Entry, name: str) -> None:
        before = self._entries.get(name)
        self._bytes += entry.size_bytes - (0 if before is None else before.size_bytes)
        self._entries[name] = entry
        self._order.put(entry)

    def _make_room(self, size_bytes: int) -> None:
        """Give up what is worth least until `size_bytes` more fit."""
        one_more = 1 if size_bytes else 0
        while self._bytes + size_bytes > self._bytes_max or len(self._entries) + one_more > self._entries_max:
            victim = self._order.pop()
            if victim is None:
                return
            self.counts.evicted += 1
            self._drop(victim.key.decode())

    def _drop(self, name: str) -> None:
        """The row first: a row whose file is gone is the case that every reader already deals with."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._bytes -= entry.size_bytes
            self._order.remove(entry.key)
        self._rows.delete(name)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def _recover(self) -> None:
        """Hold rows against files, oldest use first, and files against rows."""
        for name, hits in self._rows.all():
            try:
                stored = self._checked(name, None)
            except Torn:
                self.counts.dropped += 1
                self._drop(name)
                continue
            self._remember(self._seen_before(stored, hits), name)
            self._make_room(0)
        for path in self._strangers():
            try:
                self._record(path.name, self._checked(path.name, None))
                self._make_room(0)
                self.counts.adopted += 1
            except Torn:
                self.counts.dropped += 1
                path.unlink(missing_ok=True)

    def _seen_before(self, stored: Stored, hits: int) -> Entry:
        """Instants mean nothing to another process: what is left of the past is the order, and the number of uses."""
        made = Entry.made(
            file_name(stored.header.key).encode(),
            size_bytes=stored.header.payload_bytes,
            recompute_ms=stored.header.recompute_ms,
            now=self._clock.now(),
        )
        return replace(made, uses=1 + hits, heat=made.heat + math.log2(1 + hits))

    def _strangers(self) -> Iterator[Path]:
        """Files that no row knows: one whose row was not committed, or half of one."""
        for path in sorted(self._folder.iterdir()):
            if ".kv" in path.suffixes and path.name not in self._entries:
                yield path
