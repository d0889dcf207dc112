"""Ways to write into images of another simulated process, over virtual time: one-sided like shm, and taken like tcp.

One-sided: once a writer has an image mapped it copies piece by piece, and sees nothing but its owner's death; an image
is sealed only while nobody has it mapped, and afterwards nobody can map it. A stopped writer keeps its mapping and,
once it goes on, its copy. Taken: the consumer's process asks its guard first, and puts there what arrives for as long
as the image is exposed. (Within one process the real `transport.memory` is used.)
"""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, GrantUnknown, IsthmusError, PeerLost, StaleEpoch
from isthmus.core.ids import GrantId, RegionId
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.lab.seeds.loop import Process, VirtualLoop
from isthmus.transport.base import BlockWrite, Endpoint, Importer, Lender, Target, WriteGuard
from isthmus.transport.images import allocate_image, check_lent, check_target, copy_piece, pieces_of

__all__ = ["Image", "Imports", "OneSidedImporter", "OneSidedWriter", "TakenImporter", "TakenWriter", "WatchedImporter"]


@dataclass(slots=True, kw_only=True)
class Image:
    """What is exposed under one grant, and which processes have it mapped, how many times."""

    target: Target
    regions: Mapping[RegionId, memoryview]
    mapped: dict[Process, int] = field(default_factory=dict)
    sealed: bool = False


@dataclass(slots=True, kw_only=True)
class Imports:
    """One consumer's images, the process that they die with, and what its own loops need."""

    process: Process
    guard: WriteGuard
    late: Callable[[GrantId], None]
    images: dict[GrantId, Image] = field(default_factory=dict)

    def writing(self, image: Image) -> None:
        """For a one-sided writer to call before it writes: nothing of what it does asks anybody else."""
        if image.sealed:
            self.late(image.target.grant)


class _Importer:
    """What both ways share."""

    def __init__(self, imports: Imports, endpoint: Endpoint) -> None:
        self._imports = imports
        self._endpoint = endpoint

    async def start(self) -> Endpoint:
        return self._endpoint

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        image = Image(target=target, regions=allocate_image(target))
        self._imports.images[target.grant] = image
        return image.regions

    async def withdraw(self, grant: GrantId) -> bool:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is kept."""


class OneSidedImporter(_Importer):
    """Seals an image that nobody living has mapped."""

    async def withdraw(self, grant: GrantId) -> bool:
        image = self._imports.images.get(grant)
        if image is None:
            return True
        if self.mapped(image):
            return False
        image.sealed = True
        return True

    def mapped(self, image: Image) -> bool:
        """Whether some living process has it mapped: the kernel knows, and then it cannot be sealed."""
        return any(count for process, count in image.mapped.items() if not process.dead)


class TakenImporter(_Importer):
    """Takes nothing more: what is on its way is dropped when it arrives."""

    async def withdraw(self, grant: GrantId) -> bool:
        image = self._imports.images.get(grant)
        if image is not None:
            image.sealed = True
        return True


class WatchedImporter:
    """An importer that tells of the bytes that it exposes, and of each grant whose end is proven."""

    def __init__(self, inner: Importer, began: Callable[[int], None], ended: Callable[[GrantId, int], None]) -> None:
        self._inner = inner
        self._began = began
        self._ended = ended
        self._sizes: dict[GrantId, int] = {}

    async def start(self) -> Endpoint:
        return await self._inner.start()

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        image = self._inner.expose(target)
        self._sizes[target.grant] = target.size_bytes
        self._began(target.size_bytes)
        return image

    async def withdraw(self, grant: GrantId) -> bool:
        proven = await self._inner.withdraw(grant)
        if proven and grant in self._sizes:
            self._ended(grant, self._sizes.pop(grant))
        return proven

    async def close(self) -> None:
        await self._inner.close()


class _Writer:
    """What both ways share. `imports` is by endpoint, and belongs to the world."""

    def __init__(
        self, loop: VirtualLoop, clock: Clock, imports: Mapping[Endpoint, Imports], chunk_bytes: int, step: Duration
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._all_imports = imports
        self._chunk_bytes = chunk_bytes
        self._step = step

    def can_reach(self, endpoint: Endpoint) -> bool:
        return endpoint in self._all_imports

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        imports = self._all_imports.get(endpoint)
        if imports is None or imports.process.dead:
            raise PeerLost("endpoint: nobody is there", field="endpoint")
        check_lent(request, lender, blocks)
        return await within(self._clock, deadline, self._write(request, imports, lender, blocks), "write")

    async def _write(self, request: BlockWrite, imports: Imports, lender: Lender, blocks: Sequence[int]) -> ByteCount:
        raise NotImplementedError

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing is kept."""


class OneSidedWriter(_Writer):
    """Maps the image, copies, and lets go of it."""

    async def _write(self, request: BlockWrite, imports: Imports, lender: Lender, blocks: Sequence[int]) -> ByteCount:
        image = imports.images.get(request.target.grant)
        if image is None:
            raise GrantUnknown("grant: nothing is exposed under it", field="grant")
        check_target(request, image.target)
        if image.sealed:
            raise StaleEpoch("grant: its image has been sealed", field="grant")
        me = self._loop.current
        image.mapped[me] = image.mapped.get(me, 0) + 1
        try:
            for region in request.target.regions:
                for piece in pieces_of(region, request, self._chunk_bytes):
                    await self._clock.sleep(self._step)
                    if imports.process.dead:
                        raise PeerLost("endpoint: the consumer's process has ended", field="endpoint")
                    imports.writing(image)
                    copy_piece(lender, blocks, region, piece, image.regions)
        finally:
            image.mapped[me] -= 1
        return request.size_bytes


class TakenWriter(_Writer):
    """Sends pieces to the consumer's process, and waits until that says that it has all."""

    async def _write(self, request: BlockWrite, imports: Imports, lender: Lender, blocks: Sequence[int]) -> ByteCount:
        answers: asyncio.Queue[IsthmusError | None] = asyncio.Queue()
        writer = self._loop.current

        def answer(what: IsthmusError | None) -> None:
            self._loop.call_in_of(writer, self._step.ns, answers.put_nowait, what)

        def in_consumer(work: Callable[[], None]) -> None:
            self._loop.call_in_of(imports.process, self._step.ns, work)

        in_consumer(lambda: answer(_refusal(imports, request)))
        refused = await answers.get()
        if refused is not None:
            raise refused
        for region in request.target.regions:
            for piece in pieces_of(region, request, self._chunk_bytes):
                await self._clock.sleep(self._step)
                data = bytearray(piece.stop - piece.start)  # copied out now, put in its place when it arrives
                lender.copy_out(region.id, piece.outer, blocks[piece.block_start : piece.block_stop], memoryview(data))
                in_consumer(functools.partial(_put, imports, request.target.grant, region.id, piece.start, data))
        in_consumer(lambda: answer(_refusal(imports, request)))
        missing = await answers.get()
        if missing is not None:
            raise missing
        return request.size_bytes


def _put(imports: Imports, grant: GrantId, region: RegionId, start: int, data: bytearray) -> None:
    """Runs in the consumer: a piece has arrived, and is put in its place if that is still there."""
    image = imports.images.get(grant)
    if image is not None and not image.sealed:
        image.regions[region][start : start + len(data)] = data


def _refusal(imports: Imports, request: BlockWrite) -> IsthmusError | None:
    """Runs in the consumer: why this write may not begin, or has not arrived whole."""
    target = request.target
    try:
        imports.guard.check_write(target.grant, target.epoch, target.writer)
        image = imports.images.get(target.grant)
        if image is None or image.sealed:
            raise GrantUnknown("grant: nothing is exposed under it", field="grant")
        check_target(request, image.target)
    except Bug:
        raise
    except IsthmusError as refused:
        return refused
    return None
