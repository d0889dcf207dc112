"""The transports that are built in. To add one: implement the four sides, give it an `Endpoint`, add a row.

The endpoint is a struct of its own in `base.py`, tagged with the transport's name, and a member of `Endpoint` there.
`select.PREFERRED` says when it is taken, and `tests/transport/worlds.py` draws it into every test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from isthmus.core.clock import Clock
from isthmus.core.errors import ConfigInvalid
from isthmus.transport.base import (
    Endpoint,
    Exporter,
    Guard,
    Importer,
    Lender,
    MemoryEndpoint,
    PeerId,
    Reader,
    ShmEndpoint,
    TcpEndpoint,
    WriteGuard,
    Writer,
)
from isthmus.transport.blocks import HostLender
from isthmus.transport.memory import MemoryExporter, MemoryHub, MemoryImporter, MemoryReader, MemoryWriter
from isthmus.transport.shm import SharedMemory, ShmExporter, ShmImporter, ShmReader, ShmWriter
from isthmus.transport.tcp import TcpExporter, TcpImporter, TcpReader, TcpWriter
from isthmus.transport.tls import Tls

__all__ = [
    "TRANSPORTS",
    "TransportRow",
    "Worker",
    "open_exporters",
    "open_importers",
    "open_readers",
    "open_writers",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a transport may need of the worker that opens it. `hub` and `memory` are for the transports of the name."""

    identity: PeerId
    clock: Clock
    hub: MemoryHub | None = None
    memory: SharedMemory | None = None
    tcp_host: str = "127.0.0.1"
    tcp_port: int = 0
    tcp_advertised_host: str | None = None
    tcp_advertised_port: int | None = None
    tls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRow:
    """One transport. `export` and `read` are for pull, `expose` and `write` for push.

    Each raises ConfigInvalid where the worker lacks what it needs.
    """

    endpoint: type[Endpoint]
    one_sided: bool
    export: Callable[[Worker, Lender, Guard], Exporter] = field(repr=False)
    read: Callable[[Worker], Reader] = field(repr=False)
    expose: Callable[[Worker, WriteGuard], Importer] = field(repr=False)
    write: Callable[[Worker], Writer] = field(repr=False)


def _export_memory(worker: Worker, lender: Lender, guard: Guard) -> Exporter:
    return MemoryExporter(_hub(worker), lender, guard, worker.clock)


def _read_memory(worker: Worker) -> Reader:
    return MemoryReader(_hub(worker), worker.clock)


def _expose_memory(worker: Worker, guard: WriteGuard) -> Importer:
    return MemoryImporter(_hub(worker), guard, worker.clock)


def _write_memory(worker: Worker) -> Writer:
    return MemoryWriter(_hub(worker), worker.clock)


def _export_shm(worker: Worker, lender: Lender, guard: Guard) -> Exporter:
    if worker.memory is None or not isinstance(lender, HostLender):
        raise ConfigInvalid("transport.shm: the engine's pool does not lie in shared memory", field="transport")
    return ShmExporter(worker.memory, lender)


def _read_shm(worker: Worker) -> Reader:
    return ShmReader(worker.clock)


def _expose_shm(worker: Worker, guard: WriteGuard) -> Importer:
    return ShmImporter(worker.clock)


def _write_shm(worker: Worker) -> Writer:
    return ShmWriter(worker.clock)


def _export_tcp(worker: Worker, lender: Lender, guard: Guard) -> Exporter:
    return TcpExporter(
        worker.identity,
        lender,
        guard,
        worker.clock,
        host=worker.tcp_host,
        port=worker.tcp_port,
        advertised_host=worker.tcp_advertised_host,
        advertised_port=worker.tcp_advertised_port,
        tls=worker.tls,
    )


def _read_tcp(worker: Worker) -> Reader:
    return TcpReader(worker.identity, worker.clock, worker.tls)


def _expose_tcp(worker: Worker, guard: WriteGuard) -> Importer:
    return TcpImporter(
        worker.identity,
        guard,
        worker.clock,
        host=worker.tcp_host,
        port=worker.tcp_port,
        advertised_host=worker.tcp_advertised_host,
        advertised_port=worker.tcp_advertised_port,
        tls=worker.tls,
    )


def _write_tcp(worker: Worker) -> Writer:
    return TcpWriter(worker.identity, worker.clock, worker.tls)


def _hub(worker: Worker) -> MemoryHub:
    if worker.hub is None:
        raise ConfigInvalid("transport.memory: for workers that share one process and one hub", field="transport")
    return worker.hub


TRANSPORTS: Mapping[str, TransportRow] = {
    "memory": TransportRow(
        endpoint=MemoryEndpoint,
        one_sided=False,
        export=_export_memory,
        read=_read_memory,
        expose=_expose_memory,
        write=_write_memory,
    ),
    "shm": TransportRow(
        endpoint=ShmEndpoint,
        one_sided=True,
        export=_export_shm,
        read=_read_shm,
        expose=_expose_shm,
        write=_write_shm,
    ),
    "tcp": TransportRow(
        endpoint=TcpEndpoint,
        one_sided=False,
        export=_export_tcp,
        read=_read_tcp,
        expose=_expose_tcp,
        write=_write_tcp,
    ),
}


def open_exporters(names: Sequence[str], worker: Worker, lender: Lender, guard: Guard) -> dict[str, Exporter]:
    """An exporter for each transport named, not started yet. Raises ConfigInvalid."""
    return {name: _row(name).export(worker, lender, guard) for name in names}


def open_readers(names: Sequence[str], worker: Worker) -> dict[str, Reader]:
    """A reader for each transport named. Raises ConfigInvalid."""
    return {name: _row(name).read(worker) for name in names}


def open_importers(names: Sequence[str], worker: Worker, guard: WriteGuard) -> dict[str, Importer]:
    """An importer for each transport named, not started yet. Raises ConfigInvalid."""
    return {name: _row(name).expose(worker, guard) for name in names}


def open_writers(names: Sequence[str], worker: Worker) -> dict[str, Writer]:
    """A writer for each transport named. Raises ConfigInvalid."""
    return {name: _row(name).write(worker) for name in names}


def _row(name: str) -> TransportRow:
    if name not in TRANSPORTS:
        raise ConfigInvalid(f"transport: {name!r} is not one of {sorted(TRANSPORTS)}", field="transport")
    return TRANSPORTS[name]
