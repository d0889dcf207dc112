"""A consumer's channels to its producers: opened when first needed, closed when the producer's life is over."""

import asyncio

from isthmus.core.clock import Clock, after
from isthmus.core.errors import FrameInvalid, PeerLost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.handoff.remote import Order, RemoteProducer
from isthmus.ownership.leases import left
from isthmus.serve.channel import Channel, connect
from isthmus.serve.messages import Message, PeerHello
from isthmus.serve.worker.membership import Membership
from isthmus.state.manifest import negotiate_version
from isthmus.transport.tls import Tls

__all__ = ["Peers"]

CONNECT_DEADLINE = Duration.of_seconds(5)


class Peers:
    """Producers by life."""

    def __init__(
        self,
        membership: Membership,
        clock: Clock,
        *,
        worker: WorkerId,
        incarnation: Incarnation,
        tls: Tls | None = None,
    ) -> None:
        self._membership = membership
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._tls = tls
        self._channels: dict[tuple[WorkerId, Incarnation], asyncio.Task[Channel]] = {}
        self._running: set[asyncio.Task[None]] = set()
        membership.on_fenced(self._fenced)

    async def producer(self, worker: WorkerId, incarnation: Incarnation) -> RemoteProducer:
        """The producer of this life.

        Raises:
            PeerLost: it is no member, or cannot be reached. DeadlineExceeded: it does not answer.

        A channel that breaks is dialled anew, for what is asked again.
        """
        await self._channel(worker, incarnation)

        async def call(order: Order, deadline: Duration) -> Message:
            ends = after(self._clock.now(), deadline)
            opening = self._channels.get((worker, incarnation))
            if opening is None or not opening.done() or _over(opening):
                channel = await within(self._clock, deadline, self._channel(worker, incarnation), f"dialling {worker}")
            else:
                channel = opening.result()
            return await channel.call(order, left(ends, self._clock.now()))

        return RemoteProducer(call)

    async def _channel(self, worker: WorkerId, incarnation: Incarnation) -> Channel:
        key = (worker, incarnation)
        opening = self._channels.get(key)
        if opening is None or _over(opening):
            opening = asyncio.create_task(self._open(worker, incarnation))
            self._channels[key] = opening
        await asyncio.wait({opening})
        channel = None if opening.cancelled() or opening.exception() else opening.result()
        if channel is None or channel.closed:
            if self._channels.get(key) is opening:
                del self._channels[key]
            if not opening.cancelled():
                opening.result()  # raises why it could not be opened
            raise PeerLost(f"{worker}: its connection closed", field="producer")
        return channel

    async def _open(self, worker: WorkerId, incarnation: Incarnation) -> Channel:
        member = self._membership.find(worker, incarnation)
        version = negotiate_version(member.schema_versions)
        channel = await connect(
            member.host,
            member.port,
            self._clock,
            handler=_refuse_call,
            posted=_refuse_post,
            peer=worker,
            deadline=CONNECT_DEADLINE,
            tls=self._tls,
            version=version,
        )
        running = asyncio.create_task(channel.run())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        hello = PeerHello(
            worker=self._worker,
            incarnation=self._incarnation,
            to=worker,
            to_incarnation=incarnation,
            version=version,
        )
        try:
            # Packets may vanish from here on without a word, and nobody pulses on this channel.
            await within(self._clock, CONNECT_DEADLINE, channel.call(hello), f"hello to {worker}")
        except BaseException:
            channel.close()
            raise
        return channel

    async def _fenced(self, worker: WorkerId, incarnation: Incarnation) -> None:
        opening = self._channels.pop((worker, incarnation), None)
        if opening is None:
            return
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            opening.result().close("its incarnation was fenced")
        else:
            opening.cancel()


def _over(opening: asyncio.Task[Channel]) -> bool:
    """Whether an earlier connection, or the attempt at one, has ended: then it is dialled anew."""
    if not opening.done():
        return False
    return opening.cancelled() or opening.exception() is not None or opening.result().closed


async def _refuse_call(_: Channel, message: Message) -> Message:
    raise FrameInvalid(f"call: a producer does not call {type(message).__name__}", field="call")


def _refuse_post(_: Channel, message: Message) -> None:
    raise FrameInvalid(f"post: a producer does not post {type(message).__name__}", field="post")
