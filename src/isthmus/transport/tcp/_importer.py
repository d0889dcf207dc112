"""The consumer's side of writes: it listens, and receives straight into the image that a grant names.

Only our own loops touch the images. So `withdraw`, which ends those that receive for a grant and waits for them, proves
that nothing writes any more, whatever is still on its way in sockets (I2).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, GrantUnknown, IsthmusError, NotAuthorised
from isthmus.core.ids import GrantId, RegionId
from isthmus.core.limits import CONTROL_FRAME_BYTES_MAX, POOL_BYTES_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, within
from isthmus.transport.base import BlockWrite, PeerId, Target, WriteGuard
from isthmus.transport.images import allocate_image, check_target, pieces_of
from isthmus.transport.tcp._frames import Ready, Written, decode_write, encode_frame
from isthmus.transport.tcp._server import FRAME_DURATION_MAX, TcpServer
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import Tls

__all__ = ["TcpImporter"]


@dataclass(slots=True, kw_only=True, eq=False)
class _Exposed:
    """A target, its image, and the conversations that receive into it. Not open: it is being withdrawn."""

    target: Target
    image: Mapping[RegionId, memoryview]
    receiving: set["asyncio.Task[None]"] = field(default_factory=set)
    open: bool = True


class TcpImporter(TcpServer):
    """Receives blocks from whom its guard allows, into images that are exposed."""

    def __init__(
        self,
        identity: PeerId,
        guard: WriteGuard,
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
        self._guard = guard
        self._exposed: dict[GrantId, _Exposed] = {}

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        if target.grant in self._exposed:
            raise Bug("grant: it has a target already", field="grant")
        exposed = _Exposed(target=target, image=allocate_image(target))
        self._exposed[target.grant] = exposed
        return exposed.image

    async def withdraw(self, grant: GrantId) -> bool:
        exposed = self._exposed.get(grant)
        if exposed is None:
            return True
        exposed.open = False
        receiving = tuple(exposed.receiving)
        for conversation in receiving:
            conversation.cancel()
        for conversation in receiving:
            await settle(conversation)
        self._exposed.pop(grant, None)
        return True

    async def close(self) -> None:
        await super().close()
        self._exposed.clear()

    async def _serve(self, stream: Stream, peer: PeerId) -> None:
        length = await stream.receive_length(CONTROL_FRAME_BYTES_MAX)
        body = await within(self._clock, FRAME_DURATION_MAX, stream.receive_body(length), "request")
        frame = decode_write(body)
        try:
            exposed = self._admit(frame.write, peer)
        except Bug:
            raise
        except IsthmusError as error:
            await self._refuse(stream, error)
            return
        conversation = asyncio.current_task()
        if conversation is None:
            raise Bug("a conversation is a task", field="conversation")
        # From here on `withdraw` waits for us; in one turn with the guard's yes, so that none slips through between.
        exposed.receiving.add(conversation)
        try:
            receiving = self._receive(stream, frame.write, exposed.image)
            await within(self._clock, Duration.of_ms(frame.deadline_ms), receiving, "write")
        finally:
            exposed.receiving.discard(conversation)
        await stream.send(encode_frame(Written(size_bytes=frame.write.size_bytes)))

    def _admit(self, write: BlockWrite, peer: PeerId) -> _Exposed:
        target = write.target
        if target.writer != peer.worker:
            raise NotAuthorised(f"writer: {target.writer}, but {peer.worker} said hello", field="writer")
        self._guard.check_write(target.grant, target.epoch, target.writer)
        exposed = self._exposed.get(target.grant)
        if exposed is None or not exposed.open:
            raise GrantUnknown("grant: nothing is exposed under it", field="grant")
        check_target(write, exposed.target)
        return exposed

    async def _receive(self, stream: Stream, write: BlockWrite, image: Mapping[RegionId, memoryview]) -> None:
        await stream.send(encode_frame(Ready(size_bytes=write.size_bytes)))
        for region in write.target.regions:
            for piece in pieces_of(region, write, POOL_BYTES_MAX):
                await stream.receive(image[region.id][piece.start : piece.stop])
