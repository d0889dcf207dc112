"""The consumer's side of reads: asks, and receives straight into the staging buffer."""

import math
from collections.abc import Mapping

from isthmus.core.clock import Clock
from isthmus.core.errors import FrameInvalid, TransferFailed, Unsupported, error_named
from isthmus.core.ids import RegionId
from isthmus.core.limits import CONTROL_FRAME_BYTES_MAX, READ_MS_MAX
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.transport.base import BlockRead, Endpoint, PeerId, TcpEndpoint
from isthmus.transport.blocks import check_staging
from isthmus.transport.tcp._frames import ReadBlocks, Refusal, decode_answer, encode_frame
from isthmus.transport.tcp._pool import ConnectionPool
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import Tls

__all__ = ["TcpReader"]


class TcpReader:
    """Reads from other workers' `TcpExporter`s. A read that fails or is cancelled takes its connection with it."""

    def __init__(self, identity: PeerId, clock: Clock, tls: Tls | None = None) -> None:
        self._clock = clock
        self._pool = ConnectionPool(identity, tls)

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, TcpEndpoint)

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, TcpEndpoint):
            raise Unsupported("endpoint: not one of TCP", field="endpoint")
        staging = check_staging(request, into)
        # On the wire a deadline is in whole milliseconds, rounded up: it is the reader's own that decides.
        deadline_ms = min(max(1, math.ceil(deadline.ms)), READ_MS_MAX)
        frame = encode_frame(ReadBlocks(read=request, deadline_ms=deadline_ms))
        return await within(self._clock, deadline, self._read(request, frame, endpoint, staging), "read over TCP")

    async def _read(
        self, request: BlockRead, frame: bytes, endpoint: TcpEndpoint, staging: Mapping[RegionId, memoryview]
    ) -> ByteCount:
        async with self._pool.connection(endpoint) as stream:
            await _transfer(stream, request, frame, staging)
        return request.size_bytes

    def forget(self, endpoint: Endpoint) -> None:
        self._pool.forget(endpoint)

    async def close(self) -> None:
        await self._pool.close()


async def _transfer(stream: Stream, request: BlockRead, frame: bytes, staging: Mapping[RegionId, memoryview]) -> None:
    """Ask, and receive. Leaves the stream open only where it is in step: after all bytes, or after a refusal."""
    in_step = False
    try:
        await stream.send(frame)
        answer = decode_answer(await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX)))
        if isinstance(answer, Refusal):
            in_step = True
            raise error_named(answer.code, answer.message, field=answer.field)
        if answer.size_bytes != request.size_bytes:
            raise TransferFailed(f"size_bytes: {answer.size_bytes}, wanted {request.size_bytes}", field="size_bytes")
        for region in request.regions:
            await stream.receive(staging[region.id])
        in_step = True
    except FrameInvalid as error:
        if in_step:
            raise  # the owner's word about our frame, not ours about the owner's
        raise TransferFailed(f"answer: {error}", field="answer") from error
    finally:
        if not in_step:
            stream.abort()
