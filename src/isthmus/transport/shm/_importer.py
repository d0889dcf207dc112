"""The consumer's side of writes: images that peers map, and a registered memory that says whose process this is."""

import os
from collections.abc import Mapping

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug
from isthmus.core.ids import GrantId, RegionId
from isthmus.transport.base import Endpoint, ShmEndpoint, Target
from isthmus.transport.shm._header import wipe_stamp, write_stamp
from isthmus.transport.shm._image import SharedImage
from isthmus.transport.shm._memory import SharedMemory, host_identity

__all__ = ["ShmImporter"]


class ShmImporter:
    """Exposes images. One-sided: no guard is asked, for a writer that has found its image needs nobody.

    What it can reach is that image alone, in a file that no other hand-off ever gets.
    """

    def __init__(self, clock: Clock) -> None:
        self._memory = SharedMemory(clock)
        self._images: dict[GrantId, SharedImage] = {}

    async def start(self) -> Endpoint:
        memory = self._memory
        write_stamp(memory.header, memory.stamp)
        memory.seal()
        return ShmEndpoint(host=host_identity(), pid=os.getpid(), fd=memory.fd, stamp=memory.stamp)

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        if target.grant in self._images:
            raise Bug("grant: it has a target already", field="grant")
        image = SharedImage(target)
        self._images[target.grant] = image
        return image.regions

    async def withdraw(self, grant: GrantId) -> bool:
        image = self._images.get(grant)
        if image is None:
            return True
        if not image.seal():
            return False  # kept, so that it can be asked again
        del self._images[grant]
        return True

    async def close(self) -> None:
        # An image that a writer still has mapped lives on as that mapping, which nobody here looks at any more.
        wipe_stamp(self._memory.header)
        for image in self._images.values():
            image.seal()
            image.let_go()
        self._images.clear()
        self._memory.close()
