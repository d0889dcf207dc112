"""Frames of the TCP data plane: hello, read, write, and what answers them."""

from isthmus.core.errors import FrameInvalid
from isthmus.core.ids import BlockId, Epoch, GrantId, Incarnation, RegionId, WorkerId
from isthmus.core.limits import OFFER_BYTES_MAX
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockRead, BlockWrite, PeerId, Target
from isthmus.transport.tcp import _frames
from isthmus.transport.tcp._frames import Granted, Hello, ReadBlocks, Ready, Refusal, Welcome, WriteBlocks, Written

REFUSALS = (FrameInvalid,)
DECODERS = [found for name, found in sorted(vars(_frames).items()) if name.startswith("decode_")]
PEER = PeerId(worker=WorkerId("w"), incarnation=Incarnation("a" * 32))
REGIONS = (RegionShape(id=RegionId("g0.tp0.kv"), outer=2, block_bytes=64),)
GRANT = GrantId("b" * 64)


def seeds() -> list[bytes]:
    read = BlockRead(
        grant=GRANT,
        epoch=Epoch(1),
        reader=WorkerId("w"),
        regions=REGIONS,
        blocks=(BlockId(3), BlockId(1)),
        num_blocks=9,
    )
    target = Target(grant=GRANT, epoch=Epoch(1), writer=WorkerId("w"), regions=REGIONS, num_blocks=4)
    frames = [
        Hello(version=1, reader=PEER, server=PEER),
        Welcome(version=1, server=PEER),
        ReadBlocks(read=read, deadline_ms=1000),
        Granted(size_bytes=256),
        WriteBlocks(write=BlockWrite(target=target, start=1, stop=3), deadline_ms=1000),
        Ready(size_bytes=256),
        Written(size_bytes=256),
        Refusal(code="StaleEpoch", message="ended", field="epoch"),
    ]
    return [_frames.encode_frame(frame)[_frames.LENGTH_BYTES :] for frame in frames]


def parse(data: bytes) -> None:
    refused = 0
    for decode in DECODERS:
        try:
            decode(data)
        except FrameInvalid:
            refused += 1
    length = _frames.frame_length(data[: _frames.LENGTH_BYTES], OFFER_BYTES_MAX)
    if not 1 <= length <= OFFER_BYTES_MAX:
        raise ValueError("a length out of bounds was let through")
