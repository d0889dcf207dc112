"""Ways to copy between simulated processes: what a real one promises, and what it does not."""

import pytest

from isthmus.core.clock import Chance
from isthmus.core.errors import PeerLost, StaleEpoch
from isthmus.core.ids import BlockId, Epoch, GrantId, RegionId, WorkerId
from isthmus.core.units import Duration
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.loop import Order, Process, VirtualLoop
from isthmus.lab.seeds.writes import Imports, OneSidedImporter, OneSidedWriter
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockWrite, ShmEndpoint, Target
from isthmus.transport.blocks import HostLender

REGION = RegionShape(id=RegionId("g0.tp0.kv"), outer=1, block_bytes=16)
ENDPOINT = ShmEndpoint(host="a" * 32, pid=1, fd=0, stamp="b" * 32)
GRANT = GrantId("c" * 64)
TARGET = Target(grant=GRANT, epoch=Epoch(1), writer=WorkerId("prefill-0"), regions=(REGION,), num_blocks=4)
STEP = Duration.of_ms(10)


class Open:
    """A guard that lets everybody in."""

    def check_write(self, grant, epoch, writer) -> None:
        pass


class Copies:
    """A producer's process that writes 4 blocks, one each 10 ms, into an image of a consumer's."""

    def __init__(self) -> None:
        self.loop = VirtualLoop(Chance(0), Order.ARRIVAL)
        self.clock = SkewedClock(self.loop, Chance(1))
        self.producer, self.consumer = Process("prefill-0"), Process("decode-0")
        self.late: list[GrantId] = []
        self.imports = Imports(process=self.consumer, guard=Open(), late=self.late.append)
        self.importer = OneSidedImporter(self.imports, ENDPOINT)
        self.image = self.importer.expose(TARGET)[REGION.id]
        self.lender = HostLender((REGION,), 4, {REGION.id: memoryview(bytearray(b"\x07" * 64))})
        self.writer = OneSidedWriter(self.loop, self.clock, {ENDPOINT: self.imports}, 16, STEP)

    def run(self, main) -> None:
        try:
            self.loop.run(main)
        finally:
            self.loop.bury([self.producer, self.consumer])

    async def write(self) -> int:
        blocks = tuple(BlockId(block) for block in range(4))
        return await self.writer.write(
            BlockWrite(target=TARGET, start=0, stop=4), ENDPOINT, self.lender, blocks, Duration.of_seconds(10)
        )


def test_an_image_is_not_sealed_under_a_stopped_writer_and_its_late_write_reaches_it() -> None:
    copies, found = Copies(), []

    async def main() -> None:
        writing = copies.loop.spawn(copies.producer, copies.write())
        await copies.clock.sleep(Duration.of_ms(15))
        copies.loop.stop_process(copies.producer)
        await copies.clock.sleep(Duration.of_seconds(1))
        found.append(await copies.importer.withdraw(GRANT))
        assert bytes(copies.image).count(7) == 16
        copies.loop.go_on(copies.producer)
        await copies.clock.sleep(Duration.of_seconds(1))
        found.append(writing.result())
        found.append(await copies.importer.withdraw(GRANT))

    copies.run(main())
    assert found == [False, 64, True]
    assert bytes(copies.image) == b"\x07" * 64
    assert copies.late == []


def test_a_dead_writer_has_nothing_mapped() -> None:
    copies = Copies()

    async def main() -> None:
        copies.loop.spawn(copies.producer, copies.write())
        await copies.clock.sleep(Duration.of_ms(15))
        copies.loop.kill(copies.producer)
        assert await copies.importer.withdraw(GRANT)
        await copies.clock.sleep(Duration.of_seconds(1))

    copies.run(main())
    assert bytes(copies.image).count(7) == 16


def test_a_sealed_image_is_mapped_by_nobody() -> None:
    copies = Copies()

    async def main() -> None:
        await copies.importer.withdraw(GRANT)
        with pytest.raises(StaleEpoch):
            await copies.write()

    copies.run(main())


def test_a_writer_notices_that_the_consumer_has_died() -> None:
    copies = Copies()

    async def main() -> None:
        writing = copies.loop.spawn(copies.producer, copies.write())
        await copies.clock.sleep(Duration.of_ms(15))
        copies.loop.kill(copies.consumer)
        await copies.clock.sleep(Duration.of_ms(100))
        with pytest.raises(PeerLost):
            writing.result()

    copies.run(main())
