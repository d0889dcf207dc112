"""Reading journals: files of one life put together in order, torn ends told from broken ones, losses and gaps named.

A torn last frame is what `kill -9` may leave, and no fault. A frame that breaks the chain before that is one: somebody
or something removed or altered what was written.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from isthmus.core.errors import BadInput
from isthmus.ownership.journal import FRAME, FRAMES_START, LENGTH, LOST, MAGIC, VERSION, End, Entry, Header

__all__ = ["UNREADABLE", "Life", "journals_in", "read_lives"]

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are none of ours."""

_header_decoder = msgspec.msgpack.Decoder(Header)
_entry_decoder = msgspec.msgpack.Decoder(Entry | End)


@dataclass(slots=True, kw_only=True)
class Life:
    """One life's journal. `gaps` say what is missing; `faults` what is wrong; either is empty where all is well.

    `whole_from_start`: its first file is here, so that every hand-off's beginning is.
    """

    header: Header
    entries: list[Entry] = field(default_factory=list)
    end: End | None = None
    whole_from_start: bool = True
    torn_bytes: int = 0
    lost: int = 0
    gaps: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.header.worker} {self.header.incarnation[:8]}"


def journals_in(paths: Sequence[Path]) -> list[Path]:
    """The journal files named, and those in the folders named, in order of their names.

    Raises:
        BadInput: a path is not there, or nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.rglob("*.journal"))
        elif path.is_file():
            found.append(path)
        else:
            raise BadInput(f"{path}: no such file or folder", field="paths")
    if not found:
        raise BadInput(f"paths: no *.journal in {', '.join(map(str, paths))}", field="paths")
    return found


def read_lives(files: Iterable[Path]) -> tuple[list[Life], list[str]]:
    """Every life, and what is missing because a file holds not even its header."""
    parts: dict[str, list[Life]] = {}
    gaps: list[str] = []
    for file in files:
        part = _read(file)
        if isinstance(part, str):
            gaps.append(part)
        else:
            parts.setdefault(part.header.incarnation, []).append(part)
    return [_joined(sorted(own, key=lambda part: part.header.part)) for own in parts.values()], gaps


def _joined(parts: list[Life]) -> Life:
    """One life of the files of it that are there."""
    life, *others = parts
    life.whole_from_start = life.header.part == 0
    if not life.whole_from_start:
        life.gaps.append(f"its files before number {life.header.part} are not here")
    last = life.header.part
    for part in others:
        if part.header.part != last + 1:
            life.gaps.append(f"its files {last + 1} to {part.header.part - 1} are not here")
        last = part.header.part
        life.entries += part.entries
        life.end = part.end
        life.torn_bytes += part.torn_bytes
        life.lost += part.lost
        life.gaps += part.gaps
        life.faults += part.faults
    return life


def _read(file: Path) -> Life | str:
    """One file; or a word on why it says nothing."""
    data = file.read_bytes()
    if len(data) < FRAMES_START or not data.startswith(MAGIC):
        return f"{file.name}: no journal, or one that ended before its first byte of content"
    (lost,) = LOST.unpack_from(data, len(MAGIC))
    frames = _Frames(data)
    first = next(iter(frames), None)
    if first is None:
        return f"{file.name}: ended before its header was written; {lost} events are lost"
    try:
        header = _header_decoder.decode(first)
    except UNREADABLE as error:
        return f"{file.name}: its header is not one of version {VERSION}: {error}"
    life = Life(header=header, lost=lost)
    if lost:
        life.gaps.append(f"{lost} events and more are lost: the disk did not take them")
    for body in frames:
        try:
            entry = _entry_decoder.decode(body)
        except UNREADABLE as error:
            life.faults.append(f"{file.name}: frame at byte {frames.at}: {error}")
            break
        if isinstance(entry, End):
            life.end = entry
        else:
            life.entries.append(entry)
    life.torn_bytes = frames.torn_bytes
    if frames.broken:
        life.faults.append(f"{file.name}: a frame before byte {frames.at} was removed or altered: the chain is broken")
    return life


class _Frames:
    """The bodies of a file's frames, until its end, a torn one, or a broken one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._chain = 0
        self.at = FRAMES_START
        self.torn_bytes = 0
        self.broken = False

    def __iter__(self) -> Iterator[bytes]:
        while self.at < len(self._data):
            left = len(self._data) - self.at
            if left < FRAME.size:
                self.torn_bytes = left
                return
            length, check, chain = FRAME.unpack_from(self._data, self.at)
            if zlib.crc32(LENGTH.pack(length), self._chain) != check:
                self.broken = True
                return
            if left < FRAME.size + length:
                self.torn_bytes = left
                return
            body = self._data[self.at + FRAME.size : self.at + FRAME.size + length]
            self._chain = zlib.crc32(body, self._chain)
            if self._chain != chain:
                self.broken = True
                return
            self.at += FRAME.size + length
            yield body
