"""What all transports must do when the producer writes, whichever way the bytes go. The bytes are new in every test."""

import asyncio
import secrets
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import (
    BadInput,
    Bug,
    DeadlineExceeded,
    GrantUnknown,
    IsthmusError,
    Lost,
    NotAuthorised,
    Rejected,
    StaleEpoch,
    TransferFailed,
)
from isthmus.core.ids import BlockId, Epoch, GrantId, WorkerId
from isthmus.core.units import Duration
from isthmus.transport.blocks import HostLender
from isthmus.transport.faulty import CANARY, Delay, Drop, FaultyWriter, FlipBit, LateWrite, Tear, When
from isthmus.transport.memory import MemoryHub, MemoryImporter, MemoryWriter
from isthmus.transport.shm import ShmImporter, ShmWriter
from isthmus.transport.tcp import TcpImporter, TcpWriter
from tests.transport.worlds import (
    CONSUMER,
    FOREIGN,
    OWNER,
    SOON,
    STALE,
    UNKNOWN,
    FakeWriteGuard,
    cases,
    lender,
    pool,
    shape,
    target,
    turns,
    until,
    write,
)

GRID = (shape("tp0.kv", 6, 384), shape("tp1.kv", 2, 1000))
LARGE = (shape("tp0.kv", 64, 1 << 16),)  # 64 MiB in 16 blocks
ALL = ("memory", "shm", "tcp")
GUARDED = ("memory", "tcp")


class World:
    """One pool, one consumer, all three transports."""

    def __init__(self, regions=GRID, num_blocks=9, clock=None):
        clock = clock or SystemClock()
        hub = MemoryHub(clock)
        self.held = pool(secrets.randbits(32), regions, num_blocks)
        self.lender = lender(self.held, regions, num_blocks)
        self.guard = FakeWriteGuard()
        self.importers = {
            "memory": MemoryImporter(hub, self.guard, clock),
            "shm": ShmImporter(clock),
            "tcp": TcpImporter(CONSUMER, self.guard, clock),
        }
        self.writers = {"memory": MemoryWriter(hub, clock), "shm": ShmWriter(clock), "tcp": TcpWriter(OWNER, clock)}
        self.endpoints = {}

    async def __aenter__(self):
        for name, importer in self.importers.items():
            self.endpoints[name] = await importer.start()
        return self

    async def __aexit__(self, *_):
        for mover in (*self.writers.values(), *self.importers.values()):
            await mover.close()

    async def write(self, name, request, blocks, lent=None, deadline=SOON):
        return await self.writers[name].write(request, self.endpoints[name], lent or self.lender, blocks, deadline)

    def wanted(self, blocks):
        return {name: array[:, list(blocks)].tobytes() for name, array in self.held.items()}


def content(image):
    return {region: bytes(view) for region, view in image.items()}


async def assert_still(image):
    """Nothing writes: the content is the same after the loop and other threads have had time."""
    before = content(image)
    await asyncio.sleep(0.02)  # the one wait for something *not* to happen
    assert content(image) == before


class Holding(HostLender):
    """Lends `after` pieces, and the next only when it is let go."""

    def __init__(self, world, regions, num_blocks, after):
        super().__init__(regions, num_blocks, {n: memoryview(a.reshape(-1)) for n, a in world.held.items()})
        self.after, self.reached, self.go = after, threading.Event(), threading.Event()

    def copy_out(self, region, outer, blocks, into):
        if self.after == 0:
            self.reached.set()
            assert self.go.wait(20)
        self.after -= 1
        super().copy_out(region, outer, blocks, into)


# ---- bytes arrive


@settings(max_examples=25, deadline=None)
@given(case=cases(), data=st.data())
async def test_random_grids_arrive_bit_identical_in_one_write_or_in_parts(case, data):
    _, regions, num_blocks, blocks = case
    cuts = sorted(data.draw(st.sets(st.integers(1, len(blocks)), max_size=3)) | {len(blocks)})
    async with World(regions, num_blocks) as world:
        for name in ALL:
            wanted = target(regions, len(blocks))
            image = world.importers[name].expose(wanted)
            for start, stop in zip([0, *cuts], cuts, strict=False):
                request = write(wanted, start, stop)
                assert await world.write(name, request, blocks[start:stop]) == request.size_bytes
            assert await world.importers[name].withdraw(wanted.grant)
            assert content(image) == world.wanted(blocks), name


@pytest.mark.parametrize("name", ALL)
async def test_a_part_leaves_the_rest_of_the_image_as_it_was(name):
    async with World() as world:
        wanted = target(GRID, 5)
        image = world.importers[name].expose(wanted)
        await world.write(name, write(wanted, 1, 3), [7, 2])
        for region in GRID:
            slots, block = bytes(image[region.id]), region.block_bytes
            for outer in range(region.outer):
                row = slots[outer * 5 * block : (outer + 1) * 5 * block]
                assert row[:block] == row[3 * block : 4 * block] == row[4 * block :] == bytes(block)
                assert row[block : 3 * block] == world.held[region.id][outer, [7, 2]].tobytes()


@pytest.mark.parametrize("name", ALL)
async def test_many_writes_at_once_do_not_mix(name):
    async with World(num_blocks=40) as world:
        targets = [target(GRID, 2, GrantId(f"{index:064x}")) for index in range(1, 40)]
        images = [world.importers[name].expose(wanted) for wanted in targets]
        blocks = [(index, (index * 7 + 3) % 40) for index in range(39)]
        await asyncio.gather(
            *(world.write(name, write(wanted), ids) for wanted, ids in zip(targets, blocks, strict=True))
        )
        for image, ids in zip(images, blocks, strict=True):
            assert content(image) == world.wanted(ids)


# ---- refusals


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 3), (4, 2), (5, 6)])
def test_a_range_outside_the_target_is_refused_at_birth(start, stop):
    with pytest.raises(ValueError, match="start, stop"):
        write(target(GRID, 5), start, stop)


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize(("grant", "error"), [(STALE, StaleEpoch), (FOREIGN, NotAuthorised), (UNKNOWN, GrantUnknown)])
async def test_a_refusal_arrives_by_name_and_the_next_write_succeeds(name, grant, error):
    async with World() as world:
        good, bad = target(GRID, 2), target(GRID, 2, grant)
        untouched = world.importers[name].expose(bad)
        image = world.importers[name].expose(good)
        for _ in range(3):
            with pytest.raises(error):
                await world.write(name, write(bad), [3, 1])
        assert not any(any(view) for view in (*untouched.values(), *image.values()))
        await world.write(name, write(good), [3, 1])
        assert content(image) == world.wanted([3, 1])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "change",
    [
        {"epoch": Epoch(2)},
        {"writer": WorkerId("somebody")},
        {"num_blocks": 3},
        {"regions": (shape("tp0.kv", 6, 384),)},
        {"regions": GRID[::-1]},
        {"grant": UNKNOWN},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_whoever_errs_about_the_target_writes_nothing(name, change):
    async with World() as world:
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        wrong = write(msgspec.structs.replace(wanted, **change))
        with pytest.raises((BadInput, GrantUnknown, NotAuthorised)):
            await world.write(name, wrong, range(wrong.num_blocks))
        assert not any(any(view) for view in image.values())


@pytest.mark.parametrize("name", ALL)
async def test_another_pools_shape_is_refused_by_whoever_looks_first(name):
    """The producer's lender has one shape, the target another: whichever is asked for, nothing is written."""
    async with World() as world:
        odd = (shape("tp0.kv", 6, 383), shape("tp1.kv", 2, 1000))
        wanted = target(odd, 2)
        image = world.importers[name].expose(wanted)
        with pytest.raises((BadInput, GrantUnknown)):
            await world.write(name, write(target(GRID, 2, wanted.grant)), [0, 1])
        with pytest.raises(Bug):
            await world.write(name, write(wanted), [0, 1])
        assert not any(any(view) for view in image.values())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("blocks", [[0], [0, 1, 2], [0, 9], [-1, 0]])
async def test_blocks_that_the_lender_does_not_have_are_our_bug(name, blocks):
    async with World() as world:
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        with pytest.raises(Bug, match="blocks"):
            await world.write(name, write(wanted), [BlockId(block) for block in blocks])
        assert not any(any(view) for view in image.values())


async def test_a_write_in_anothers_name_is_refused():
    async with World() as world:
        world.importers["tcp"].expose(target(GRID, 2))
        impostor = TcpWriter(CONSUMER, SystemClock())
        with pytest.raises(NotAuthorised, match="said hello"):
            await impostor.write(write(target(GRID, 2)), world.endpoints["tcp"], world.lender, [0, 1], SOON)
        assert world.guard.asked == 0
        await impostor.close()


@pytest.mark.parametrize("name", ALL)
async def test_a_grant_has_one_image(name):
    async with World() as world:
        wanted = target(GRID, 2)
        world.importers[name].expose(wanted)
        with pytest.raises(Bug, match="target already"):
            world.importers[name].expose(target(GRID, 3, wanted.grant))


# ---- the end of a target


@pytest.mark.parametrize("name", ALL)
async def test_nothing_can_be_written_once_a_target_is_withdrawn(name):
    async with World() as world:
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        await world.write(name, write(wanted), [3, 1])
        assert await world.importers[name].withdraw(wanted.grant)
        assert await world.importers[name].withdraw(wanted.grant)  # again: the same answer
        with pytest.raises((GrantUnknown, StaleEpoch)):
            await world.write(name, write(wanted), [0, 5])
        assert content(image) == world.wanted([3, 1])


@pytest.mark.parametrize("name", ALL)
async def test_nothing_writes_after_a_cancelled_write_and_a_withdrawal(name):
    async with World(LARGE, 16) as world:
        for turn in range(0, 15, 2):
            wanted = target(LARGE, 16, GrantId(f"{turn + 1:064x}"))
            image = world.importers[name].expose(wanted)
            task = asyncio.create_task(world.write(name, write(wanted), range(16)))
            await turns(turn)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await world.importers[name].withdraw(wanted.grant)
            await assert_still(image)


@pytest.mark.parametrize("name", ALL)
async def test_a_withdrawal_in_mid_write_ends_it_or_says_that_it_cannot(name):
    """Over shared memory nobody can stop the writer: only when it has let go of the image is `withdraw` sure."""
    async with World(LARGE, 16) as world:
        wanted = target(LARGE, 16)
        image = world.importers[name].expose(wanted)
        if name == "memory":  # it copies on the loop's own thread: between two turns it cannot be held up
            task = asyncio.create_task(world.write(name, write(wanted), range(16)))
            await turns(4)
        else:
            lent = Holding(world, LARGE, 16, after=3)
            task = asyncio.create_task(world.write(name, write(wanted), range(16), lent))
            await asyncio.to_thread(lent.reached.wait)
        sure = await world.importers[name].withdraw(wanted.grant)
        assert sure is (name != "shm")
        if sure:
            before = content(image)
        if name != "memory":
            lent.go.set()
        if name == "shm":
            await task  # it went through: that is why nobody said that it had not
            assert await world.importers[name].withdraw(wanted.grant)
            assert content(image) == world.wanted(range(16))
        else:
            with pytest.raises((Lost, Rejected)):
                await task
            assert content(image) == before


@pytest.mark.parametrize("name", GUARDED)
async def test_no_byte_that_is_on_its_way_arrives_after_a_withdrawal(name):
    """The writer knows nothing of it and goes on sending."""
    regions = (shape("tp0.kv", 64, 1 << 13),)
    async with World(regions, 16) as world:
        for turn in range(4, 40, 3):
            wanted = target(regions, 16)
            image = world.importers[name].expose(wanted)
            task = asyncio.create_task(world.write(name, write(wanted), range(16)))
            await turns(turn)
            assert await world.importers[name].withdraw(wanted.grant)
            before = content(image)
            await turns(40)
            assert content(image) == before
            await asyncio.wait({task})
            assert task.exception() is None or isinstance(task.exception(), Lost | Rejected)


@pytest.mark.parametrize("name", ALL)
async def test_a_late_write_reaches_no_image_of_anybodys(name):
    """The canary: the writer has answered, its grant has ended, and now it writes again."""
    clock = ManualClock()
    async with World(clock=clock) as world:
        faulty = FaultyWriter(world.writers[name], iter([LateWrite(duration=Duration.of_ms(5))]), clock)
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        await faulty.write(write(wanted), world.endpoints[name], world.lender, [3, 1], SOON)
        assert await world.importers[name].withdraw(wanted.grant)
        reused = world.importers[name].expose(target(GRID, 2, GrantId("e" * 64)))
        await turns(3)
        clock.advance(Duration.of_ms(5))
        await until(lambda: faulty.late)
        assert isinstance(faulty.late[0], GrantUnknown | StaleEpoch)
        assert content(image) == world.wanted([3, 1])
        assert not any(any(view) for view in reused.values())
        await faulty.close()


@pytest.mark.parametrize("name", ALL)
async def test_without_the_withdrawal_the_late_write_would_be_seen(name):
    """Shows that the canary bites: it is the end of the target, and nothing else, that the test above depends on."""
    clock = ManualClock()
    async with World(clock=clock) as world:
        faulty = FaultyWriter(world.writers[name], iter([LateWrite(duration=Duration.of_ms(5))]), clock)
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        await faulty.write(write(wanted), world.endpoints[name], world.lender, [3, 1], SOON)
        await turns(3)
        clock.advance(Duration.of_ms(5))
        await until(lambda: faulty.late)
        assert faulty.late == [None]
        assert all(set(view) == {CANARY} for view in content(image).values())
        await faulty.close()


# ---- what goes wrong on the way


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bit", [0, 7, 8 * 5000 + 3, 1 << 100])
async def test_a_flipped_bit_is_one_bit(name, bit):
    arrived, wanted = await write_faulty(name, FlipBit(bit=bit))
    assert (int.from_bytes(arrived) ^ int.from_bytes(wanted)).bit_count() == 1


@pytest.mark.parametrize("name", ALL)
async def test_a_torn_write_has_something_else_in_front(name):
    arrived, wanted = await write_faulty(name, Tear(fraction=0.5))
    assert arrived == bytes(len(wanted) // 2) + wanted[len(wanted) // 2 :]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("when", When)
async def test_a_delayed_write_arrives_all_the_same(name, when):
    arrived, wanted = await write_faulty(name, Delay(duration=Duration.of_ms(1), when=when))
    assert arrived == wanted


@pytest.mark.parametrize("name", ALL)
async def test_a_write_that_breaks_off_raises_and_can_be_done_again(name):
    async with World() as world:
        faulty = FaultyWriter(world.writers[name], iter([Drop(fraction=0.6)]), SystemClock())
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        with pytest.raises(TransferFailed):
            await faulty.write(write(wanted), world.endpoints[name], world.lender, [3, 1], SOON)
        assert content(image) != world.wanted([3, 1])
        await faulty.write(write(wanted), world.endpoints[name], world.lender, [3, 1], SOON)
        assert await world.importers[name].withdraw(wanted.grant)
        assert content(image) == world.wanted([3, 1])
        assert faulty.injected == [Drop(fraction=0.6)]


async def write_faulty(name, fault):
    async with World() as world:
        faulty = FaultyWriter(world.writers[name], iter([fault]), SystemClock())
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        await faulty.write(write(wanted), world.endpoints[name], world.lender, [3, 1], SOON)
        found = [content(image)[region.id] for region in GRID]
        return b"".join(found), b"".join(world.wanted([3, 1])[region.id] for region in GRID)


@pytest.mark.parametrize("name", ["shm", "tcp"])
async def test_a_lender_that_stalls_is_left_at_the_deadline_and_lets_go_of_the_image(name):
    async with World(LARGE, 16) as world:
        wanted = target(LARGE, 16)
        image = world.importers[name].expose(wanted)
        lent = Holding(world, LARGE, 16, after=2)
        task = asyncio.create_task(world.write(name, write(wanted), range(16), lent, Duration.of_ms(50)))
        await asyncio.to_thread(lent.reached.wait)
        await asyncio.sleep(0.06)  # the deadline itself
        lent.go.set()
        with pytest.raises(DeadlineExceeded):
            await task
        assert await world.importers[name].withdraw(wanted.grant)
        await assert_still(image)


class Failing(HostLender):
    def copy_out(self, region, outer, blocks, into):
        into[:1] = b"x"
        raise OSError("device gone")


@pytest.mark.parametrize("name", ALL)
async def test_a_lender_that_fails_ends_the_write_with_its_own_error_and_the_target_can_end(name):
    async with World() as world:
        wanted = target(GRID, 2)
        world.importers[name].expose(wanted)
        failing = Failing(GRID, 9, {n: memoryview(a.reshape(-1)) for n, a in world.held.items()})
        with pytest.raises(OSError, match="device gone") as kept:
            await world.write(name, write(wanted), [0, 1], failing)
        assert await world.importers[name].withdraw(wanted.grant), kept  # the error is alive, the mapping is not


@pytest.mark.parametrize("name", ALL)
async def test_an_importer_that_has_closed_is_a_lost_peer(name):
    async with World() as world:
        wanted = target(GRID, 2)
        image = world.importers[name].expose(wanted)
        await world.importers[name].close()
        with pytest.raises(Lost):
            await world.write(name, write(wanted), [0, 1])
        assert not any(any(view) for view in image.values())
        world.importers.pop(name)


@pytest.mark.parametrize("name", ALL)
async def test_an_endpoint_of_another_transport_is_refused(name):
    async with World() as world:
        for other in set(ALL) - {name}:
            with pytest.raises(IsthmusError):
                await world.writers[name].write(
                    write(target(GRID, 2)), world.endpoints[other], world.lender, [0, 1], SOON
                )
            assert not world.writers[name].can_reach(world.endpoints[other])
