"""What all transports must do, whichever way the bytes go."""

import asyncio

import pytest
from hypothesis import given, settings

from isthmus.core.clock import SystemClock
from isthmus.core.errors import BadInput, Bug, GrantUnknown, NotAuthorised, StaleEpoch
from isthmus.core.ids import WorkerId
from isthmus.transport.blocks import HostLender
from isthmus.transport.memory import MemoryExporter, MemoryHub, MemoryReader
from isthmus.transport.shm import ShmReader
from isthmus.transport.tcp import TcpReader
from tests.transport.worlds import (
    CONSUMER,
    FOREIGN,
    SOON,
    STALE,
    UNKNOWN,
    FakeGuard,
    cases,
    image,
    pool,
    request,
    shape,
    staging,
)

GRID = (shape("tp0.kv", 6, 384), shape("tp1.kv", 2, 1000))
SERVED = ("memory", "tcp")


class World:
    """One pool behind all three transports: two in the owner's process, one in ours."""

    def __init__(self, owner, seed, regions, num_blocks):
        clock = SystemClock()
        hub = MemoryHub(clock)
        self.held = pool(seed, regions, num_blocks)
        buffers = {name: memoryview(array.reshape(-1)) for name, array in self.held.items()}
        self.exporter = MemoryExporter(hub, HostLender(tuple(regions), num_blocks, buffers), FakeGuard(), clock)
        self.endpoints = owner.open(seed, regions, num_blocks)
        self.readers = {"memory": MemoryReader(hub, clock), "shm": ShmReader(clock), "tcp": TcpReader(CONSUMER, clock)}

    async def __aenter__(self):
        self.endpoints["memory"] = await self.exporter.start()
        return self

    async def __aexit__(self, *_):
        for reader in self.readers.values():
            await reader.close()
        await self.exporter.close()

    async def read(self, name, read, into):
        return await self.readers[name].read(read, self.endpoints[name], into, SOON)


@settings(max_examples=25)
@given(case=cases())
async def test_random_grids_and_block_lists_arrive_bit_identical(owner, case):
    seed, regions, num_blocks, blocks = case
    async with World(owner, seed, regions, num_blocks) as world:
        read = request(regions, blocks, num_blocks)
        wanted = image(world.held, read)
        for name in world.readers:
            into = staging(read)
            assert await world.read(name, read, into) == read.size_bytes
            assert {region: bytes(view) for region, view in into.items()} == wanted, name


async def test_a_part_of_the_regions_in_another_order_arrives(owner):
    async with World(owner, 3, GRID, 9) as world:
        read = request(GRID[::-1], [8, 0, 4], 9)
        for name in world.readers:
            for part in (read, request(GRID[1:], [5], 9)):
                into = staging(part)
                await world.read(name, part, into)
                assert {region: bytes(view) for region, view in into.items()} == image(world.held, part)


@pytest.mark.parametrize("blocks", [[1, 2, 1], [9], [-1], []])
def test_duplicate_missing_and_outlying_blocks_are_refused_at_birth(blocks):
    with pytest.raises(ValueError, match="blocks"):
        request(GRID, blocks, 9)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(("grant", "error"), [(STALE, StaleEpoch), (FOREIGN, NotAuthorised), (UNKNOWN, GrantUnknown)])
async def test_a_refusal_arrives_by_name_and_the_next_read_succeeds(owner, name, grant, error):
    async with World(owner, 4, GRID, 9) as world:
        good = request(GRID, [1], 9)
        into = staging(good, fill=7)
        for _ in range(3):
            with pytest.raises(error):
                await world.read(name, request(GRID, [1], 9, grant), into)
            assert all(set(bytes(view)) == {7} for view in into.values())
        await world.read(name, good, into)
        assert {region: bytes(view) for region, view in into.items()} == image(world.held, good)


@pytest.mark.parametrize("name", SERVED)
async def test_another_reader_than_the_grants_is_refused(owner, name):
    async with World(owner, 4, GRID, 9) as world:
        read = request(GRID, [1], 9, reader=WorkerId("somebody"))
        with pytest.raises(NotAuthorised):
            await world.read(name, read, staging(read))


@pytest.mark.parametrize("name", ["memory", "shm", "tcp"])
@pytest.mark.parametrize(
    "read",
    [
        request(GRID, [1], 8),
        request([shape("tp0.kv", 6, 383)], [1], 9),
        request([shape("tp0.kv", 1 << 60, 384)], [1], 9),
        request([shape("../../etc/passwd", 6, 384)], [1], 9),
    ],
    ids=["extent", "block_bytes", "outer", "name"],
)
async def test_another_idea_of_the_regions_is_refused(owner, name, read):
    async with World(owner, 4, GRID, 9) as world:
        small = {region.id: memoryview(bytearray(1)) for region in read.regions}
        into = staging(read) if read.regions[0].outer < 100 else small
        with pytest.raises((BadInput, Bug)):  # a Bug where the staging buffer cannot fit: ours, and before asking
            await world.read(name, read, into)


@pytest.mark.parametrize("name", ["memory", "shm", "tcp"])
async def test_staging_that_does_not_fit_is_our_bug(owner, name):
    async with World(owner, 4, GRID, 9) as world:
        read = request(GRID, [1, 2], 9)
        for wrong in (
            {},
            staging(request(GRID, [1], 9)),
            {region: memoryview(bytes(view)) for region, view in staging(read).items()},
        ):
            with pytest.raises(Bug):
                await world.read(name, read, wrong)


@pytest.mark.parametrize("name", ["memory", "shm", "tcp"])
async def test_many_reads_at_once_do_not_mix(owner, name):
    async with World(owner, 5, GRID, 40) as world:
        reads = [
            request(GRID, [index, (index * 7 + 3) % 40], 40) for index in range(40) if index != (index * 7 + 3) % 40
        ]
        into = [staging(read) for read in reads]
        await asyncio.gather(*(world.read(name, read, views) for read, views in zip(reads, into, strict=True)))
        for read, views in zip(reads, into, strict=True):
            assert {region: bytes(view) for region, view in views.items()} == image(world.held, read)


@pytest.mark.parametrize("name", ["memory", "shm", "tcp"])
async def test_nothing_writes_after_a_cancelled_read(owner, name):
    regions = (shape("tp0.kv", 64, 1 << 16),)
    async with World(owner, 6, regions, 16) as world:  # 64 MiB
        read = request(regions, range(16), 16)
        for turns in range(0, 15, 2):
            into = staging(read)
            task = asyncio.create_task(world.read(name, read, into))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_still(into)
        await world.read(name, read, into)
        assert {region: bytes(view) for region, view in into.items()} == image(world.held, read)


async def assert_still(into):
    """Nothing writes: the content is the same after the loop and other threads have had time."""
    before = {region: bytes(view) for region, view in into.items()}
    await asyncio.sleep(0.02)  # the one wait for something *not* to happen
    assert all(bytes(view) == before[region] for region, view in into.items())
