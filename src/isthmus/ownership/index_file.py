"""One retained payload in one file, which says by itself what it is and can be believed or not by itself.

    magic "ISKVFIL1" · header length (4) · header (msgpack) · payload · XXH3-128 of all before (16)

A file is written under another name, flushed, renamed, and its folder flushed: under its own name it is whole or not
there. What a dying disk or a cut makes of it later, the checksum tells, and the header is under it too: an index with
a flipped bit can then name a wrong file, but no reader takes it for what it is not.

Refuses to know which files there are.
"""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from isthmus.core.errors import Lost
from isthmus.core.limits import INDEX_PAYLOAD_BYTES_MAX
from isthmus.state.structs import WireStruct

__all__ = ["FileHeader", "FileKey", "Stored", "Torn", "file_name", "read_file", "sync_folder", "write_file"]

_MAGIC = b"ISKVFIL1"
_LENGTH_BYTES = 4
_CHECKSUM_BYTES = 16
_HEADER_BYTES_MAX = 4096
TEMPORARY = ".part"

_Short = Annotated[bytes, Meta(min_length=1, max_length=64)]


class FileKey(WireStruct, frozen=True, kw_only=True):
    """What a payload is. Two payloads of one key are the same bytes.

    prefix: the chained hash of the tokens, which is keyed by tenant and identity; `tenant` names the salt, and is no
    secret. identity, representation: digests of what the KV means and of the form it is stored in.
    """

    prefix: _Short
    tenant: _Short
    identity: _Short
    representation: _Short


class FileHeader(WireStruct, frozen=True, kw_only=True):
    """`logical_digest` is of the KV itself, as made when it was filled: whoever installs it holds it against that."""

    key: FileKey
    payload_bytes: Annotated[int, Meta(ge=1)]
    logical_digest: Annotated[int, Meta(ge=0)]
    recompute_ms: Annotated[float, Meta(ge=0.0)]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A payload that has just been read and found whole."""

    header: FileHeader
    payload: bytes
    payload_offset: int
    checksum: bytes


class Torn(Lost):
    """A file is not what it must be: it is to be dropped, and what it held made again."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FileHeader)


def file_name(key: FileKey) -> str:
    """A name for the file of a key: a hash over all of it."""
    return xxhash.xxh3_128_hexdigest(_encoder.encode(key)) + ".kv"


def write_file(folder: Path, header: FileHeader, payload: bytes) -> Stored:
    """Write a payload so that it survives `kill -9` and a power cut, whole or not at all. Raises OSError."""
    name = file_name(header.key)
    encoded = _encoder.encode(header)
    before = _MAGIC + len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded
    digest = xxhash.xxh3_128(before)
    digest.update(payload)
    temporary = folder / (name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            for part in (before, payload, digest.digest()):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / name)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(folder)
    return Stored(header=header, payload=payload, payload_offset=len(before), checksum=digest.digest())


def read_file(path: Path) -> Stored:
    """Read and check a whole file.

    Raises:
        Torn: it is not there, short, long, of another kind, or a bit of it has changed.
    """
    try:
        if path.stat().st_size > INDEX_PAYLOAD_BYTES_MAX + _HEADER_BYTES_MAX:
            raise Torn(f"{path.name}: larger than any payload")
        data = path.read_bytes()
    except OSError as error:
        raise Torn(f"{path.name}: {error.strerror}") from None
    start = len(_MAGIC) + _LENGTH_BYTES
    if len(data) < start + _CHECKSUM_BYTES or not data.startswith(_MAGIC):
        raise Torn(f"{path.name}: not a payload's file")
    body, checksum = memoryview(data)[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if xxhash.xxh3_128_digest(body) != checksum:
        raise Torn(f"{path.name}: its checksum does not hold")
    offset = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    try:
        header = _decoder.decode(body[start:offset])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Torn(f"{path.name}: {error}") from None
    if len(body) - offset != header.payload_bytes:
        raise Torn(f"{path.name}: {len(body) - offset} bytes of payload, wanted {header.payload_bytes}")
    return Stored(header=header, payload=bytes(body[offset:]), payload_offset=offset, checksum=checksum)


def sync_folder(folder: Path) -> None:
    """What was renamed or removed in `folder` stays so after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
