"""Transport within one process: the bytes are copied straight out of the lender, and the guard is asked first.

For one process that holds both roles, for tests and for simulation. Two worlds in one process are two hubs.
"""

import asyncio
from collections.abc import Mapping

from isthmus.core.clock import Clock
from isthmus.core.errors import PeerLost, Unsupported
from isthmus.core.ids import RegionId
from isthmus.core.limits import COPY_CHUNK_BYTES
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.transport.base import BlockRead, Endpoint, Guard, Lender, MemoryEndpoint
from isthmus.transport.blocks import check_shapes, check_staging, chunks_of, copy_chunk

__all__ = ["MemoryExporter", "MemoryHub", "MemoryReader"]


class MemoryHub:
    """Who exports what in this process. Made explicitly and handed to exporters and readers."""

    def __init__(self, clock: Clock) -> None:
        self.id = clock.token()
        self._exporters: dict[str, MemoryExporter] = {}

    def put(self, key: str, exporter: "MemoryExporter") -> None:
        self._exporters[key] = exporter

    def remove(self, key: str) -> None:
        self._exporters.pop(key, None)

    def get(self, key: str) -> "MemoryExporter":
        """The exporter behind `key`.

        Raises:
            PeerLost: it has closed, or never was.
        """
        if key not in self._exporters:
            raise PeerLost("endpoint: nobody exports under this key any more", field="endpoint")
        return self._exporters[key]


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
    """Reads from the exporters of one hub. Copies on the event loop's own thread, and yields to it between chunks."""

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
                copy_chunk(exporter.lender, request, region, chunk, staging[region.id][chunk.start : chunk.stop])
                await asyncio.sleep(0)  # a turn for others, and where a cancellation arrives; no time is meant
        return request.size_bytes

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is kept: the hub knows who has closed."""

    async def close(self) -> None:
        """Nothing is kept."""
