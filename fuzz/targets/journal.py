"""Journals of ownership events, as `isthmus verify trace` reads them. Broken chains are mended, to parse more."""

from tests.security.journals import a_journal

from fuzz.files import file_of
from isthmus.core.clock import ManualClock
from isthmus.core.errors import Rejected
from isthmus.ownership.journal import FRAME, FRAMES_START, LENGTH, LOST, MAGIC, framed
from isthmus.ownership.trace import validate

REFUSALS = (Rejected,)


def seeds() -> list[bytes]:
    journal = a_journal(ManualClock(1))
    return [journal, journal[FRAMES_START:]]


def parse(data: bytes) -> None:
    for content in (data, MAGIC + LOST.pack(0) + mended(data)):
        validate([file_of(content, "w.journal")])


def mended(data: bytes) -> bytes:
    """The frames of `data` with checks and chains that hold."""
    at, chain, frames = 0, 0, b""
    while len(data) - at > FRAME.size:
        length = min(LENGTH.unpack_from(data, at)[0] & 0xFFFF, len(data) - at - FRAME.size)
        body = data[at + FRAME.size : at + FRAME.size + length]
        frame, chain = framed(body, chain)
        frames += frame
        at += FRAME.size + length
    return frames
