"""The side that serves. What comes from the network is parsed, bounded and refused; none of it ends the server."""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor

from isthmus.core.clock import Clock
from isthmus.core.errors import (
    Bug,
    CapacityExceeded,
    DeadlineExceeded,
    FrameInvalid,
    IsthmusError,
    Lost,
    NotAuthorised,
    PeerLost,
    Rejected,
)
from isthmus.core.limits import (
    CONNECTIONS_PER_EXPORTER_MAX,
    CONNECTIONS_PER_PEER_MAX,
    CONTROL_FRAME_BYTES_MAX,
    FRAME_MS_MAX,
    NAME_CHARS_MAX,
    OFFER_BYTES_MAX,
    READS_PER_EXPORTER_MAX,
    TCP_CHUNK_BYTES,
)
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, within
from isthmus.transport.base import BlockRead, Endpoint, Guard, Lender, PeerId, TcpEndpoint
from isthmus.transport.blocks import check_shapes, chunks_of, copy_chunk
from isthmus.transport.tcp._frames import (
    PROTOCOL_VERSION,
    Granted,
    ReadBlocks,
    Refusal,
    Welcome,
    decode_hello,
    decode_read,
    encode_frame,
)
from isthmus.transport.tcp._stream import Stream

__all__ = ["TcpExporter"]

FRAME_DURATION_MAX = Duration.of_ms(FRAME_MS_MAX)


class TcpExporter:
    """Serves a lender's blocks to whom its guard allows.

    An error of ours (a `Bug`, a lender that fails) ends that connection and goes to the event loop's exception
    handler, where the process decides to stop.
    """

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
    ) -> None:
        """Listens on `host`; peers are told the `advertised_` ones where those are others. Port 0 is any free one."""
        self._identity = identity
        self._lender = lender
        self._guard = guard
        self._clock = clock
        self._host, self._port = host, port
        self._advertised_host = advertised_host or host
        self._advertised_port = advertised_port
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()
        self._reads = asyncio.Semaphore(READS_PER_EXPORTER_MAX)
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS_PER_PEER_MAX, thread_name_prefix="tcp-lend")

    async def start(self) -> Endpoint:
        """Raises OSError where the address is not to be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Stream(self._accept), self._host, self._port)
        port = self._advertised_port or self._server.sockets[0].getsockname()[1]
        return TcpEndpoint(host=self._advertised_host, port=port, peer=self._identity)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        conversations = tuple(self._conversations)
        for conversation in conversations:
            conversation.cancel()
        for conversation in conversations:
            await settle(conversation)
        self._threads.shutdown()

    def _accept(self, stream: Stream) -> None:
        taken = len(self._conversations)
        if taken >= 2 * CONNECTIONS_PER_EXPORTER_MAX:
            stream.abort()  # not even time for a word
            return
        full = taken >= CONNECTIONS_PER_EXPORTER_MAX
        conversation = asyncio.create_task(self._converse(stream, full=full))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._ended)

    def _ended(self, conversation: "asyncio.Task[None]") -> None:
        self._conversations.discard(conversation)
        error = None if conversation.cancelled() else conversation.exception()
        if error is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a transport conversation failed", "exception": error, "task": conversation}
            )

    async def _converse(self, stream: Stream, *, full: bool) -> None:
        """One connection, from the hello to its end; where the server is full, to the refusal of it."""
        try:
            reader = await within(self._clock, FRAME_DURATION_MAX, self._greet(stream, full=full), "hello")
            while True:
                length = await stream.receive_length(OFFER_BYTES_MAX)
                # Taken before the frame is allocated, so that large frames are bounded as reads are.
                async with self._reads:
                    await self._answer(stream, reader, length)
        except (PeerLost, DeadlineExceeded):
            pass  # the peer left, or did not say what it wanted; it knows
        except Rejected as error:
            await self._refuse(stream, error)
            await stream.finish()
        finally:
            if not stream.closed:
                stream.abort()

    async def _greet(self, stream: Stream, *, full: bool) -> PeerId:
        """Who the reader says it is. Raises Rejected where it wants somebody else, or speaks another version."""
        hello = decode_hello(await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX)))
        if full:
            raise CapacityExceeded(f"connections: {CONNECTIONS_PER_EXPORTER_MAX} are open", field="connections")
        if hello.version != PROTOCOL_VERSION:
            raise FrameInvalid(f"version: {hello.version}, spoken here: {PROTOCOL_VERSION}", field="version")
        if hello.server != self._identity:
            raise NotAuthorised("server: another worker, or another life of it, lives here", field="server")
        await stream.send(encode_frame(Welcome(version=PROTOCOL_VERSION, server=self._identity)))
        return hello.reader

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
            await within(self._clock, Duration.of_ms(frame.deadline_ms), self._send(stream, frame), "read")
        except Rejected as error:
            # Bytes are on their way: a refusal sent now would arrive as somebody's KV.
            raise Bug(f"lender: refused what the guard had allowed: {error}", field=error.field) from error

    def _admit(self, read: BlockRead, reader: PeerId) -> None:
        if read.reader != reader.worker:
            raise NotAuthorised(f"reader: {read.reader}, but {reader.worker} said hello", field="reader")
        self._guard.check_read(read.grant, read.epoch, read.reader, read.blocks)
        check_shapes(read, self._lender.regions, self._lender.num_blocks)

    async def _send(self, stream: Stream, frame: ReadBlocks) -> None:
        """The blocks, in chunks: one is copied out of the lender, in a thread, while the one before is on its way."""
        read = frame.read
        loop = asyncio.get_running_loop()
        largest = max(TCP_CHUNK_BYTES, *(region.block_bytes for region in read.regions))
        largest = min(largest, max(region.size_bytes(len(read.blocks)) for region in read.regions))
        buffers = (memoryview(bytearray(largest)), memoryview(bytearray(largest)))
        ready: bytes | memoryview = encode_frame(Granted(size_bytes=read.size_bytes))
        chunks = ((region, c) for region in read.regions for c in chunks_of(region, len(read.blocks), TCP_CHUNK_BYTES))
        for number, (region, chunk) in enumerate(chunks):
            buffer = buffers[number % 2][: chunk.stop - chunk.start]
            copy = functools.partial(copy_chunk, self._lender, read, region, chunk, buffer)
            copying = loop.run_in_executor(self._threads, copy)
            try:
                await stream.send(ready)
            finally:
                await settle(copying)  # whatever happens: no thread of ours reads the lender after we have ended
            copying.result()
            ready = buffer
        await stream.send(ready)

    async def _refuse(self, stream: Stream, error: IsthmusError) -> None:
        refusal = Refusal(
            code=error.code,
            message=str(error)[: CONTROL_FRAME_BYTES_MAX // 8],
            field=error.field[:NAME_CHARS_MAX],
        )
        try:
            await within(self._clock, FRAME_DURATION_MAX, stream.send(encode_frame(refusal)), "refusal")
        except Lost:
            stream.abort()  # the peer does not want to know
