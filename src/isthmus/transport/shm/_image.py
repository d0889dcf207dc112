"""One image in a memory file of its own, which one peer may map and write until the consumer seals it.

Its name says whose it is: a digest of the target, so that a peer that errs in grant, epoch, writer or shape finds
none. It can be neither shrunk nor grown. The kernel adds the seal against writing only while nobody has the file
mapped writably, and lets nobody write or map it so afterwards: a seal that holds is proof that no write can come any
more (I2), whether the writer has stopped, was killed, or forgot. No file is used for a second image.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Mapping

import msgspec

from isthmus.core.errors import CapacityExceeded
from isthmus.core.ids import RegionId
from isthmus.transport.base import Target

__all__ = ["IMAGE_SEALS", "SharedImage", "image_name", "regions_in"]

F_ADD_SEALS = 1033
IMAGE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
ALIGN_BYTES = 64
"""Regions start on a cache line, as fresh memory would."""

_encoder = msgspec.msgpack.Encoder()


def image_name(target: Target) -> str:
    """What the file of a target's image is called; says nothing of the grant to who only sees the name."""
    return f"isthmus-image-{hashlib.sha256(_encoder.encode(target)).hexdigest()}"


def regions_in(target: Target) -> tuple[dict[RegionId, slice], int]:
    """Where each region lies in the file, and the file's size; both sides derive them."""
    places, end = {}, 0
    for region in target.regions:
        size = region.size_bytes(target.num_blocks)
        places[region.id] = slice(end, end + size)
        end += -(-size // ALIGN_BYTES) * ALIGN_BYTES
    return places, end


class SharedImage:
    """The consumer's side of one image."""

    def __init__(self, target: Target) -> None:
        """Raises CapacityExceeded where the system gives no descriptor or memory."""
        self.target = target
        self._fd = -1
        places, size = regions_in(target)
        try:
            self._fd = os.memfd_create(image_name(target), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, size)
            fcntl.fcntl(self._fd, F_ADD_SEALS, IMAGE_SEALS)
            # Private, and never written by us: we see the peer's bytes, and our own mapping does not keep a seal away.
            memory = memoryview(mmap.mmap(self._fd, size, access=mmap.ACCESS_COPY))
        except OSError as error:
            self.let_go()
            raise CapacityExceeded(
                f"image: no shared memory of {size} bytes: {error.strerror}", field="image"
            ) from error
        self.regions: Mapping[RegionId, memoryview] = {name: memory[place] for name, place in places.items()}

    def seal(self) -> bool:
        """Whether the kernel says that nobody can write into the image, now or later. What is read stays readable."""
        if self._fd < 0:
            return True
        try:
            fcntl.fcntl(self._fd, F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except OSError:
            return False  # mapped by a writer, or sealed against seals by one: either way it may write
        self.let_go()
        return True

    def let_go(self) -> None:
        """Nobody can find the file from now on. A writer that has mapped it keeps it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
