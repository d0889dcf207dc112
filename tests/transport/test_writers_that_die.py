"""Writers in processes of their own, killed and stopped in mid-write: what `withdraw` says of them is so."""

import asyncio
import os
import secrets
import signal
from collections.abc import Iterator

import msgspec
import pytest

from isthmus.core.clock import SystemClock
from isthmus.transport.shm import ShmImporter
from isthmus.transport.tcp import TcpImporter
from tests.transport.conftest import OwnerProcess
from tests.transport.worlds import CONSUMER, FakeWriteGuard, pool, shape, target, write

LARGE = (shape("tp0.kv", 64, 1 << 16),)  # 64 MiB in 16 blocks
REGION = LARGE[0].id


@pytest.fixture
def producer() -> Iterator[OwnerProcess]:
    process = OwnerProcess("tests.transport.pusher")
    yield process
    if process.process.poll() is None:
        process.kill()


@pytest.fixture(params=["shm", "tcp"])
async def importer(request):
    clock = SystemClock()
    found = ShmImporter(clock) if request.param == "shm" else TcpImporter(CONSUMER, FakeWriteGuard(), clock)
    found.name = request.param
    found.endpoint = await found.start()
    yield found
    await found.close()


def order(importer, wanted, seed, stall_after):
    return {
        "do": "write",
        "transport": importer.name,
        "request": msgspec.to_builtins(write(wanted)),
        "endpoint": msgspec.to_builtins(importer.endpoint),
        "seed": seed,
        "num_blocks": 16,
        "blocks": list(range(16)),
        "stall_after": stall_after,
    }


async def assert_still(image):
    before = bytes(image[REGION])
    await asyncio.sleep(0.02)  # the one wait for something *not* to happen
    assert bytes(image[REGION]) == before


async def test_another_process_writes_bit_identically(producer, importer):
    seed, wanted = secrets.randbits(32), target(LARGE, 16)
    image = importer.expose(wanted)
    answer = await asyncio.to_thread(producer.ask, **order(importer, wanted, seed, None))
    assert answer == {"written": wanted.size_bytes}
    assert await importer.withdraw(wanted.grant)
    assert bytes(image[REGION]) == pool(seed, LARGE, 16)[REGION].tobytes()


async def test_a_killed_writer_is_proven_to_have_stopped(producer, importer):
    wanted = target(LARGE, 16)
    image = importer.expose(wanted)
    assert await asyncio.to_thread(producer.ask, **order(importer, wanted, 1, 9)) == {"stalled": True}
    assert await importer.withdraw(wanted.grant) is (
        importer.name == "tcp"
    )  # mapped, its image can be sealed by nobody
    await asyncio.to_thread(producer.kill)
    assert await importer.withdraw(wanted.grant)
    assert any(image[REGION][:256])
    assert not any(image[REGION][-256:])
    await assert_still(image)


async def test_a_stopped_writer_is_not_taken_for_a_dead_one(producer, importer):
    """SIGSTOP is what a long pause looks like: over shared memory nothing but its death or its own end is proof."""
    wanted = target(LARGE, 16)
    image = importer.expose(wanted)
    assert await asyncio.to_thread(producer.ask, **order(importer, wanted, 1, 9)) == {"stalled": True}
    os.kill(producer.process.pid, signal.SIGSTOP)
    for _ in range(3):
        assert await importer.withdraw(wanted.grant) is (importer.name == "tcp")
    other = target(LARGE, 16)
    fresh = importer.expose(other)  # meanwhile others get memory that it has never seen
    assert not any(fresh[REGION][:4096])
    os.kill(producer.process.pid, signal.SIGCONT)
    await asyncio.to_thread(producer.kill)
    assert await importer.withdraw(wanted.grant)
    assert await importer.withdraw(other.grant)
    await assert_still(image)
    assert not any(fresh[REGION])


async def test_a_writer_that_comes_after_the_withdrawal_finds_nothing(producer, importer):
    wanted = target(LARGE, 16)
    image = importer.expose(wanted)
    assert await importer.withdraw(wanted.grant)
    answer = await asyncio.to_thread(producer.ask, **order(importer, wanted, 1, None))
    assert answer["error"] in ("GrantUnknown", "StaleEpoch")
    assert not any(image[REGION])
