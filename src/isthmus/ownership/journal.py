"""The production event log: every ownership event of one life of one worker, so that it can be replayed offline.

    file    magic "ISJOURN1", lost (8 bytes, rewritten in place), then frames
    frame   length (4), its check (4), chain (4), body; the first body is a `Header`, then come `Entry`s, and an `End`
            if the end was clean
    chain   CRC-32 of the body, continued from the frame before: a frame removed or altered breaks it. The length's
            check continues it too, so that a torn frame is told from a broken length.

Each event is one write(2) before anybody is answered, so `kill -9` loses nothing that a peer has been told; it may
leave a torn last frame. Owns no rule: what the events may be is `step`'s to say (`trace.py` asks it). Never holds
prompts, token ids or usable grants (a digest stands for each). A full disk ends the journal, never the service: the
loss is counted in the file itself, in bytes that it has already, and `trace.py` then speaks of an incomplete history.
"""

import errno
import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import structlog
from msgspec import Meta
from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.ids import GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, JOURNAL_FILE_BYTES_MAX, JOURNAL_FILES_PER_LIFE_MAX
from isthmus.ownership.protocol.events import (
    Confirm,
    DestinationEvent,
    Expose,
    Publish,
    ReadSeen,
    Register,
    Renew,
    SourceEvent,
    Submit,
    WriteSeen,
    Written,
)
from isthmus.ownership.side import Side

__all__ = ["End", "Entry", "Header", "Journal", "JournalWriter", "clock_identity", "framed", "journal_path"]

log = structlog.get_logger(__name__)

MAGIC = b"ISJOURN1"
LOST = struct.Struct(">Q")
LENGTH = struct.Struct(">I")
FRAME = struct.Struct(">III")
FRAMES_START = len(MAGIC) + LOST.size
VERSION = 1
LOST_WRITTEN_EVERY = 1024


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose events follow. `part` counts the files of one life; `chain` is where the part before ended.

    `clock` names the clock that `at` is read from: instants of equal clocks may be compared, others never.
    """

    side: Side
    worker: WorkerId
    incarnation: Incarnation
    sole_tenant: TenantId | None
    num_blocks: Annotated[int, Meta(ge=1, le=BLOCKS_PER_POOL_MAX)]
    block_bytes: Annotated[int, Meta(ge=1)]
    staging_bytes: Annotated[int, Meta(ge=0)]
    lease_ms: float
    clock: str
    began: Instant
    began_unix_seconds: int
    version: int = VERSION
    part: int = 0
    chain: int = 0


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="event", forbid_unknown_fields=True):
    """One event, in the order in which the owner took it. `body` is the event's own fields."""

    at: Instant
    handoff: HandoffId
    event: str
    body: msgspec.Raw


class End(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="end", forbid_unknown_fields=True):
    """A clean end, and what hand-offs still held then."""

    at: Instant
    blocks_held: int


class Journal(Protocol):
    """What an owner tells of its events, before it executes their effects."""

    def record(self, *, side: Side, at: Instant, handoff: HandoffId, event: SourceEvent | DestinationEvent) -> None: ...


class JournalWriter:
    """One life's journal in `folder`. Of one thread. Never raises where the disk fails: `lost` counts what it drops."""

    def __init__(
        self,
        folder: Path,
        header: Header,
        *,
        file_bytes_max: int = JOURNAL_FILE_BYTES_MAX,
        files_max: int = JOURNAL_FILES_PER_LIFE_MAX,
    ) -> None:
        self.lost = 0
        self._folder = folder
        self._header = header
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._encoder = msgspec.msgpack.Encoder()
        self._closed = False
        self._fd = -1
        self._size = 0
        self._chain = 0
        self._open()

    def record(self, *, side: Side, at: Instant, handoff: HandoffId, event: SourceEvent | DestinationEvent) -> None:
        """Append one event. What comes after `close` is of a process that is ending, and of no account."""
        if self._closed:
            return
        if self.lost:
            self._lose()
            return
        body = msgspec.Raw(self._encoder.encode(_without_grants(event)))
        self._append(Entry(at=at, handoff=handoff, event=type(event).__name__, body=body))

    def close(self, *, at: Instant, blocks_held: int) -> None:
        """A clean end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._fd < 0:
            return
        if not self.lost:
            self._append(End(at=at, blocks_held=blocks_held))
        self._note_loss()
        os.close(self._fd)

    def _append(self, entry: Entry | End) -> None:
        body = self._encoder.encode(entry)
        if self._size + FRAME.size + len(body) > self._file_bytes_max and self._size > FRAMES_START:
            self._rotate()
        self._write(body)

    def _write(self, body: bytes) -> None:
        if self.lost:
            return
        frame, chain = framed(body, self._chain)
        try:
            if os.pwrite(self._fd, frame, self._size) != len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._lose(error.strerror)
            return
        self._size += len(frame)
        self._chain = chain

    def _open(self) -> None:
        """Begin the header's file; the one before stays open until this one has begun, to hold the loss if it fails."""
        path = journal_path(self._folder, self._header)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._lose(error.strerror)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = opened
        self._size, self._chain = FRAMES_START, 0
        try:
            os.pwrite(opened, MAGIC + LOST.pack(0), 0)
        except OSError as error:
            self._lose(error.strerror)
            return
        self._write(self._encoder.encode(self._header))

    def _rotate(self) -> None:
        """Go on in the next file, and delete the oldest of this life where there are too many."""
        self._header = replace(self._header, part=self._header.part + 1, chain=self._chain)
        oldest = self._header.part - self._files_max
        if oldest >= 0:
            journal_path(self._folder, replace(self._header, part=oldest)).unlink(missing_ok=True)
        self._open()

    def _lose(self, reason: str | None = None) -> None:
        """One event more is not in the journal; and none will be again: a gap is worse than an end."""
        self.lost += 1
        if self.lost == 1:
            log.error("journal_dropped", folder=str(self._folder), reason=reason)
        if self.lost % LOST_WRITTEN_EVERY == 1:
            self._note_loss()

    def _note_loss(self) -> None:
        """Overwrite bytes that the file has: this works on a full disk."""
        if self._fd < 0 or not self.lost:
            return
        try:
            os.pwrite(self._fd, LOST.pack(self.lost), len(MAGIC))
        except OSError:
            return  # a file without its end and with a broken life is incomplete to `trace.py` all the same


def framed(body: bytes, chain: int) -> tuple[bytes, int]:
    """The frame of a body that follows `chain`, and the chain after it."""
    length = len(body)
    after = zlib.crc32(body, chain)
    return FRAME.pack(length, zlib.crc32(LENGTH.pack(length), chain), after) + body, after


def journal_path(folder: Path, header: Header) -> Path:
    """`decode-0.<incarnation>.<part>.journal`"""
    return folder / f"{header.worker}.{header.incarnation}.{header.part:04d}.journal"


def clock_identity() -> str:
    """32 hex digits, equal in two processes only where their monotonic clocks are one: a boot and a time namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/time")
    except OSError:
        return hashlib.blake2b(os.urandom(16), digest_size=16).hexdigest()  # unknown: compared with no other
    return hashlib.blake2b(f"{boot} {namespace}".encode(), digest_size=16).hexdigest()


def _without_grants(event: SourceEvent | DestinationEvent) -> SourceEvent | DestinationEvent:
    """A grant opens KV to whoever knows it; its digest is as good for comparing."""
    match event:
        case Publish() | ReadSeen() | Renew() | Confirm() | Submit() | Register() | WriteSeen() | Written():
            return replace(event, grant=_digest(event.grant))
        case Expose():
            return replace(event, grants=tuple(_digest(grant) for grant in event.grants))
        case _:
            return event


def _digest(grant: GrantId) -> GrantId:
    return GrantId(hashlib.blake2b(grant.encode(), digest_size=16).hexdigest())
