"""A worker that only pretends: registers like one, and then says what a test wants it to say."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from isthmus.core.clock import SystemClock
from isthmus.core.units import Duration
from isthmus.handoff.orders import Ack, PrefillOrder
from isthmus.serve.channel import Channel, connect
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Hello, Member, Message, Pulse, Snapshot, SnapshotOrder
from isthmus.serve.processes import this_process
from isthmus.state.identity import Identity
from isthmus.state.manifest import SCHEMA_VERSIONS_SPOKEN
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import PeerId, TcpEndpoint
from tests.serve.fleet import Fleet

__all__ = ["Rogue"]

CLOCK = SystemClock()
Reply = Callable[[PrefillOrder], Awaitable[Message]]


async def _nothing(_: PrefillOrder) -> Message:
    return Ack()


async def _pulse(channel: Channel) -> None:
    while not channel.closed:
        channel.post(Pulse())
        await CLOCK.sleep(Duration.of_ms(200))


class Rogue:
    """A prefill worker without an engine. It says of itself what a real one of the fleet does."""

    def __init__(self, fleet: Fleet, name: str = "rogue-0", reply: Reply = _nothing) -> None:
        self._fleet = fleet
        self._reply = reply
        self.name = name
        self.incarnation = CLOCK.token()
        self.asked: list[PrefillOrder] = []
        self.channels: list[Channel] = []
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Rogue":
        self._server = await listen(self._accept, "127.0.0.1", 0, tls=None)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for channel in self.channels:
            channel.close()
        if self._running:
            await asyncio.wait(self._running)

    async def register(self, like: str = "prefill-0", **changes: Any) -> Message:
        """Dial the gateway and say hello; the gateway's answer, or the error it answers with."""
        gateway = self._fleet.config.gateway
        channel = await connect(
            gateway.host,
            gateway.control_port,
            CLOCK,
            handler=self._called,
            posted=lambda *_: None,
            peer="gateway",
            deadline=Duration.of_seconds(5),
        )
        self.channels.append(channel)
        self._running.append(asyncio.create_task(channel.run()))
        member = msgspec.structs.replace(await self.member(like), **changes)
        welcome = await channel.call(Hello(member=member, schema_versions=SCHEMA_VERSIONS_SPOKEN))
        self._running.append(asyncio.create_task(_pulse(channel)))
        return welcome

    async def member(self, like: str) -> Member:
        """What it says of itself: what the worker `like` says, but for name, life and address."""
        workers = (await self._fleet.client.get("/v1/isthmus/workers")).json()["workers"]
        real = next(worker for worker in workers if worker["worker"] == like)
        peer = PeerId(worker=self.name, incarnation=self.incarnation)
        return Member(
            worker=self.name,
            incarnation=self.incarnation,
            role=real["role"],
            process=this_process(),
            identity=msgspec.convert(real["identity"], Identity),
            representation=msgspec.convert(real["representation"], KVRepresentation),
            num_blocks=real["num_blocks"],
            context_length=real["context_length"],
            host="127.0.0.1",
            port=self._port,
            transports=(),
            endpoints=(TcpEndpoint(host="127.0.0.1", port=self._port, peer=peer),),
        )

    async def _accept(self, link: Link) -> None:
        channel = Channel(link, CLOCK, handler=self._called, posted=lambda *_: None)
        self.channels.append(channel)
        await channel.run()

    async def _called(self, _: Channel, message: Message) -> Message:
        if isinstance(message, PrefillOrder):
            self.asked.append(message)
            return await self._reply(message)
        return Snapshot(json=b"{}") if isinstance(message, SnapshotOrder) else Ack()
