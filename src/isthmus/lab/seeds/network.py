"""Control messages between simulated processes: encoded, carried, lost, doubled, late; and the calls made of them.

Owns which of the two ends of a call learns what. Refuses to know what messages mean. A message to a life that is over
reaches nobody; its caller hears of a closed connection, or nothing.
"""

import asyncio
from dataclasses import dataclass

import msgspec

from isthmus.core.clock import Chance
from isthmus.core.errors import Bug, IsthmusError, PeerLost, error_named
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.handoff.orders import (
    AbortOrder,
    Ack,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)
from isthmus.lab.seeds.loop import Process, VirtualLoop
from isthmus.lab.seeds.mix import Fault, Mix
from isthmus.lab.seeds.transcript import Transcript
from isthmus.serve.messages import CancelRequest, Failure, Generate, TokenEvent

__all__ = ["Life", "Network", "Station"]

Body = (
    PrefillOrder
    | PrefillReply
    | RegisterOrder
    | WrittenOrder
    | ConfirmOrder
    | ConfirmReply
    | RenewOrder
    | AbortOrder
    | Ack
    | Generate
    | TokenEvent
    | CancelRequest
    | Failure
)
Life = tuple[WorkerId, Incarnation]

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A call whose answer has not come."""

    to: Life
    answer: "asyncio.Future[Body]"


class Station:
    """One life of one process on the network: it calls, and is called."""

    def __init__(self, network: "Network", name: WorkerId, incarnation: Incarnation) -> None:
        self.network = network
        self.life: Life = (name, incarnation)
        self.process = Process(name)
        self.shut_out: set[Life] = set()
        self._pending: dict[int, _Pending] = {}
        self._handling: dict[Life, list[asyncio.Task[None]]] = {}

    async def handle(self, caller: Life, message: Body) -> Body:
        """Answer a call."""
        raise NotImplementedError

    def posted(self, sender: Life, message: Body) -> None:
        """Take a message that wants no answer."""
        raise NotImplementedError

    async def call(self, to: Life, message: Body) -> Body:
        """Ask, and return the answer. Raises PeerLost where the connection closes, and what the peer says, by name."""
        number = self.network.next_number()
        answer: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._pending[number] = _Pending(to=to, answer=answer)
        try:
            self.network.carry(self.life, to, number, message, answer=False)
            return await answer
        finally:
            del self._pending[number]

    def post(self, to: Life, message: Body) -> None:
        self.network.carry(self.life, to, 0, message, answer=False)

    def arrive(self, sender: Life, number: int, data: bytes, answer: bool) -> None:
        """A message has come. Runs in this station's own process."""
        if sender in self.shut_out:
            return  # its connection was closed when it was fenced, and it gets no other
        body = _decoder.decode(data)
        if answer:
            pending = self._pending.get(number)
            if pending is None or pending.answer.done():
                return
            if isinstance(body, Failure):
                pending.answer.set_exception(error_named(body.code, body.message, field=body.field))
            else:
                pending.answer.set_result(body)
        elif number:
            task = asyncio.create_task(self._handle(sender, number, body))
            self._handling.setdefault(sender, []).append(task)
        else:
            self.posted(sender, body)

    async def _handle(self, caller: Life, number: int, message: Body) -> None:
        answer: Body
        try:
            answer = await self.handle(caller, message)
        except Bug as bug:
            self.network.transcript.violated("Bug", f"{self.life[0]}: {bug}")
            return
        except IsthmusError as error:
            answer = Failure(code=error.code, message=str(error), field=error.field)
        except Exception as error:
            self.network.transcript.violated("unexpected", f"{self.life[0]}: {type(error).__name__}: {error}")
            return
        self.network.carry(self.life, caller, number, answer, answer=True)

    def lose(self, peer: Life, reason: str) -> None:
        """The connection with a peer is closed: calls fail, and what the peer has called is cancelled."""
        for pending in list(self._pending.values()):
            if pending.to == peer and not pending.answer.done():
                pending.answer.set_exception(PeerLost(f"{peer[0]}: {reason}", field="channel"))
        for task in self._handling.get(peer, ()):
            task.cancel()

    async def ended(self, peer: Life) -> None:
        """Return when nothing that the peer has called runs any more."""
        running = [task for task in self._handling.pop(peer, ()) if not task.done()]
        if running:
            await asyncio.wait(running)


class Network:
    """The ways between stations, by name: a name leads to the latest life that has it."""

    def __init__(self, loop: VirtualLoop, chance: Chance, mix: Mix, transcript: Transcript) -> None:
        self.transcript = transcript
        self.healed = False
        self._loop = loop
        self._chance = chance
        self._mix = mix
        self._stations: dict[str, Station] = {}
        self._cut: dict[tuple[str, str], int] = {}
        self._last: dict[tuple[Life, Life], int] = {}
        self._number = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def join(self, station: Station) -> None:
        self._stations[station.life[0]] = station

    def cut(self, sender: str, receiver: str, duration: Duration) -> None:
        """What `sender` sends to `receiver` is lost, for so long."""
        self._cut[sender, receiver] = self._loop.now + duration.ns

    def heal(self) -> None:
        """From now on messages arrive."""
        self.healed = True
        self._cut.clear()

    def sever(self, one: Station, other: Station) -> None:
        """The connection between two breaks; the next message opens another."""
        for station, peer in ((one, other), (other, one)):
            self._loop.call_in_of(station.process, 0, station.lose, peer.life, "the connection broke")

    def gone(self, life: Life) -> None:
        """A process has ended: who waits for it hears so, sooner or later, or (its machine has died) does not."""
        for station in self._stations.values():
            if station.life != life and (self.healed or self._chance.happens(0.7)):
                delay = self._latency() if self._chance.happens(0.7) else self._mix.lease.ns
                self._loop.call_in_of(station.process, delay, station.lose, life, "the process has ended")

    def carry(self, sender: Life, to: Life, number: int, message: Body, *, answer: bool) -> None:
        """Take a message on its way, which is where it may go wrong."""
        what = type(message).__name__
        self.transcript.note(sender[0], f"{'answers' if answer else 'sends'} {to[0]} {what}", number)
        data = _encoder.encode(message)
        if self._cut.get((sender[0], to[0]), 0) > self._loop.now:
            self.transcript.note(sender[0], "is cut off", number)
            return
        if self._hit(Fault.DROP_ANSWER if answer else Fault.DROP_REQUEST, sender, what, number):
            return
        delay = self._latency()
        if self._hit(Fault.DELAY, sender, what, number) or (
            isinstance(message, RenewOrder) and self._hit(Fault.SLOW_RENEWAL, sender, what, number)
        ):
            delay += int(self._mix.lease.ns * self._chance.between(0.1, 2))
        else:
            delay = self._in_order(sender, to, delay)
        self._send(delay, sender, to, number, data, answer)
        if self._hit(Fault.DUPLICATE, sender, what, number):
            later = delay + int(self._mix.lease.ns * self._chance.between(0, 1))
            self._send(later, sender, to, number, data, answer)

    def _send(self, delay: int, sender: Life, to: Life, number: int, data: bytes, answer: bool) -> None:
        """On its way to a process; should that end meanwhile, who waits for it hears of that end (`gone`)."""
        station = self._stations.get(to[0])
        if station is not None and station.life == to and not station.process.dead:
            self._loop.call_in_of(station.process, delay, station.arrive, sender, number, data, answer)
        elif not answer:
            # Whoever has the name now is greeted as the life that was meant, and refuses (`serve.messages.PeerHello`).
            self._refuse(sender, to)

    def _refuse(self, sender: Life, to: Life) -> None:
        caller = self._stations.get(sender[0])
        if caller is not None and caller.life == sender:
            self._loop.call_in_of(caller.process, self._latency(), caller.lose, to, "nobody is there")

    def _in_order(self, sender: Life, to: Life, delay: int) -> int:
        """One connection keeps the order of what is not held up (by a fault, which stands for another connection)."""
        arrives = max(self._loop.now + delay, self._last.get((sender, to), 0) + 1)
        self._last[sender, to] = arrives
        return arrives - self._loop.now

    def _latency(self) -> int:
        return int(self._mix.latency.ns * self._chance.between(0.2, 1))

    def _hit(self, fault: Fault, sender: Life, what: str, number: int) -> bool:
        rate = self._mix.rate(fault)
        if self.healed or not rate or not self._chance.happens(rate):
            return False
        self.transcript.fault(fault, sender[0], what, number)
        return True
