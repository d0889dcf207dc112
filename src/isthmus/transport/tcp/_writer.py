"""The producer's side of writes: asks, sends, and is told when the last byte is in the image."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from isthmus.core.clock import Clock
from isthmus.core.errors import FrameInvalid, TransferFailed, Unsupported, error_named
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, CONTROL_FRAME_BYTES_MAX, WRITE_MS_MAX
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.transport.base import BlockWrite, Endpoint, Lender, PeerId, TcpEndpoint
from isthmus.transport.images import check_lent
from isthmus.transport.tcp._frames import (
    Refusal,
    WriteBlocks,
    decode_readiness,
    decode_written,
    encode_frame,
)
from isthmus.transport.tcp._lend import send_blocks
from isthmus.transport.tcp._pool import ConnectionPool
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import Tls

__all__ = ["TcpWriter"]


class TcpWriter:
    """Writes to other workers' `TcpImporter`s. A write that fails or is cancelled takes its connection with it."""

    def __init__(self, identity: PeerId, clock: Clock, tls: Tls | None = None) -> None:
        self._clock = clock
        self._pool = ConnectionPool(identity, tls)
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS_PER_PEER_MAX, thread_name_prefix="tcp-write")

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, TcpEndpoint)

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, TcpEndpoint):
            raise Unsupported("endpoint: not one of TCP", field="endpoint")
        check_lent(request, lender, blocks)
        # On the wire a deadline is in whole milliseconds, rounded up: it is the writer's own that decides.
        deadline_ms = min(max(1, math.ceil(deadline.ms)), WRITE_MS_MAX)
        frame = encode_frame(WriteBlocks(write=request, deadline_ms=deadline_ms))
        await within(self._clock, deadline, self._write(request, frame, endpoint, lender, blocks), "write over TCP")
        return request.size_bytes

    async def _write(
        self, request: BlockWrite, frame: bytes, endpoint: TcpEndpoint, lender: Lender, blocks: Sequence[int]
    ) -> None:
        async with self._pool.connection(endpoint) as stream:
            in_step = False
            try:
                await stream.send(frame)
                answer = decode_readiness(await _receive_frame(stream))
                if isinstance(answer, Refusal):
                    in_step = True
                    raise error_named(answer.code, answer.message, field=answer.field)
                _check_size(answer.size_bytes, request)
                await send_blocks(stream, lender, request.target.regions, blocks, self._threads)
                _check_size(decode_written(await _receive_frame(stream)).size_bytes, request)
                in_step = True
            except FrameInvalid as error:
                if in_step:
                    raise  # the consumer's word about our frame, not ours about the consumer's
                raise TransferFailed(f"answer: {error}", field="answer") from error
            finally:
                if not in_step:
                    stream.abort()

    def forget(self, endpoint: Endpoint) -> None:
        self._pool.forget(endpoint)

    async def close(self) -> None:
        await self._pool.close()
        self._threads.shutdown()


async def _receive_frame(stream: Stream) -> bytearray:
    return await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX))


def _check_size(got: int, request: BlockWrite) -> None:
    if got != request.size_bytes:
        raise TransferFailed(f"size_bytes: {got}, wanted {request.size_bytes}", field="size_bytes")
