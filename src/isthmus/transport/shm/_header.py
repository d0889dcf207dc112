"""The first bytes of a shared memory: what it is, whose it is, and where its regions lie.

    0   magic "ISTHMUS1"    8   stamp, 16 bytes    24   length of what follows    28   msgpack of `Header`

Written by the owner, in memory that only the owner can write. Read with suspicion all the same: a peer's file.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.core.errors import Bug, PeerLost, TransferFailed
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, POOL_BYTES_MAX, REGIONS_MAX, SHM_HEADER_BYTES
from isthmus.state.fields import RegionShape
from isthmus.state.structs import WireStruct

__all__ = ["Header", "PlacedRegion", "has_stamp", "read_header", "wipe_stamp", "write_header", "write_stamp"]

MAGIC = b"ISTHMUS1"
STAMP = slice(8, 24)
LENGTH = slice(24, 28)
BODY = 28


class PlacedRegion(WireStruct, frozen=True, kw_only=True):
    """A region and the byte of the file it starts at."""

    shape: RegionShape
    offset: Annotated[int, Meta(ge=SHM_HEADER_BYTES, le=POOL_BYTES_MAX)]


class Header(WireStruct, frozen=True, kw_only=True):
    """All regions of one worker."""

    num_blocks: Annotated[int, Meta(ge=1, le=BLOCKS_PER_POOL_MAX)]
    regions: Annotated[tuple[PlacedRegion, ...], Meta(min_length=1, max_length=REGIONS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def write_header(memory: memoryview, header: Header, stamp: str) -> None:
    """Raises Bug where the header does not fit."""
    body = _encoder.encode(header)
    if len(body) > SHM_HEADER_BYTES - BODY:
        raise Bug(f"header: {len(body)} bytes, wanted at most {SHM_HEADER_BYTES - BODY}", field="regions")
    memory[BODY : BODY + len(body)] = body
    memory[LENGTH] = len(body).to_bytes(4, "little")
    write_stamp(memory, stamp)


def write_stamp(memory: memoryview, stamp: str) -> None:
    """From now on this memory is what an endpoint with this stamp says."""
    memory[: len(MAGIC)] = MAGIC
    memory[STAMP] = bytes.fromhex(stamp)


def wipe_stamp(memory: memoryview) -> None:
    """From now on nobody finds this memory to be what an endpoint says."""
    memory[STAMP] = bytes(16)


def has_stamp(memory: memoryview, stamp: str) -> bool:
    return bytes(memory[: STAMP.stop]) == MAGIC + bytes.fromhex(stamp)


def read_header(memory: memoryview, stamp: str, size_bytes: int) -> Header:
    """The header of a mapped file of `size_bytes`.

    Raises:
        PeerLost: the stamp is not the endpoint's: another life of the worker, or another file altogether.
        TransferFailed: the header does not parse, or a region does not lie within the file.
    """
    if not has_stamp(memory, stamp):
        raise PeerLost("endpoint.stamp: the memory there is not the one that was registered", field="endpoint.stamp")
    length = int.from_bytes(memory[LENGTH], "little")
    if length > SHM_HEADER_BYTES - BODY:
        raise TransferFailed(f"header: {length} bytes, wanted at most {SHM_HEADER_BYTES - BODY}", field="header")
    try:
        header = _decoder.decode(memory[BODY : BODY + length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TransferFailed(f"header: {error}", field="header") from error
    for region in header.regions:
        if region.shape.outer < 1 or region.shape.block_bytes < 1:
            raise TransferFailed(f"header: region {region.shape.id} is empty", field="header")
        if region.offset + region.shape.size_bytes(header.num_blocks) > size_bytes:
            raise TransferFailed(f"header: region {region.shape.id} ends after the file", field="header")
    return header
