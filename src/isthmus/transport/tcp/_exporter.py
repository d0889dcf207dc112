"""The producer's side of reads: asks the guard, and sends."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from isthmus.core.clock import Clock
from isthmus.core.errors import (
    Bug,
    GrantUnknown,
    IsthmusError,
    NotAuthorised,
    Rejected,
    StaleEpoch,
    TransferFailed,
)
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, OFFER_BYTES_MAX, READS_PER_EXPORTER_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.transport.base import BlockRead, Guard, Lender, PeerId
from isthmus.transport.blocks import check_shapes
from isthmus.transport.tcp._frames import Granted, decode_read, encode_frame
from isthmus.transport.tcp._lend import send_blocks
from isthmus.transport.tcp._server import FRAME_DURATION_MAX, TcpServer
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import Tls

__all__ = ["TcpExporter"]


class TcpExporter(TcpServer):
    """Serves a lender's blocks to whom its guard allows."""

    def __init__(
        self,
        identity: PeerId,
        lender: Lender,
        guard: Guard,
        clock: Clock,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        advertised_port: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(
            identity,
            clock,
            host=host,
            port=port,
            advertised_host=advertised_host,
            advertised_port=advertised_port,
            tls=tls,
        )
        self._lender = lender
        self._guard = guard
        self._reads = asyncio.Semaphore(READS_PER_EXPORTER_MAX)
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS_PER_PEER_MAX, thread_name_prefix="tcp-lend")

    async def close(self) -> None:
        await super().close()
        self._threads.shutdown()

    async def _serve(self, stream: Stream, peer: PeerId) -> None:
        length = await stream.receive_length(OFFER_BYTES_MAX)
        # Taken before the frame is allocated, so that large frames are bounded as reads are.
        async with self._reads:
            await self._answer(stream, peer, length)

    async def _answer(self, stream: Stream, reader: PeerId, length: int) -> None:
        """One request: refused by name, or served."""
        body = await within(self._clock, FRAME_DURATION_MAX, stream.receive_body(length), "request")
        frame = decode_read(body)
        try:
            self._admit(frame.read, reader)
        except Bug:
            raise
        except IsthmusError as error:
            await self._refuse(stream, error)
            return
        try:
            await within(self._clock, Duration.of_ms(frame.deadline_ms), self._send(stream, frame.read), "read")
        except Rejected as error:
            # Bytes are on their way: a refusal sent now would arrive as somebody's KV.
            raise Bug(f"lender: refused what the guard had allowed: {error}", field=error.field) from error

    def _admit(self, read: BlockRead, reader: PeerId) -> None:
        if read.reader != reader.worker:
            raise NotAuthorised(f"reader: {read.reader}, but {reader.worker} said hello", field="reader")
        self._guard.check_read(read.grant, read.epoch, read.reader, read.blocks)
        check_shapes(read, self._lender.regions, self._lender.num_blocks)

    async def _send(self, stream: Stream, read: BlockRead) -> None:
        await stream.send(encode_frame(Granted(size_bytes=read.size_bytes)))

        def still_ours(blocks: Sequence[int]) -> None:
            try:
                self._guard.check_read(read.grant, read.epoch, read.reader, blocks)
            except (GrantUnknown, NotAuthorised, StaleEpoch) as error:
                raise TransferFailed("grant: ended while its bytes were on their way", field="grant") from error

        await send_blocks(stream, self._lender, read.regions, read.blocks, self._threads, still_ours)
