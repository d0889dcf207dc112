"""A prefill worker: consumers dial in and order prefills; the producer's side answers for what it offered."""

import asyncio

from isthmus.core.clock import Clock
from isthmus.core.errors import CapacityExceeded, FrameInvalid, NotAuthorised, PeerLost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.limits import CHANNELS_PER_PEER_MAX, CONNECTIONS_PER_EXPORTER_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.handoff.orders import (
    AbortOrder,
    Ack,
    ConfirmOrder,
    PrefillOrder,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)
from isthmus.handoff.producer import ProducerSide
from isthmus.ownership.protocol.drain import Evidence
from isthmus.serve.channel import Channel
from isthmus.serve.link import Link
from isthmus.serve.messages import Message, PeerHello
from isthmus.serve.worker.membership import Membership
from isthmus.transport.tls import Proof, Tls

__all__ = ["PrefillService"]

Order = PrefillOrder | RegisterOrder | WrittenOrder | ConfirmOrder | RenewOrder | AbortOrder
MEMBERSHIP_DEADLINE = Duration.of_seconds(5)


class PrefillService:
    """Serves consumers that are members, each on its own channel, and frees what a dead one held."""

    def __init__(
        self,
        side: ProducerSide,
        membership: Membership,
        clock: Clock,
        *,
        worker: WorkerId,
        incarnation: Incarnation,
        tls: Tls | None = None,
    ) -> None:
        self._side = side
        self._membership = membership
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._tls = tls
        self._holders: dict[Channel, tuple[WorkerId, Incarnation]] = {}
        self._proofs: dict[Channel, Proof | None] = {}
        self._running: dict[Channel, asyncio.Task[None] | None] = {}
        membership.on_fenced(self._fenced)
        membership.on_exited(self._exited)

    async def accept(self, link: Link) -> None:
        """A consumer has connected."""
        channel = Channel(link, self._clock, handler=self._handle, posted=self._posted)
        if len(self._running) >= CONNECTIONS_PER_EXPORTER_MAX:
            channel.close("too many connections")
            return
        self._running[channel] = asyncio.current_task()
        try:
            await channel.serve()
        finally:
            self._holders.pop(channel, None)
            self._proofs.pop(channel, None)
            self._running.pop(channel, None)

    async def _handle(self, channel: Channel, message: Message) -> Message:
        if isinstance(message, PeerHello):
            return await self._greet(channel, message)
        if channel not in self._holders:
            raise FrameInvalid(f"call: {type(message).__name__} before PeerHello", field="call")
        if isinstance(message, Order):
            self._check_holder(channel, message)
        match message:
            case PrefillOrder():
                return await self._side.prefill(message)
            case ConfirmOrder():
                return await self._side.confirm(message)
            case RegisterOrder():
                await self._side.register(message)
            case WrittenOrder():
                await self._side.written(message)
            case RenewOrder():
                await self._side.renew(message)
            case AbortOrder():
                await self._side.abort(message)
            case _:
                raise FrameInvalid(f"call: a consumer does not call {type(message).__name__}", field="call")
        return Ack()

    async def _greet(self, channel: Channel, hello: PeerHello) -> Message:
        """Only members are served, and only those that mean this very life of this worker."""
        if (hello.to, hello.to_incarnation) != (self._worker, self._incarnation):
            raise PeerLost(
                f"to: {hello.to} of another incarnation was meant, this is {self._worker}", field="to_incarnation"
            )
        holder = (WorkerId(hello.worker), Incarnation(hello.incarnation))
        self._proofs[channel] = channel.prove(self._tls, holder[0])
        if sum(held == holder for held in self._holders.values()) >= CHANNELS_PER_PEER_MAX:
            raise CapacityExceeded(f"channels: {CHANNELS_PER_PEER_MAX} of {holder[0]} are open", field="channels")
        await within(self._clock, MEMBERSHIP_DEADLINE, self._membership.wait_for(*holder), f"membership of {holder[0]}")
        channel.peer, channel.greeted = holder[0], True
        self._holders[channel] = holder
        return Ack()

    def _check_holder(self, channel: Channel, order: Order) -> None:
        """A peer speaks for itself only."""
        if (order.holder, order.holder_incarnation) != self._holders[channel]:
            raise NotAuthorised(f"holder: {self._holders[channel][0]} cannot speak for {order.holder}", field="holder")
        proof = self._proofs.get(channel)
        if proof is not None and isinstance(order, PrefillOrder):
            proof.check_tenant(order.request.tenant)  # I7

    def _posted(self, channel: Channel, message: Message) -> None:
        raise FrameInvalid(f"post: a consumer does not post {type(message).__name__}", field="post")

    async def _fenced(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """Proof of death is both: the registry's fence, and no connection left by which it could still act."""
        channels = [channel for channel, holder in self._holders.items() if holder == (worker, incarnation)]
        running = [task for channel in channels if (task := self._running.get(channel)) is not None]
        for channel in channels:
            channel.close("its incarnation was fenced")
        if running:
            await asyncio.wait(running)
        await self._side.peer_lost(worker, incarnation)

    async def _exited(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """The kernel says that the process is gone, and with it every mapping and socket: proof on any transport."""
        await self._side.peer_lost(worker, incarnation, Evidence.PROCESS_EXITED)
