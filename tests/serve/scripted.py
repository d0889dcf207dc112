"""A gateway in this process, and workers that say over real channels what a test wants them to say.

Channels run on the system's clock. The dispatcher's clock is manual: deadlines and budgets move when a test says so.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.ids import WorkerId
from isthmus.core.units import Duration
from isthmus.serve.channel import Channel, connect
from isthmus.serve.config import parse_config
from isthmus.serve.gateway.addresses import Addresses
from isthmus.serve.gateway.answers import Answerer
from isthmus.serve.gateway.app import build_app
from isthmus.serve.gateway.control import Control
from isthmus.serve.gateway.dispatch import Dispatcher
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.registry import Registry
from isthmus.serve.gateway.retries import RetryBudget
from isthmus.serve.messages import (
    Ack,
    CancelRequest,
    Generate,
    Hello,
    Member,
    Message,
    Pulse,
    Snapshot,
    SnapshotOrder,
)
from isthmus.serve.processes import this_process
from isthmus.state.manifest import SCHEMA_VERSIONS_SPOKEN
from isthmus.state.partition import Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import PeerId, TcpEndpoint
from tests.state.states import GROUP, IDENTITY

__all__ = ["ScriptedGateway", "ScriptedWorker", "scripted", "until"]

CLOCK = SystemClock()
MINUTE = Duration.of_seconds(60)
POOLS = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode", "count": 2}]
Answer = Callable[[Generate], Awaitable[Message]]


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds: sockets set no event of ours."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class _Tokenizer:
    """As much of one as prompts of token ids need."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


class ScriptedWorker:
    """One member. `answer` answers `Generate`; `rows` are what it says that it holds."""

    def __init__(self, name: str, role: str, answer: Answer) -> None:
        self.name, self.role, self._answer = name, role, answer
        self.incarnation = CLOCK.token()
        self.asked: list[Generate] = []
        self.cancelled: list[CancelRequest] = []
        self.snapshot: dict[str, Any] = {"live": [], "ended": []}
        self.orders: list[SnapshotOrder] = []

    async def run(self, port: int) -> None:
        self.channel = await connect(
            "127.0.0.1",
            port,
            CLOCK,
            handler=self._called,
            posted=self._posted,
            peer="gateway",
            deadline=Duration.of_seconds(5),
        )
        await self.channel.run()

    async def register(self) -> None:
        peer = PeerId(worker=WorkerId(self.name), incarnation=self.incarnation)
        member = Member(
            worker=self.name,
            incarnation=self.incarnation,
            role=self.role,
            process=this_process(),
            identity=IDENTITY,
            representation=KVRepresentation(groups=(GROUP,), partition=Partition(tp_size=2)),
            num_blocks=8,
            context_length=512,
            host="127.0.0.1",
            port=1,
            transports=("tcp",),
            endpoints=(TcpEndpoint(host="127.0.0.1", port=1, peer=peer),),
        )
        await self.channel.call(Hello(member=member, schema_versions=SCHEMA_VERSIONS_SPOKEN))

    def pulse(self, unhealthy: str | None = None) -> None:
        self.channel.post(Pulse(unhealthy=unhealthy))

    async def _called(self, _: Channel, message: Message) -> Message:
        if isinstance(message, Generate):
            self.asked.append(message)
            return await self._answer(message)
        if isinstance(message, SnapshotOrder):
            self.orders.append(message)
            return Snapshot(json=json.dumps(self.snapshot).encode())
        return Ack()

    def _posted(self, _: Channel, message: Message) -> None:
        if isinstance(message, CancelRequest):
            self.cancelled.append(message)


class ScriptedGateway:
    """What `serve_gateway` puts together, but for the model."""

    def __init__(self, *, burst: int = 3, request_deadline: Duration = MINUTE) -> None:
        self.clock = ManualClock()
        self.registry, self.metrics = Registry(), Metrics()
        self.retries = RetryBudget(self.clock, ratio=0.2, floor_per_second=1.0, burst=burst)
        self.dispatcher = Dispatcher(
            self.registry,
            self.clock,
            self.metrics,
            attempts_max=2,
            worker_wait=Duration(0),
            request_deadline=request_deadline,
            retries=self.retries,
        )
        self.control = Control(
            self.registry,
            CLOCK,
            self.metrics,
            self.dispatcher.on_token,
            heartbeat=Duration.of_seconds(1),
            timeout=Duration.of_seconds(30),
            addresses=Addresses(parse_config({"pools": POOLS}, where="test")),
        )
        answerer = Answerer(
            self.dispatcher,
            _Tokenizer(),
            self.clock,
            self.metrics,
            model="m",
            context_length=512,
            vocab_size=8,
            max_tokens_default=4,
        )
        app = build_app(answerer, self.control, self.metrics, requests_in_flight_max=64)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30)

    async def ask(self) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "m", "prompt": [1, 2, 3], "max_tokens": 2})


@asynccontextmanager
async def scripted(
    gateway: ScriptedGateway, answer: Answer, *, names: tuple[str, ...] = ("decode-0",)
) -> AsyncIterator[dict[str, ScriptedWorker]]:
    """The gateway with one producer, and consumers that answer so."""
    listening = socket.create_server(("127.0.0.1", 0))
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(gateway.control.serve(listening))]
        workers = {name: ScriptedWorker(name, name.partition("-")[0], answer) for name in ("prefill-0", *names)}

        async def stop() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await gateway.client.aclose()

        stack.push_async_callback(stop)
        await asyncio.sleep(0)
        for worker in workers.values():
            tasks.append(asyncio.create_task(worker.run(listening.getsockname()[1])))
            await until(lambda worker=worker: hasattr(worker, "channel"))
            await worker.register()
        yield workers
