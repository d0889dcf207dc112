"""The virtual loop: time jumps, the dead are silent, the stopped wait."""

import asyncio

import pytest

from isthmus.core.clock import Chance
from isthmus.core.errors import Bug
from isthmus.core.units import Duration
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.loop import Order, Process, VirtualLoop


def make_loop(order: Order = Order.ARRIVAL, seed: int = 0) -> VirtualLoop:
    return VirtualLoop(Chance(seed), order)


def clock_of(loop: VirtualLoop, rate: float = 1.0) -> SkewedClock:
    return SkewedClock(loop, Chance(1), rate=rate)


def test_a_thousand_virtual_hours_take_no_time() -> None:
    loop = make_loop()
    clock = clock_of(loop)
    loop.run(clock.sleep(Duration.of_seconds(3600 * 1000)))
    assert loop.now >= 3600 * 1000 * 10**9
    assert loop.callbacks < 10


def test_no_finally_of_a_killed_process_runs() -> None:
    loop, process, ran = make_loop(), Process("victim"), []
    clock = clock_of(loop)

    async def victim() -> None:
        try:
            await clock.sleep(Duration.of_ms(10))
            ran.append("went on")
        finally:
            ran.append("finally")

    async def main() -> None:
        loop.spawn(process, victim())
        await clock.sleep(Duration.of_ms(5))
        loop.kill(process)
        await clock.sleep(Duration.of_ms(100))

    loop.run(main())
    assert ran == []
    loop.bury([process])


def test_what_a_killed_process_was_told_to_clean_up_runs_in_no_later_world() -> None:
    loop, process, ran = make_loop(), Process("victim"), []
    clock = clock_of(loop)

    async def victim() -> None:
        try:
            await clock.sleep(Duration.of_ms(10))
        finally:
            await clock.sleep(Duration.of_ms(10))
            ran.append("after another await")

    async def main() -> None:
        loop.spawn(process, victim())
        await clock.sleep(Duration.of_ms(5))

    loop.run(main())
    loop.bury([process])
    assert ran == []
    assert process.tasks == []


def test_a_stopped_process_goes_on_late_and_finds_its_clock_ahead() -> None:
    loop, process, seen = make_loop(), Process("stopped"), []
    clock = clock_of(loop)

    async def sleeper() -> None:
        await clock.sleep(Duration.of_ms(10))
        seen.append(clock.now() // 10**6)

    async def main() -> None:
        loop.spawn(process, sleeper())
        await clock.sleep(Duration.of_ms(1))
        loop.stop_process(process)
        await clock.sleep(Duration.of_ms(50))
        assert seen == []
        loop.go_on(process)
        await clock.sleep(Duration.of_ms(1))

    loop.run(main())
    assert seen == [51]


def test_tasks_made_in_a_process_die_with_it() -> None:
    loop, process, ran = make_loop(), Process("parent"), []
    clock = clock_of(loop)

    async def child() -> None:
        await clock.sleep(Duration.of_ms(10))
        ran.append("child")

    async def parent() -> None:
        await asyncio.wait({asyncio.create_task(child())})

    async def main() -> None:
        loop.spawn(process, parent())
        await clock.sleep(Duration.of_ms(5))
        loop.kill(process)
        await clock.sleep(Duration.of_ms(100))

    loop.run(main())
    assert ran == []
    loop.bury([process])


def test_a_fuse_kills_a_process_before_the_callback_it_was_set_to() -> None:
    loop, process, ran = make_loop(), Process("victim"), []
    clock = clock_of(loop)

    async def victim() -> None:
        for step in range(100):
            await clock.sleep(Duration.of_ms(1))
            ran.append(step)

    async def main() -> None:
        loop.spawn(process, victim())
        process.fuse, process.on_fuse = 10, lambda: loop.kill(process)
        await clock.sleep(Duration.of_ms(1000))

    loop.run(main())
    assert 0 < len(ran) < 10
    loop.bury([process])


def test_who_waits_for_ever_is_a_bug() -> None:
    loop = make_loop()

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Bug, match="for ever"):
        loop.run(main())
    loop.bury([loop.world])


def test_a_fast_clock_wakes_early_and_says_that_it_is_late() -> None:
    loop = make_loop()
    clock = clock_of(loop, rate=1.25)
    loop.run(clock.sleep(Duration.of_ms(100)))
    assert 79 * 10**6 < loop.now < 81 * 10**6
    assert clock.now() >= 100 * 10**6


@pytest.mark.parametrize("order", [Order.BY_PROCESS, Order.ANY])
def test_the_seed_decides_the_order_of_what_is_ready(order: Order) -> None:
    def run(seed: int) -> list[int]:
        loop, seen = make_loop(order, seed), []

        async def worker(number: int) -> None:
            seen.append(number)

        async def main() -> None:
            for number in range(8):
                loop.spawn(Process(f"process-{number}"), worker(number))
            await clock_of(loop).sleep(Duration.of_ms(1))

        loop.run(main())
        return seen

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(8)}) > 1
