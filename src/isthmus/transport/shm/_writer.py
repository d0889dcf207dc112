"""The producer's side of writes: find the image that a grant names in the consumer's process, map it, copy, unmap it.

The image stays mapped for one write only: as soon as a write is over the consumer can seal it.
"""

import fcntl
import functools
import mmap
import os
import stat
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from isthmus.core.clock import Clock
from isthmus.core.errors import GrantUnknown, PeerLost, StaleEpoch, TransferFailed, Unsupported
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, COPY_CHUNK_BYTES
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import in_thread, within
from isthmus.transport.base import BlockWrite, Endpoint, Lender, ShmEndpoint, Target
from isthmus.transport.images import check_lent, copy_piece, pieces_of
from isthmus.transport.shm._header import STAMP, has_stamp
from isthmus.transport.shm._image import IMAGE_SEALS, image_name, regions_in
from isthmus.transport.shm._memory import host_identity
from isthmus.transport.shm._peer import F_GET_SEALS, has_ended, open_memory, open_process

__all__ = ["ShmWriter"]


class ShmWriter:
    """Writes into images of other processes on this host. The copies run in threads."""

    def __init__(self, clock: Clock, chunk_bytes: int = COPY_CHUNK_BYTES) -> None:
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._host = host_identity()
        self._writing: dict[ShmEndpoint, set[threading.Event]] = {}
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS_PER_PEER_MAX, thread_name_prefix="shm-write")

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, ShmEndpoint) and endpoint.host == self._host

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, ShmEndpoint) or not self.can_reach(endpoint):
            raise Unsupported("endpoint: not shared memory of this host, pid namespace and user", field="endpoint")
        check_lent(request, lender, blocks)
        work = self._write(request, endpoint, lender, blocks)
        return await within(self._clock, deadline, work, "write to shared memory")

    async def _write(
        self, request: BlockWrite, endpoint: ShmEndpoint, lender: Lender, blocks: Sequence[int]
    ) -> ByteCount:
        forgotten = threading.Event()
        writing = self._writing.setdefault(endpoint, set())
        writing.add(forgotten)
        copy = functools.partial(_write, request, endpoint, lender, blocks, self._chunk_bytes, forgotten)
        try:
            await in_thread(self._threads, copy)
        finally:
            writing.discard(forgotten)
            if not writing and self._writing.get(endpoint) is writing:
                del self._writing[endpoint]
        return request.size_bytes

    def forget(self, endpoint: Endpoint) -> None:
        for forgotten in self._writing.pop(endpoint, set()) if isinstance(endpoint, ShmEndpoint) else ():
            forgotten.set()

    async def close(self) -> None:
        for endpoint in tuple(self._writing):
            self.forget(endpoint)
        self._threads.shutdown()


def _write(
    request: BlockWrite,
    endpoint: ShmEndpoint,
    lender: Lender,
    blocks: Sequence[int],
    chunk_bytes: int,
    forgotten: threading.Event,
    stop: threading.Event,
) -> None:
    """One write, in a thread: in pieces, so that `stop`, `forgotten` and a death are noticed within one."""
    with _owner(endpoint) as is_dead, _mapped(request.target, endpoint) as memory:
        places, _ = regions_in(request.target)
        image = {name: memory[place] for name, place in places.items()}
        try:
            for region in request.target.regions:
                for piece in pieces_of(region, request, chunk_bytes):
                    if stop.is_set():
                        return
                    if forgotten.is_set() or is_dead():
                        raise PeerLost(f"endpoint.pid: process {endpoint.pid} has ended", field="endpoint.pid")
                    copy_piece(lender, blocks, region, piece, image)
        finally:
            for view in image.values():
                view.release()


@contextmanager
def _owner(endpoint: ShmEndpoint) -> Iterator[Callable[[], bool]]:
    """Whether the consumer's process has ended; raises PeerLost where this is not it."""
    pidfd = open_process(endpoint.pid)
    try:
        fd = open_memory(endpoint)
        try:
            stamped = has_stamp(memoryview(os.pread(fd, STAMP.stop, 0)), endpoint.stamp)
        finally:
            os.close(fd)
        if not stamped:
            raise PeerLost("endpoint.stamp: the memory there is not the one registered", field="endpoint.stamp")
        # The stamp was there while the process lived: so it is the consumer and not the pid's next holder.
        if has_ended(pidfd):
            raise PeerLost(f"endpoint.pid: process {endpoint.pid} has ended", field="endpoint.pid")
        yield lambda: has_ended(pidfd)
    finally:
        os.close(pidfd)


@contextmanager
def _mapped(target: Target, endpoint: ShmEndpoint) -> Iterator[memoryview]:
    """The image, writable, for the body. Whatever ends it, the mapping is gone afterwards."""
    fd = _open_image(target, endpoint)
    try:
        _, size = regions_in(target)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(fd, F_GET_SEALS) & IMAGE_SEALS != IMAGE_SEALS:
            raise TransferFailed("image: not a sealed memory file", field="image")
        if status.st_size != size:
            raise TransferFailed(f"image: {status.st_size} bytes, wanted {size}", field="image")
        memory = mmap.mmap(fd, size)
    except PermissionError as error:
        raise StaleEpoch("grant: its image has been sealed", field="grant") from error
    finally:
        os.close(fd)
    view = memoryview(memory)
    try:
        yield view
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what failed in mid-copy still refers to the mapping
        raise
    finally:
        view.release()
        memory.close()


def _open_image(target: Target, endpoint: ShmEndpoint) -> int:
    """Found by its name among the consumer's descriptors: nobody says a number, so nobody can say a wrong one."""
    sealed = False
    try:
        for path in _descriptors_named(f"/memfd:{image_name(target)} ", endpoint):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if not fcntl.fcntl(fd, F_GET_SEALS) & fcntl.F_SEAL_WRITE:
                return fd
            os.close(fd)
            sealed = True
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PeerLost("endpoint.pid: the consumer, or its image, has just gone", field="endpoint.pid") from error
    except OSError as error:
        raise TransferFailed(f"endpoint: cannot open the consumer's image: {error}", field="endpoint") from error
    if sealed:
        raise StaleEpoch("grant: its image has been sealed", field="grant")
    raise GrantUnknown("grant: no image is exposed under it for this writer, epoch and shape", field="grant")


def _descriptors_named(prefix: str, endpoint: ShmEndpoint) -> Iterator[str]:
    folder = f"/proc/{endpoint.pid}/fd"
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        try:
            found = os.readlink(path)
        except FileNotFoundError:
            continue  # closed while we looked
        if found.startswith(prefix):
            yield path
