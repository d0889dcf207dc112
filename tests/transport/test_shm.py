"""Shared memory: what is mapped, from whom, for how long, and what happens when the owner goes."""

import asyncio
import errno
import gc
import mmap
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import Bug, DeadlineExceeded, PeerLost, TransferFailed, Unsupported
from isthmus.core.units import Duration
from isthmus.transport.base import ShmEndpoint
from isthmus.transport.blocks import HostLender
from isthmus.transport.shm import SharedMemory, ShmExporter, ShmReader
from tests.transport.worlds import SOON, image, pool, request, shape, staging, until

GRID = (shape("tp0.kv", 4, 384),)
LARGE = (shape("tp0.kv", 64, 1 << 16),)  # 64 MiB in 16 blocks
FINE = (shape("tp0.kv", 64, 64),)  # the same in 16,384


@pytest.fixture
async def reader():
    found = ShmReader(SystemClock())
    yield found
    await found.close()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:isthmus-kv")


def descriptors() -> int:
    """Open now, but for what an earlier test has left to the collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def read_one(reader, endpoint, regions=GRID, num_blocks=9):
    read = request(regions, [3, 1], num_blocks)
    into = staging(read)
    await reader.read(read, endpoint, into, SOON)
    return {region: bytes(view) for region, view in into.items()}, read


async def test_two_hundred_reads_leave_no_descriptor_and_no_mapping(owner, reader):
    endpoint = owner.open(1, GRID, 9)["shm"]
    await read_one(reader, endpoint)
    before = descriptors(), mappings()
    for _ in range(200):
        await read_one(reader, endpoint)
    assert (descriptors(), mappings()) == before
    reader.forget(endpoint)
    gc.collect()
    assert mappings() == before[1] - 1
    for _ in range(20):  # attach and forget, again and again
        await read_one(reader, endpoint)
        reader.forget(endpoint)
    gc.collect()
    assert mappings() == before[1] - 1
    assert descriptors() == before[0] - 2  # the file and the process handle


async def test_a_dead_owners_memory_is_unmapped_without_being_asked(mortal, reader):
    endpoint = mortal.open(1, GRID, 9)["shm"]
    await read_one(reader, endpoint)
    assert mappings() == 1
    mortal.kill()
    await until(lambda: not mappings())
    with pytest.raises(PeerLost):
        await read_one(reader, endpoint)


async def test_an_owner_killed_in_mid_read_is_lost_and_nothing_writes_afterwards(mortal):
    reader = ShmReader(SystemClock(), chunk_bytes=4096)
    endpoint = mortal.open(1, LARGE, 16)["shm"]
    read = request(LARGE, range(15, -1, -1), 16)
    into = staging(read)
    task = asyncio.create_task(reader.read(read, endpoint, into, SOON))
    view = into[LARGE[0].id]
    await until(lambda: any(view[:256]))
    mortal.kill()
    async with asyncio.timeout(2):
        with pytest.raises(PeerLost):
            await task
    assert not any(view[-256:])  # it was in the middle indeed
    before = bytes(view)
    await asyncio.sleep(0.02)  # waits for something not to happen
    assert bytes(view) == before
    await reader.close()


async def test_an_export_that_closes_in_mid_read_fails_the_read():
    """The last byte may be of another life of the memory: whoever withdrew it is believed, not the copy."""
    clock, held = SystemClock(), pool(1, LARGE, 16)
    memory = SharedMemory(clock)
    view = memory.allocate(held[LARGE[0].id].size)
    np.frombuffer(view, np.uint8)[:] = held[LARGE[0].id].reshape(-1)
    exporter = ShmExporter(memory, HostLender(LARGE, 16, {LARGE[0].id: view}))
    reader = ShmReader(clock, chunk_bytes=4096)
    read = request(LARGE, range(16), 16)
    into = staging(read)
    task = asyncio.create_task(reader.read(read, await exporter.start(), into, SOON))
    await until(lambda: any(into[LARGE[0].id][:256]))
    await exporter.close()
    with pytest.raises(PeerLost, match="closed its export"):
        await task
    await reader.close()
    memory.close()


async def test_forget_ends_a_read_in_flight(owner):
    """In a million chunks: it is still in flight when this thread gets its turn, however busy the machine is."""
    reader = ShmReader(SystemClock(), chunk_bytes=64)
    endpoint = owner.open(1, FINE, 1 << 14)["shm"]
    read = request(FINE, range(1 << 14), 1 << 14)
    into = staging(read)
    task = asyncio.create_task(reader.read(read, endpoint, into, SOON))
    await until(lambda: any(into[FINE[0].id][:256]))
    reader.forget(endpoint)
    with pytest.raises(PeerLost):
        await task
    await reader.close()


async def test_a_deadline_ends_a_copy_and_is_drained(owner):
    clock = ManualClock()
    reader = ShmReader(clock, chunk_bytes=4096)
    endpoint = owner.open(1, LARGE, 16)["shm"]
    read = request(LARGE, range(16), 16)
    into = staging(read)
    task = asyncio.create_task(reader.read(read, endpoint, into, Duration.of_ms(5)))
    await until(lambda: any(into[LARGE[0].id][:256]))
    clock.advance(Duration.of_ms(5))
    with pytest.raises(DeadlineExceeded):
        await task
    before = bytes(into[LARGE[0].id])
    await asyncio.sleep(0.02)  # waits for something not to happen
    assert bytes(into[LARGE[0].id]) == before
    await reader.close()


async def test_the_endpoint_of_a_life_before_is_refused_by_its_stamp(owner, reader):
    first = owner.open(1, GRID, 9)["shm"]
    second = owner.open(2, GRID, 9)["shm"]  # the same process, quite possibly the same descriptor number
    for fd in {first.fd, second.fd}:
        stale = msgspec.structs.replace(first, fd=fd)
        with pytest.raises(PeerLost):
            await read_one(reader, stale)
    found, read = await read_one(reader, second)
    assert found == image(pool(2, GRID, 9), read)


async def test_a_reused_descriptor_with_another_stamp_is_refused(owner, reader):
    endpoint = owner.open(1, GRID, 9)["shm"]
    with pytest.raises(PeerLost, match="stamp"):
        await read_one(reader, msgspec.structs.replace(endpoint, stamp="0" * 32))


async def test_an_owner_that_closes_its_export_is_noticed_by_a_reader_that_has_it_mapped(owner, reader):
    endpoint = owner.open(1, GRID, 9)["shm"]
    await read_one(reader, endpoint)
    owner.ask(do="close")
    with pytest.raises(PeerLost):
        await read_one(reader, endpoint)
    gc.collect()
    assert mappings() == 0


@pytest.mark.parametrize("fd", [0, 1, 2, 1 << 20])
async def test_any_other_file_of_the_owner_is_not_opened(owner, reader, fd):
    endpoint = msgspec.structs.replace(owner.open(1, GRID, 9)["shm"], fd=fd)
    with pytest.raises(PeerLost, match=r"endpoint\.fd"):
        await read_one(reader, endpoint)


async def test_no_such_process_is_a_lost_peer(owner, reader, mortal):
    endpoint = mortal.open(1, GRID, 9)["shm"]
    mortal.kill()
    with pytest.raises(PeerLost):
        await read_one(reader, endpoint)


async def test_another_host_is_out_of_reach(owner, reader):
    endpoint = owner.open(1, GRID, 9)["shm"]
    elsewhere = msgspec.structs.replace(endpoint, host="0" * 32)
    assert reader.can_reach(endpoint)
    assert not reader.can_reach(elsewhere)
    with pytest.raises(Unsupported):
        await read_one(reader, elsewhere)


async def test_a_file_that_could_shrink_is_not_mapped(reader):
    memory = SharedMemory(SystemClock())
    endpoint = ShmEndpoint(host=reader._host, pid=os.getpid(), fd=memory.fd, stamp=memory.stamp)
    with pytest.raises(TransferFailed, match="sealed"):
        await read_one(reader, endpoint)
    memory.close()


async def test_nobody_else_can_map_the_memory_for_writing(owner):
    endpoint = owner.open(1, GRID, 9)["shm"]
    fd = os.open(f"/proc/{endpoint.pid}/fd/{endpoint.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        os.write(fd, b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        os.ftruncate(fd, 0)
    os.close(fd)


async def test_allocations_are_zeroed_page_aligned_and_closed_by_the_export():
    memory = SharedMemory(SystemClock())
    views = [memory.allocate(size) for size in (1, 4096, 5000)]
    for view, size in zip(views, (1, 4096, 5000), strict=True):
        array = np.frombuffer(view, np.uint8)
        assert array.ctypes.data % mmap.PAGESIZE == 0
        assert (array.size, array.any()) == (size, False)
    region = shape("tp0.kv", 1, 5000)
    exporter = ShmExporter(memory, HostLender((region,), 1, {region.id: views[2]}))
    await exporter.start()
    with pytest.raises(Bug, match="allocate"):
        memory.allocate(1)
    views[2][0] = 1  # the owner itself still writes
    await exporter.close()
    memory.close()


async def test_a_region_outside_the_memory_cannot_be_exported():
    memory = SharedMemory(SystemClock())
    region = shape("tp0.kv", 1, 64)
    with pytest.raises(Bug, match="shared memory"):
        await ShmExporter(memory, HostLender((region,), 1, {region.id: memoryview(bytearray(64))})).start()
    memory.close()
