"""Every way to bytes asks a real owner, whose grant is good for its own blocks: by memory and by TCP, one by one.

Shared memory is read by nobody's leave, and its reader installs nothing before the owner's yes; see the last test.
"""

import asyncio
from dataclasses import dataclass

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import BadInput, GrantUnknown, NotAuthorised, StaleEpoch
from isthmus.core.ids import GrantId, WorkerId
from isthmus.transport.base import BlockRead, Endpoint, PeerId, Reader
from isthmus.transport.memory import MemoryExporter, MemoryHub, MemoryReader
from isthmus.transport.shm import SharedMemory, ShmExporter, ShmReader
from isthmus.transport.tcp import TcpExporter, TcpReader
from tests.ownership.worlds import DECODE, DECODE_LIFE, LEASE, PREFILL, PREFILL_LIFE, World, grant_of
from tests.transport.worlds import SOON, image, lender, pool, shape, staging

GRID = (shape("g0.tp0.kv", 3, 384),)
BLOCKS = 8


@dataclass(slots=True, kw_only=True)
class Path:
    """One transport's way from an owner to a reader."""

    world: World
    held: dict
    reader: Reader
    endpoint: Endpoint

    async def read(self, grant, epoch, blocks, reader=DECODE, num_blocks=BLOCKS, regions=GRID) -> dict:
        request = BlockRead(
            grant=grant, epoch=epoch, reader=reader, regions=regions, blocks=tuple(blocks), num_blocks=num_blocks
        )
        into = staging(request)
        await self.reader.read(request, self.endpoint, into, SOON)
        assert {name: bytes(view) for name, view in into.items()} == image(self.held, request)
        return into


@pytest.fixture(params=["memory", "tcp"])
async def path(request):
    clock, world = SystemClock(), World(source_blocks=BLOCKS)
    held = pool(3, GRID, BLOCKS)
    lent = lender(held, GRID, BLOCKS)
    hub = MemoryHub(clock)
    if request.param == "memory":
        exporter, reader = MemoryExporter(hub, lent, world.source, clock), MemoryReader(hub, clock)
    else:
        exporter = TcpExporter(PeerId(worker=PREFILL, incarnation=PREFILL_LIFE), lent, world.source, clock)
        reader = TcpReader(PeerId(worker=DECODE, incarnation=DECODE_LIFE), clock)
    yield Path(world=world, held=held, reader=reader, endpoint=await exporter.start())
    await reader.close()
    await exporter.close()


async def test_a_grant_reads_its_own_blocks(path):
    offer = await path.world.publish(path.world.handoff())
    await path.read(grant_of(offer), offer.epoch, offer.blocks)


async def test_blocks_of_another_grant_or_of_none_are_refused(path):
    offer = await path.world.publish(path.world.handoff())
    other = await path.world.publish(path.world.handoff())
    free = next(block for block in range(BLOCKS) if block not in (*offer.blocks, *other.blocks))
    for blocks in (other.blocks, [*offer.blocks, other.blocks[0]], [free]):
        with pytest.raises(NotAuthorised):
            await path.read(grant_of(offer), offer.epoch, blocks)


async def test_another_epoch_is_refused(path):
    offer = await path.world.publish(path.world.handoff())
    for epoch in (offer.epoch + 1, 1 << 40):
        with pytest.raises(StaleEpoch):
            await path.read(grant_of(offer), epoch, offer.blocks)


async def test_a_forged_grant_is_unknown(path):
    offer = await path.world.publish(path.world.handoff())
    forged = GrantId(grant_of(offer)[:32] + "0" * 32)
    for grant in (forged, GrantId("0" * 64)):
        with pytest.raises(GrantUnknown):
            await path.read(grant, offer.epoch, offer.blocks)


async def test_another_reader_is_refused(path):
    offer = await path.world.publish(path.world.handoff())
    with pytest.raises(NotAuthorised):
        await path.read(grant_of(offer), offer.epoch, offer.blocks, reader=WorkerId("decode-9"))


async def test_a_grant_that_was_confirmed_or_has_run_out_is_stale(path):
    spent, late = [await path.world.publish(path.world.handoff()) for _ in range(2)]
    path.world.confirm(spent)
    path.world.clock.advance(LEASE)
    for offer in (spent, late):
        with pytest.raises((StaleEpoch, NotAuthorised)):
            await path.read(grant_of(offer), offer.epoch, offer.blocks)


async def test_a_reader_cannot_choose_shapes_and_so_reach_other_bytes(path):
    offer = await path.world.publish(path.world.handoff())
    grant, epoch, blocks = grant_of(offer), offer.epoch, offer.blocks
    for wrong in (shape("g0.tp0.kv", 3, 385), shape("g0.tp0.kv", 4, 384), shape("elsewhere", 3, 384)):
        with pytest.raises(BadInput):
            await path.read(grant, epoch, blocks, regions=(wrong,))
    with pytest.raises(BadInput):
        await path.read(grant, epoch, blocks, num_blocks=BLOCKS + 1)


async def test_what_was_read_by_shared_memory_is_worth_nothing_without_the_owners_yes():
    """One-sided: nobody asks before the first byte. So the last word is the owner's, and it says no."""
    clock, world = SystemClock(), World(source_blocks=BLOCKS)
    memory = SharedMemory(clock)
    view = memory.allocate(GRID[0].size_bytes(BLOCKS))
    held = pool(3, GRID, BLOCKS)
    view[:] = held[GRID[0].id].tobytes()
    from isthmus.transport.blocks import HostLender

    exporter = ShmExporter(memory, HostLender(GRID, BLOCKS, {GRID[0].id: view}))
    reader = ShmReader(clock)
    offer = await world.publish(world.handoff())
    path = Path(world=world, held=held, reader=reader, endpoint=await exporter.start())
    world.clock.advance(LEASE)
    world.source.reap()
    await path.read(grant_of(offer), offer.epoch, offer.blocks)
    with pytest.raises(StaleEpoch):
        world.confirm(offer)
    await reader.close()
    await exporter.close()
    await asyncio.sleep(0)
    memory.close()
