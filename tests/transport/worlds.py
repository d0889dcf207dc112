"""Pools of random bytes, requests for them, a guard with a few grants, and the expected image."""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from isthmus.core.errors import GrantUnknown, NotAuthorised, StaleEpoch
from isthmus.core.ids import BlockId, Epoch, GrantId, Incarnation, RegionId, WorkerId
from isthmus.core.units import Duration
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockRead, BlockWrite, PeerId, Target
from isthmus.transport.blocks import HostLender

GOOD = GrantId("a" * 64)
STALE = GrantId("b" * 64)
FOREIGN = GrantId("c" * 64)
UNKNOWN = GrantId("d" * 64)
CONSUMER = PeerId(worker=WorkerId("consumer"), incarnation=Incarnation("2" * 32))
OWNER = PeerId(worker=WorkerId("owner"), incarnation=Incarnation("1" * 32))
SOON = Duration.of_seconds(20)


class FakeGuard:
    """Knows three grants: one good, one ended, one for other blocks. Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def check_read(self, grant: GrantId, epoch: Epoch, reader: WorkerId, blocks: Sequence[int]) -> None:
        self.asked += 1
        if grant == STALE:
            raise StaleEpoch(f"epoch: {epoch}, the grant has ended", field="epoch")
        if grant == FOREIGN or reader != CONSUMER.worker:
            raise NotAuthorised("blocks: not under this grant", field="blocks")
        if grant != GOOD:
            raise GrantUnknown("grant: never made here", field="grant")


class FakeWriteGuard:
    """As `FakeGuard`, for writes of the owner's into images of the consumer's."""

    def __init__(self) -> None:
        self.asked = 0

    def check_write(self, grant: GrantId, epoch: Epoch, writer: WorkerId) -> None:
        self.asked += 1
        if grant == STALE:
            raise StaleEpoch(f"epoch: {epoch}, the grant has ended", field="epoch")
        if grant == FOREIGN or writer != OWNER.worker:
            raise NotAuthorised("writer: not the grant's", field="writer")
        if grant == UNKNOWN:
            raise GrantUnknown("grant: never made here", field="grant")


def shape(name: str, outer: int, block_bytes: int) -> RegionShape:
    return RegionShape(id=RegionId(name), outer=outer, block_bytes=block_bytes)


def pool(seed: int, regions: Sequence[RegionShape], num_blocks: int) -> dict[RegionId, np.ndarray]:
    """The bytes of every region [outer, num_blocks, block_bytes], the same in every process."""
    rng = np.random.default_rng(seed)
    return {r.id: rng.integers(0, 256, (r.outer, num_blocks, r.block_bytes), dtype=np.uint8) for r in regions}


def request(
    regions: Sequence[RegionShape],
    blocks: Sequence[int],
    num_blocks: int,
    grant: GrantId = GOOD,
    reader: WorkerId = CONSUMER.worker,
) -> BlockRead:
    return BlockRead(
        grant=grant,
        epoch=Epoch(1),
        reader=reader,
        regions=tuple(regions),
        blocks=tuple(BlockId(block) for block in blocks),
        num_blocks=num_blocks,
    )


def target(
    regions: Sequence[RegionShape], num_blocks: int, grant: GrantId | None = None, writer: WorkerId = OWNER.worker
) -> Target:
    """Of a grant that no other test has used, unless one is given: an image of an earlier one may live on."""
    grant = GrantId(secrets.token_hex(32)) if grant is None else grant
    return Target(grant=grant, epoch=Epoch(1), writer=writer, regions=tuple(regions), num_blocks=num_blocks)


def write(wanted: Target, start: int = 0, stop: int | None = None) -> BlockWrite:
    return BlockWrite(target=wanted, start=start, stop=wanted.num_blocks if stop is None else stop)


def lender(held: dict[RegionId, np.ndarray], regions: Sequence[RegionShape], num_blocks: int) -> HostLender:
    return HostLender(tuple(regions), num_blocks, {n: memoryview(a.reshape(-1)) for n, a in held.items()})


def staging(read: BlockRead, fill: int = 0) -> dict[RegionId, memoryview]:
    """Buffers for a request, filled with one byte value."""
    return {r.id: memoryview(bytearray([fill]) * r.size_bytes(len(read.blocks))) for r in read.regions}


def image(held: dict[RegionId, np.ndarray], read: BlockRead) -> dict[RegionId, bytes]:
    """What ought to arrive, by plain indexing."""
    return {r.id: held[r.id][:, list(read.blocks)].tobytes() for r in read.regions}


@st.composite
def cases(draw) -> tuple[int, tuple[RegionShape, ...], int, list[int]]:
    """(seed, regions, num_blocks, blocks): block lists in any order, from one id to all."""
    num_blocks = draw(st.integers(1, 40))
    regions = tuple(
        shape(f"tp{index}.kv", draw(st.integers(1, 7)), draw(st.sampled_from([1, 3, 64, 384, 1000, 6144])))
        for index in range(draw(st.integers(1, 4)))
    )
    blocks = draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, unique=True))
    if draw(st.booleans()):
        blocks = sorted(blocks)
    return draw(st.integers(0, 2**32)), regions, num_blocks, blocks


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds. What is waited for is memory that another process or thread changes."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nobody could set an event
            await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Let everything that is ready go on, `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)
