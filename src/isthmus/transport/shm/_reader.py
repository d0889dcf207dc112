"""The peer's side: map an owner's memory once, read from it many times, let go of it when the owner dies."""

import asyncio
import functools
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from isthmus.core.clock import Clock
from isthmus.core.errors import PeerLost, TransferFailed, Unsupported
from isthmus.core.ids import RegionId
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, COPY_CHUNK_BYTES, SHM_HEADER_BYTES
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import in_thread, within
from isthmus.transport.base import BlockRead, Endpoint, ShmEndpoint
from isthmus.transport.blocks import check_shapes, check_staging, chunks_of, copy_blocks, dense
from isthmus.transport.shm._header import has_stamp, read_header
from isthmus.transport.shm._memory import host_identity
from isthmus.transport.shm._peer import has_ended, open_memory, open_process

__all__ = ["ShmReader"]


class _Attachment:
    """An owner's memory, mapped read-only, and a handle on its process. Used and dropped on the loop's thread."""

    def __init__(self, endpoint: ShmEndpoint, on_death: Callable[[Endpoint], None]) -> None:
        """`on_death(endpoint)` is called when the owner's process ends, if this has not been dropped before.

        Raises PeerLost where the owner or its memory is gone; TransferFailed where it is not as it should be.
        """
        self._endpoint = endpoint
        self._users = 0
        self.dropped = False
        self.pidfd = open_process(endpoint.pid)
        try:
            memory = memoryview(_map_file(endpoint))
            header = read_header(memory, endpoint.stamp, memory.nbytes)
            # The stamp was there while the process lived: so this is its memory and not that of the pid's next holder.
            self.check_owner()
        except BaseException:
            os.close(self.pidfd)
            raise
        # A dead owner's memory is let go at once, not at the next read that may never come.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.pidfd, on_death, endpoint)
        self._head = memory[:SHM_HEADER_BYTES]
        self.num_blocks = header.num_blocks
        self.shapes = tuple(region.shape for region in header.regions)
        self.regions = {
            region.shape.id: dense(
                memory[region.offset : region.offset + region.shape.size_bytes(header.num_blocks)],
                region.shape,
                header.num_blocks,
            )
            for region in header.regions
        }

    def check_owner(self) -> None:
        """Raise PeerLost where the owner's process has ended or the attachment was dropped. From any thread."""
        if self.dropped or has_ended(self.pidfd):
            raise PeerLost(f"endpoint.pid: process {self._endpoint.pid} has ended", field="endpoint.pid")

    def check_stamp(self) -> None:
        """Raise PeerLost where the owner has withdrawn its export."""
        if not has_stamp(self._head, self._endpoint.stamp):
            raise PeerLost("endpoint.stamp: the owner has closed its export", field="endpoint.stamp")

    def __enter__(self) -> "_Attachment":
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._release()

    def drop(self) -> None:
        """Unmap, now or when the last read under way has noticed."""
        self.dropped = True
        self._loop.remove_reader(self.pidfd)
        self._release()

    def _release(self) -> None:
        if self.dropped and not self._users and self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
            # The mapping goes with the last reference to it, and these are all.
            self.regions = {}
            self._head = memoryview(b"")


class ShmReader:
    """Reads memory of other processes on this host. The copies run in threads, which NumPy lets run side by side."""

    def __init__(self, clock: Clock, chunk_bytes: int = COPY_CHUNK_BYTES) -> None:
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._host = host_identity()
        self._attachments: dict[ShmEndpoint, _Attachment] = {}
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS_PER_PEER_MAX, thread_name_prefix="shm-read")

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, ShmEndpoint) and endpoint.host == self._host

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, ShmEndpoint) or not self.can_reach(endpoint):
            raise Unsupported("endpoint: not shared memory of this host, pid namespace and user", field="endpoint")
        staging = check_staging(request, into)
        return await within(self._clock, deadline, self._read(request, endpoint, staging), "read from shared memory")

    async def _read(
        self, request: BlockRead, endpoint: ShmEndpoint, staging: Mapping[RegionId, memoryview]
    ) -> ByteCount:
        try:
            with self._attach(endpoint) as attachment:
                check_shapes(request, attachment.shapes, attachment.num_blocks)
                copy = functools.partial(_copy, attachment, request, staging, self._chunk_bytes)
                await in_thread(self._threads, copy)
        except PeerLost:
            self.forget(endpoint)
            raise
        return request.size_bytes

    def _attach(self, endpoint: ShmEndpoint) -> _Attachment:
        attachment = self._attachments.get(endpoint)
        if attachment is None:
            attachment = _Attachment(endpoint, self.forget)
            self._attachments[endpoint] = attachment
        return attachment

    def forget(self, endpoint: Endpoint) -> None:
        attachment = self._attachments.pop(endpoint, None) if isinstance(endpoint, ShmEndpoint) else None
        if attachment is not None:
            attachment.drop()

    async def close(self) -> None:
        for endpoint in tuple(self._attachments):
            self.forget(endpoint)
        self._threads.shutdown()


def _copy(
    attachment: _Attachment,
    request: BlockRead,
    staging: Mapping[RegionId, memoryview],
    chunk_bytes: int,
    stop: threading.Event,
) -> None:
    """The copy itself, in a thread: in chunks, so that `stop` and the owner's death are noticed within one."""
    attachment.check_stamp()
    blocks = np.asarray(request.blocks, dtype=np.intp)
    for region in request.regions:
        source, target = attachment.regions[region.id], staging[region.id]
        for chunk in chunks_of(region, len(request.blocks), chunk_bytes):
            if stop.is_set():
                return
            attachment.check_owner()
            ids = blocks[chunk.block_start : chunk.block_stop]
            copy_blocks(source, chunk.outer, ids, target[chunk.start : chunk.stop])
    attachment.check_owner()
    attachment.check_stamp()


def _map_file(endpoint: ShmEndpoint) -> mmap.mmap:
    """The file behind an endpoint, mapped read-only. Raises as `open_memory`."""
    fd = open_memory(endpoint)
    try:
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TransferFailed(f"endpoint: cannot map the owner's memory: {error}", field="endpoint") from error
    finally:
        os.close(fd)
