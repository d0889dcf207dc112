"""The first bytes of a peer's shared memory."""

from isthmus.core.errors import PeerLost, TransferFailed
from isthmus.core.ids import RegionId
from isthmus.core.limits import SHM_HEADER_BYTES
from isthmus.state.fields import RegionShape
from isthmus.transport.shm._header import Header, PlacedRegion, read_header, write_header

REFUSALS = (PeerLost, TransferFailed)
STAMP = "c" * 32
FILE_BYTES = SHM_HEADER_BYTES + 4096


def seeds() -> list[bytes]:
    memory = bytearray(SHM_HEADER_BYTES)
    shape = RegionShape(id=RegionId("g0.tp0.kv"), outer=2, block_bytes=64)
    header = Header(num_blocks=8, regions=(PlacedRegion(shape=shape, offset=SHM_HEADER_BYTES),))
    write_header(memoryview(memory), header, STAMP)
    return [bytes(memory).rstrip(b"\0")]


def parse(data: bytes) -> None:
    memory = memoryview(data[:SHM_HEADER_BYTES].ljust(SHM_HEADER_BYTES, b"\0"))
    header = read_header(memory, STAMP, FILE_BYTES)
    for region in header.regions:
        if region.offset + region.shape.size_bytes(header.num_blocks) > FILE_BYTES:
            raise ValueError("a region beyond the file was let through")
