"""Transport within one process: the bytes are copied straight out of the lender, and the guard is asked first.

Whoever asks for a copy makes it: a reader into its own image, a writer into the consumer's. Both copy on the event
loop's own thread and yield to it between chunks, so that between two turns no copy is under way.

For one process that holds both roles, for tests and for simulation. Two worlds in one process are two hubs.
"""

import asyncio
from collections.abc import Mapping, Sequence

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, GrantUnknown, PeerLost, Unsupported
from isthmus.core.ids import GrantId, RegionId
from isthmus.core.limits import COPY_CHUNK_BYTES
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.transport.base import (
    BlockRead,
    BlockWrite,
    Endpoint,
    Guard,
    Lender,
    MemoryEndpoint,
    Target,
    WriteGuard,
)
from isthmus.transport.blocks import check_shapes, check_staging, chunks_of, copy_chunk
from isthmus.transport.images import allocate_image, check_lent, check_target, copy_piece, pieces_of

__all__ = ["MemoryExporter", "MemoryHub", "MemoryImporter", "MemoryReader", "MemoryWriter"]


class MemoryHub:
    """Who exports and imports what in this process. Made explicitly and handed to whoever moves bytes by it."""

    def __init__(self, clock: Clock) -> None:
        self.id = clock.token()
        self._exporters: dict[str, MemoryExporter] = {}
        self._importers: dict[str, MemoryImporter] = {}

    def put(self, key: str, exporter: "MemoryExporter") -> None:
        self._exporters[key] = exporter

    def put_importer(self, key: str, importer: "MemoryImporter") -> None:
        self._importers[key] = importer

    def remove(self, key: str) -> None:
        self._exporters.pop(key, None)
        self._importers.pop(key, None)

    def get(self, key: str) -> "MemoryExporter":
        """The exporter behind `key`.

        Raises:
            PeerLost: it has closed, or never was.
        """
        if key not in self._exporters:
            raise PeerLost("endpoint: nobody exports under this key any more", field="endpoint")
        return self._exporters[key]

    def importer(self, key: str) -> "MemoryImporter":
        """The importer behind `key`. Raises PeerLost as `get`."""
        if key not in self._importers:
            raise PeerLost("endpoint: nobody imports under this key any more", field="endpoint")
        return self._importers[key]


class MemoryExporter:
    """Puts a lender and its guard into a hub."""

    def __init__(self, hub: MemoryHub, lender: Lender, guard: Guard, clock: Clock) -> None:
        self.lender = lender
        self.guard = guard
        self._hub = hub
        self._key = clock.token()

    async def start(self) -> Endpoint:
        self._hub.put(self._key, self)
        return MemoryEndpoint(hub=self._hub.id, key=self._key)

    async def close(self) -> None:
        self._hub.remove(self._key)


class MemoryReader:
    """Reads from the exporters of one hub."""

    def __init__(self, hub: MemoryHub, clock: Clock, chunk_bytes: int = COPY_CHUNK_BYTES) -> None:
        self._hub = hub
        self._clock = clock
        self._chunk_bytes = chunk_bytes

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, MemoryEndpoint) and endpoint.hub == self._hub.id

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, MemoryEndpoint) or not self.can_reach(endpoint):
            raise Unsupported("endpoint: not of this process's memory hub", field="endpoint")
        staging = check_staging(request, into)
        return await within(self._clock, deadline, self._read(request, endpoint, staging), "read from memory")

    async def _read(
        self, request: BlockRead, endpoint: MemoryEndpoint, staging: Mapping[RegionId, memoryview]
    ) -> ByteCount:
        exporter = self._hub.get(endpoint.key)
        exporter.guard.check_read(request.grant, request.epoch, request.reader, request.blocks)
        check_shapes(request, exporter.lender.regions, exporter.lender.num_blocks)
        for region in request.regions:
            for chunk in chunks_of(region, len(request.blocks), self._chunk_bytes):
                self._hub.get(endpoint.key)  # an exporter that has closed lends nothing any more
                ids = request.blocks[chunk.block_start : chunk.block_stop]
                exporter.guard.check_read(request.grant, request.epoch, request.reader, ids)  # I7: for this chunk
                copy_chunk(exporter.lender, request, region, chunk, staging[region.id][chunk.start : chunk.stop])
                await asyncio.sleep(0)  # a turn for others, and where a cancellation arrives; no time is meant
        return request.size_bytes

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is kept: the hub knows who has closed."""

    async def close(self) -> None:
        """Nothing is kept."""


class MemoryImporter:
    """Images of this process, which writers of the same hub copy into while they are exposed."""

    def __init__(self, hub: MemoryHub, guard: WriteGuard, clock: Clock) -> None:
        self._hub = hub
        self._guard = guard
        self._key = clock.token()
        self._exposed: dict[GrantId, tuple[Target, Mapping[RegionId, memoryview]]] = {}

    async def start(self) -> Endpoint:
        self._hub.put_importer(self._key, self)
        return MemoryEndpoint(hub=self._hub.id, key=self._key)

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        if target.grant in self._exposed:
            raise Bug("grant: it has a target already", field="grant")
        image = allocate_image(target)
        self._exposed[target.grant] = target, image
        return image

    async def withdraw(self, grant: GrantId) -> bool:
        self._exposed.pop(grant, None)
        return True  # a writer copies within one turn of the loop and looks here before each

    async def close(self) -> None:
        self._exposed.clear()
        self._hub.remove(self._key)

    def admit(self, request: BlockWrite) -> None:
        """Return if the write may begin. Raises as `WriteGuard.check_write`; BadInput."""
        target = request.target
        self._guard.check_write(target.grant, target.epoch, target.writer)
        if target.grant in self._exposed:
            check_target(request, self._exposed[target.grant][0])

    def image(self, grant: GrantId) -> Mapping[RegionId, memoryview]:
        """Where to copy within this turn. Raises GrantUnknown where nothing is exposed under this grant any more."""
        if grant not in self._exposed:
            raise GrantUnknown("grant: nothing is exposed under it", field="grant")
        return self._exposed[grant][1]


class MemoryWriter:
    """Writes to the importers of one hub."""

    def __init__(self, hub: MemoryHub, clock: Clock, chunk_bytes: int = COPY_CHUNK_BYTES) -> None:
        self._hub = hub
        self._clock = clock
        self._chunk_bytes = chunk_bytes

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, MemoryEndpoint) and endpoint.hub == self._hub.id

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, MemoryEndpoint) or not self.can_reach(endpoint):
            raise Unsupported("endpoint: not of this process's memory hub", field="endpoint")
        check_lent(request, lender, blocks)
        return await within(self._clock, deadline, self._write(request, endpoint, lender, blocks), "write to memory")

    async def _write(
        self, request: BlockWrite, endpoint: MemoryEndpoint, lender: Lender, blocks: Sequence[int]
    ) -> ByteCount:
        self._hub.importer(endpoint.key).admit(request)
        for region in request.target.regions:
            for piece in pieces_of(region, request, self._chunk_bytes):
                image = self._hub.importer(endpoint.key).image(request.target.grant)  # still there, in this very turn?
                copy_piece(lender, blocks, region, piece, image)
                await asyncio.sleep(0)  # a turn for others, and where a cancellation arrives; no time is meant
        return request.size_bytes

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is kept: the hub knows who has closed."""

    async def close(self) -> None:
        """Nothing is kept."""
