"""A worker's process: build the engine, lend its memory, register with the gateway, serve."""

import asyncio
from pathlib import Path

from isthmus.core.clock import SystemClock
from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.handoff.consumer import ConsumerSide, Deadlines, Peer
from isthmus.handoff.exposure import WriteGuard
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.push import Pusher
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.leases import reap_forever
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.ownership.side import Side
from isthmus.serve.channel import Channel
from isthmus.serve.config import ServeConfig
from isthmus.serve.link import listen
from isthmus.serve.messages import Generate, Message
from isthmus.serve.running import supervised
from isthmus.serve.worker.decode import DecodeService
from isthmus.serve.worker.membership import Membership
from isthmus.serve.worker.peers import Peers
from isthmus.serve.worker.prefill import PrefillService
from isthmus.serve.worker.process import Process
from isthmus.serve.worker.write_routes import WriteRoutes
from isthmus.transport.base import Endpoint, transport_name
from isthmus.transport.select import choose
from isthmus.transport.shm import SharedMemory
from isthmus.transport.table import open_exporters, open_importers, open_readers

__all__ = ["serve_worker"]


async def serve_worker(config: ServeConfig, worker: WorkerId, model: Path) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigInvalid: no such worker in the file, or its engine cannot be built as written.
        IncarnationFenced: the gateway has declared this life over.
        Rejected: the gateway refuses this worker.
    """
    pools = dict(config.workers())
    if worker not in pools:
        raise ConfigInvalid(f"name: no worker {worker!r} in this file; it has {', '.join(pools)}", field="name")
    pool = pools[worker]
    memory = SharedMemory(SystemClock()) if "shm" in pool.transports and pool.device == "cpu" else None
    engine = await asyncio.to_thread(EmbeddedKV.build, pool.engine(model), memory.allocate if memory else None)
    process = Process(config, pool, worker, engine, memory)
    async with engine.running(), process.prefixes.keeping():
        await (_serve_prefill(process) if pool.role == "prefill" else _serve_decode(process))


async def _serve_prefill(process: Process) -> None:
    """Lend, listen for consumers, register."""
    sole_tenant = None if process.pool.sole_tenant is None else TenantId(process.pool.sole_tenant)
    journal = process.journal(Side.PRODUCER, sole_tenant=sole_tenant)
    owner = SourceOwner(
        ledger=process.ledger,
        capacity=process.capacity,
        clock=process.clock,
        worker=process.worker,
        incarnation=process.incarnation,
        lease=Duration.of_ms(process.config.lease_ms),
        transport=_riskiest(process.transports),
        sole_tenant=sole_tenant,
        journal=journal,
        prefixes=process.prefixes.cache,
    )
    routes = WriteRoutes(process)
    pusher = _pusher(process, owner, routes)
    side = ProducerSide(
        process.engine,
        owner,
        worker=process.worker,
        incarnation=process.incarnation,
        wait=Duration.of_ms(process.config.deadlines.prefill_ms),
        resuming=process.engine,
        reuse=process.prefixes.reuse,
        pusher=None if process.config.handoff_mode is TriggerMode.PULL else pusher,
    )
    service = PrefillService(
        side,
        process.membership,
        process.clock,
        worker=process.worker,
        incarnation=process.incarnation,
        tls=process.tls,
    )

    async def called(_: Channel, message: Message) -> Message:
        return process.snapshot(owner, message)

    exporters = open_exporters(process.transports, process.transport, process.engine.lender, owner)
    try:
        server = await listen(service.accept, process.pool.host, process.port, tls=process.tls)
    except OSError as error:
        where = f"{process.pool.host}:{process.port}"
        raise ConfigInvalid(f"pools.port: {where}: {error.strerror or error}", field="port") from None
    try:
        endpoints = [await exporter.start() for exporter in exporters.values()]
        link = process.link(called, port=server.sockets[0].getsockname()[1], endpoints=endpoints)
        async with supervised(reap_forever(process.clock, owner.lease, owner.reap)):
            await link.run()
    finally:
        server.close()
        await pusher.close()
        await routes.close()
        for exporter in exporters.values():
            await exporter.close()
        process.end(journal)


def _pusher(process: Process, owner: SourceOwner, routes: WriteRoutes) -> Pusher:
    """What writes into consumers' memory, where the deployment is one in which producers write."""
    return Pusher(
        owner,
        process.engine.lender,
        routes.route,
        process.clock,
        write=Duration.of_ms(process.config.deadlines.transfer_ms),
        lease=owner.lease,
        filling=process.engine,
    )


async def _serve_decode(process: Process) -> None:
    """Register, and take requests."""
    journal = process.journal(Side.CONSUMER)
    owner = DestinationOwner(
        ledger=process.ledger,
        capacity=process.capacity,
        clock=process.clock,
        worker=process.worker,
        incarnation=process.incarnation,
        transport=_riskiest(process.transports),
        journal=journal,
        prefixes=process.prefixes.cache,
    )
    routes = _Routes(process, owner)
    consumer = ConsumerSide(
        process.engine,
        owner,
        routes.peer,
        process.clock,
        worker=process.worker,
        incarnation=process.incarnation,
        deadlines=_deadlines(process.config),
        reuse=process.prefixes.reuse,
    )
    peers = Peers(
        process.membership, process.clock, worker=process.worker, incarnation=process.incarnation, tls=process.tls
    )
    service = DecodeService(
        process.engine,
        consumer,
        peers,
        process.clock,
        worker=process.worker,
        post=lambda message: link.post(message),
    )

    async def exited(worker: WorkerId, life: Incarnation) -> None:
        await consumer.producer_lost(worker, life, Evidence.PROCESS_EXITED)  # proof on any transport

    process.membership.on_exited(exited)

    async def called(_: Channel, message: Message) -> Message:
        if isinstance(message, Generate):
            return await service.generate(message)
        return process.snapshot(owner, message)

    try:
        link = process.link(called, on_cancel=service.cancel, imports=await routes.start())
        async with supervised(reap_forever(process.clock, Duration.of_ms(process.config.lease_ms), owner.reap)):
            await link.run()
    finally:
        await routes.close()
        process.end(journal)


class _Routes:
    """The way to each producer's bytes, as long as it is a member; and where producers write, what they write into."""

    def __init__(self, process: Process, owner: DestinationOwner) -> None:
        self._mode = process.config.handoff_mode
        guard = WriteGuard(owner, Duration.of_ms(process.config.deadlines.transfer_ms))
        names = () if self._mode is TriggerMode.PULL else process.pool.transports
        self._importers = open_importers(names, process.transport, guard)
        self._membership: Membership = process.membership
        self._preferred = process.pool.transports
        self._readers = open_readers(process.pool.transports, process.transport)
        self._used: dict[tuple[WorkerId, Incarnation], Endpoint] = {}
        self._membership.on_fenced(self._forget)

    def peer(self, worker: WorkerId, incarnation: Incarnation) -> Peer:
        """Raises PeerLost where it is no member, Unsupported where no transport reaches it."""
        member = self._membership.find(worker, incarnation)
        route = choose(member.endpoints, self._readers, self._preferred)
        self._used[worker, incarnation] = route.endpoint
        return Peer(
            identity=member.identity,
            representation=member.representation,
            endpoint=route.endpoint,
            reader=route.mover,
            mode=self._mode,
            importer=self._importers.get(route.transport),
        )

    async def _forget(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A dead peer's memory and connections are not kept (vllm #58063 kept tens of gigabytes mapped)."""
        endpoint = self._used.pop((worker, incarnation), None)
        if endpoint is not None:
            self._readers[transport_name(endpoint)].forget(endpoint)

    async def start(self) -> list[Endpoint]:
        """Where producers may write."""
        return [await importer.start() for importer in self._importers.values()]

    async def close(self) -> None:
        for reader in self._readers.values():
            await reader.close()
        for importer in self._importers.values():
            await importer.close()


def _riskiest(transports: list[str]) -> TransportKind:
    """Of the transports on offer, the one whose readers are seen by nobody; its drain rules are the strictest."""
    return TransportKind.SHM if "shm" in transports else TransportKind.TCP


def _deadlines(config: ServeConfig) -> Deadlines:
    deadlines = config.deadlines
    return Deadlines(
        reserve=Duration.of_ms(deadlines.reserve_ms),
        prefill=Duration.of_ms(deadlines.prefill_ms),
        transfer=Duration.of_ms(deadlines.transfer_ms),
        confirm=Duration.of_ms(deadlines.confirm_ms),
    )
