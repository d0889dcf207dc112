"""The owner's side: memory to allocate an engine's regions in, and its export."""

import fcntl
import hashlib
import mmap
import os

import numpy as np

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug
from isthmus.core.limits import POOL_BYTES_MAX, SHM_HEADER_BYTES
from isthmus.transport.base import Endpoint, ShmEndpoint
from isthmus.transport.blocks import HostLender
from isthmus.transport.shm._header import Header, PlacedRegion, wipe_stamp, write_header

__all__ = ["FILE_NAME", "SEALS", "SharedMemory", "ShmExporter", "host_identity"]

FILE_NAME = "isthmus-kv"
F_ADD_SEALS = 1033
F_SEAL_FUTURE_WRITE = 0x10  # linux 5.1; not in Python 3.11's fcntl
# Never smaller (a reader's mapping would fault), never larger, and no writable mapping but ours, made before.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE


def host_identity() -> str:
    """32 hex digits, equal in two processes only where `/proc/<pid>/fd` of one leads the other to the right file.

    That needs one boot of one kernel, one pid namespace, and one user.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{boot} {namespace} {os.geteuid()}".encode()).hexdigest()[:32]


class SharedMemory:
    """One memfd, given out in page-aligned pieces. Freed when the last view of it and the last reader have gone.

    Each piece is a mapping of its own and costs one descriptor; a worker has at most `REGIONS_MAX`.
    """

    def __init__(self, clock: Clock) -> None:
        self.stamp = clock.token()
        self.fd = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size_bytes = 0
        self._pieces: list[tuple[int, int, int]] = []  # (address, size, offset in the file)
        self._sealed = False
        self.header = self.allocate(SHM_HEADER_BYTES)

    def allocate(self, size_bytes: int) -> memoryview:
        """`size_bytes` of zeroed, writable memory that starts on a page.

        Raises:
            Bug: nothing or too much is wanted, or the memory has been exported already.
        """
        if self._sealed:
            raise Bug("allocate: after the export; the regions of a worker are fixed by then", field="size_bytes")
        if not 1 <= size_bytes <= POOL_BYTES_MAX - self._size_bytes:
            raise Bug(f"size_bytes: {size_bytes}, wanted 1 to {POOL_BYTES_MAX - self._size_bytes}", field="size_bytes")
        offset = self._size_bytes
        rounded = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self.fd, offset + rounded)
        self._size_bytes += rounded
        view = memoryview(mmap.mmap(self.fd, rounded, offset=offset))[:size_bytes]
        self._pieces.append((_address(view), rounded, offset))
        return view

    def offset_of(self, view: memoryview) -> int:
        """The byte of the file that `view` starts at.

        Raises:
            Bug: it does not lie in this memory.
        """
        address = _address(view)
        for start, size, offset in self._pieces:
            if start <= address and address + view.nbytes <= start + size:
                return offset + address - start
        raise Bug("view: does not lie in this shared memory; allocate the engine's pool in it", field="view")

    def seal(self) -> None:
        """No more allocations, no change of size, no writer but the views given out."""
        if not self._sealed:
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEALS)
            self._sealed = True

    def close(self) -> None:
        """No reader can come any more. Views that were given out stay valid, readers that have mapped it keep it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ShmExporter:
    """Exports a lender whose regions were allocated in a `SharedMemory`. Close it before the memory."""

    def __init__(self, memory: SharedMemory, lender: HostLender) -> None:
        self._memory = memory
        self._lender = lender

    async def start(self) -> Endpoint:
        """Raises Bug where a region does not lie in the shared memory."""
        regions = tuple(
            PlacedRegion(shape=shape, offset=self._memory.offset_of(self._lender.buffer(shape.id)))
            for shape in self._lender.regions
        )
        header = Header(num_blocks=self._lender.num_blocks, regions=regions)
        write_header(self._memory.header, header, self._memory.stamp)
        self._memory.seal()
        return ShmEndpoint(host=host_identity(), pid=os.getpid(), fd=self._memory.fd, stamp=self._memory.stamp)

    async def close(self) -> None:
        # Readers are not seen from here: they look at the stamp before the first and after the last byte, so a read
        # that overlaps this fails. The memory itself stays theirs to read until they unmap it.
        wipe_stamp(self._memory.header)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
