"""Waiting leaves nothing running behind it, however often the waiter is cancelled."""

import asyncio

import pytest

from isthmus.core.clock import ManualClock
from isthmus.core.errors import Bug, DeadlineExceeded, Lost
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, through, within

SOON = Duration.of_seconds(1)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Work:
    """Something that begins, waits to be let go, resists one cancellation where it is `stubborn`, and ends."""

    def __init__(self, result: object = "done", error: Exception | None = None, *, stubborn: bool = False) -> None:
        self.begun, self.go, self.told = asyncio.Event(), asyncio.Event(), 0
        self.ended = False
        self._result, self._error, self._stubborn = result, error, stubborn

    async def __call__(self):
        self.begun.set()
        try:
            while True:
                try:
                    await self.go.wait()
                    break
                except asyncio.CancelledError:
                    self.told += 1
                    if not self._stubborn or self.told > 1:
                        raise
            if self._error is not None:
                raise self._error
            return self._result
        finally:
            self.ended = True


async def cancel(task: asyncio.Task, times: int) -> None:
    for _ in range(times):
        task.cancel()
        await turns()


# settle


@pytest.mark.parametrize("error", [None, Lost("gone")])
async def test_settle_returns_whatever_became_of_the_work(error):
    work = Work(error=error)
    running = asyncio.create_task(work())
    waiting = asyncio.create_task(settle(running))
    await turns()
    assert not waiting.done()
    work.go.set()
    assert await waiting is None


async def test_settle_returns_after_work_that_was_cancelled():
    running = asyncio.create_task(Work()())
    await turns()
    running.cancel()
    assert await settle(running) is None
    assert await settle(running) is None  # and at once, where it is done already


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_settle_waits_on_through_cancellations_and_tells_of_them_afterwards(times):
    work = Work()
    running = asyncio.create_task(work())
    waiting = asyncio.create_task(settle(running))
    await turns()
    await cancel(waiting, times)
    assert not waiting.done()
    assert not work.told  # the work itself is left alone
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert running.result() == "done"


async def test_a_cancellation_hides_a_loss_but_never_a_bug():
    for error, raised in ((Lost("gone"), asyncio.CancelledError), (Bug("the sum is wrong"), Bug)):
        for wait in (settle, lambda task: through(keep(task))):
            work = Work(error=error)
            running = asyncio.create_task(work())
            waiting = asyncio.create_task(wait(running))
            await turns()
            waiting.cancel()
            await turns()
            work.go.set()
            with pytest.raises(raised):
                await waiting


async def keep(task: asyncio.Task) -> object:
    return await task


# through


async def test_through_gives_the_result():
    work = Work()
    work.go.set()
    assert await through(work()) == "done"


async def test_through_raises_what_the_work_raises():
    work = Work(error=Lost("gone"))
    work.go.set()
    with pytest.raises(Lost, match="gone"):
        await through(work())


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_work_that_must_go_through_runs_to_its_end_before_its_cancelled_caller_ends(times):
    work = Work()
    calling = asyncio.create_task(through(work()))
    await work.begun.wait()
    await cancel(calling, times)
    assert not calling.done()
    assert not work.told
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert work.ended


async def test_work_begins_even_where_its_caller_is_cancelled_already():
    """As in a `finally` that runs because of one cancellation and meets the next at its first await."""
    work = Work()
    work.go.set()

    async def caller() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.current_task().cancel()
            await through(work())

    calling = asyncio.create_task(caller())
    await turns()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert work.ended


# within


async def test_within_gives_a_result_that_comes_in_time_and_leaves_no_timer():
    clock, work = ManualClock(), Work()
    waiting = asyncio.create_task(within(clock, SOON, work(), "work"))
    await turns()
    clock.advance(SOON / 2)
    work.go.set()
    assert await waiting == "done"
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_within_raises_what_the_work_raises():
    work = Work(error=Lost("gone"))
    work.go.set()
    with pytest.raises(Lost, match="gone"):
        await within(ManualClock(), SOON, work(), "work")


async def test_work_that_is_late_is_cancelled_and_the_error_says_what_was_late():
    clock, work = ManualClock(), Work()
    waiting = asyncio.create_task(within(clock, SOON, work(), "confirm"))
    await work.begun.wait()
    clock.advance(SOON)
    with pytest.raises(DeadlineExceeded, match="confirm: not done within 1000 ms") as caught:
        await waiting
    assert caught.value.field == "deadline"
    assert work.ended


async def test_late_work_is_waited_for_until_it_has_ended():
    clock, work = ManualClock(), Work(stubborn=True)
    waiting = asyncio.create_task(within(clock, SOON, work(), "work"))
    await work.begun.wait()
    clock.advance(SOON)
    await turns()
    assert (waiting.done(), work.told) == (False, 1)
    work.go.set()
    assert await waiting == "done"  # it came in the end, and is not thrown away


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_wait_cancels_its_work_and_ends_after_it(times):
    clock, work = ManualClock(), Work(stubborn=True)
    waiting = asyncio.create_task(within(clock, SOON, work(), "work"))
    await work.begun.wait()
    await cancel(waiting, times)
    assert not waiting.done()
    assert work.told == 1
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended
