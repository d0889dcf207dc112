"""Control frames: four bytes of length, big-endian, then msgpack of one struct. Bytes of blocks are not framed.

Reading: Hello, Welcome; then ReadBlocks, Granted, bytes. Writing: Hello, Welcome; then WriteBlocks, Ready, bytes,
Written. A Refusal may stand in place of any answer.

Length is checked before anything is allocated, unknown fields are refused.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from isthmus.core.errors import FrameInvalid
from isthmus.core.limits import CONTROL_FRAME_BYTES_MAX, NAME_CHARS_MAX, OFFER_BYTES_MAX, READ_MS_MAX, WRITE_MS_MAX
from isthmus.state.structs import WireStruct
from isthmus.transport.base import BlockRead, BlockWrite, PeerId

__all__ = [
    "LENGTH_BYTES",
    "PROTOCOL_VERSION",
    "Granted",
    "Hello",
    "ReadBlocks",
    "Ready",
    "Refusal",
    "Welcome",
    "WriteBlocks",
    "Written",
    "decode_answer",
    "decode_greeting",
    "decode_hello",
    "decode_read",
    "decode_readiness",
    "decode_write",
    "decode_written",
    "encode_frame",
    "frame_length",
]

PROTOCOL_VERSION = 1
LENGTH_BYTES = 4

Frame = TypeVar("Frame")


class Hello(WireStruct, frozen=True, kw_only=True, tag="hello"):
    """The first frame on a connection. `server` is whom the caller, who reads or writes, wants: a life, no address."""

    version: int
    reader: PeerId
    server: PeerId


class Welcome(WireStruct, frozen=True, kw_only=True, tag="welcome"):
    """The server is who the reader wants, and speaks its version."""

    version: int
    server: PeerId


class ReadBlocks(WireStruct, frozen=True, kw_only=True, tag="read"):
    """Send these blocks. After `deadline_ms` from its receipt nobody waits for them any more."""

    read: BlockRead
    deadline_ms: Annotated[int, Meta(ge=1, le=READ_MS_MAX)]


class Granted(WireStruct, frozen=True, kw_only=True, tag="granted"):
    """`size_bytes` bytes follow: each region's [outer, blocks, block_bytes], in the request's order."""

    size_bytes: Annotated[int, Meta(ge=1)]


class WriteBlocks(WireStruct, frozen=True, kw_only=True, tag="write"):
    """May I send these blocks? They are given up where they have not all come `deadline_ms` after this."""

    write: BlockWrite
    deadline_ms: Annotated[int, Meta(ge=1, le=WRITE_MS_MAX)]


class Ready(WireStruct, frozen=True, kw_only=True, tag="ready"):
    """Send `size_bytes` bytes: each region's [outer, stop - start, block_bytes], in the target's order."""

    size_bytes: Annotated[int, Meta(ge=1)]


class Written(WireStruct, frozen=True, kw_only=True, tag="written"):
    """The last byte is in the image."""

    size_bytes: Annotated[int, Meta(ge=1)]


class Refusal(WireStruct, frozen=True, kw_only=True, tag="refusal"):
    """An error by its name in `core.errors`. No bytes follow."""

    code: Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
    message: Annotated[str, Meta(max_length=CONTROL_FRAME_BYTES_MAX // 8)]
    field: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] = ""


_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_read_decoder = msgspec.msgpack.Decoder(ReadBlocks)
_greeting_decoder: msgspec.msgpack.Decoder[Welcome | Refusal] = msgspec.msgpack.Decoder(Welcome | Refusal)
_answer_decoder: msgspec.msgpack.Decoder[Granted | Refusal] = msgspec.msgpack.Decoder(Granted | Refusal)
_write_decoder = msgspec.msgpack.Decoder(WriteBlocks)
_readiness_decoder: msgspec.msgpack.Decoder[Ready | Refusal] = msgspec.msgpack.Decoder(Ready | Refusal)
_written_decoder = msgspec.msgpack.Decoder(Written)


def encode_frame(frame: WireStruct) -> bytes:
    """The frame with its length in front.

    Raises:
        FrameInvalid: it is larger than a peer would take.
    """
    body = _encoder.encode(frame)
    if len(body) > OFFER_BYTES_MAX:
        raise FrameInvalid(f"frame: {len(body)} bytes, wanted at most {OFFER_BYTES_MAX}", field="frame")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frame_length(prefix: bytes | bytearray, bytes_max: int) -> int:
    """The length that a prefix announces.

    Raises:
        FrameInvalid: more than `bytes_max`, or nothing.
    """
    length = int.from_bytes(prefix, "big")
    if not 1 <= length <= bytes_max:
        raise FrameInvalid(f"frame: {length} bytes announced, wanted 1 to {bytes_max}", field="frame")
    return length


def decode_hello(body: bytes | bytearray) -> Hello:
    """Raises FrameInvalid, as do all the others."""
    return _decode(_hello_decoder, body, "hello")


def decode_read(body: bytes | bytearray) -> ReadBlocks:
    return _decode(_read_decoder, body, "read")


def decode_greeting(body: bytes | bytearray) -> Welcome | Refusal:
    return _decode(_greeting_decoder, body, "welcome")


def decode_answer(body: bytes | bytearray) -> Granted | Refusal:
    return _decode(_answer_decoder, body, "answer")


def decode_write(body: bytes | bytearray) -> WriteBlocks:
    return _decode(_write_decoder, body, "write")


def decode_readiness(body: bytes | bytearray) -> Ready | Refusal:
    return _decode(_readiness_decoder, body, "answer")


def decode_written(body: bytes | bytearray) -> Written:
    return _decode(_written_decoder, body, "answer")


def _decode(decoder: "msgspec.msgpack.Decoder[Frame]", body: bytes | bytearray, what: str) -> Frame:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(f"{what}: {error}"[: CONTROL_FRAME_BYTES_MAX // 8], field=what) from error
