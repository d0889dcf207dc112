"""Work in a thread is told to stop by a cancellation, and waited for however many follow."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from isthmus.core.errors import Lost
from isthmus.core.waiting import in_thread
from tests.core.test_waiting import cancel, turns


@pytest.fixture
def executor():
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


async def test_a_thread_gives_its_result_and_its_errors(executor):
    assert await in_thread(executor, lambda stop: stop.is_set()) is False

    def fail(stop: threading.Event) -> None:
        raise Lost("gone")

    with pytest.raises(Lost, match="gone"):
        await in_thread(executor, fail)


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_wait_stops_its_thread_and_ends_after_it(executor, times):
    begun, loop, let_go = asyncio.Event(), asyncio.get_running_loop(), threading.Event()
    history = []

    def work(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert stop.wait(20)
        history.append("told to stop")
        assert let_go.wait(20)
        history.append("ended")

    waiting = asyncio.create_task(in_thread(executor, work))
    await begun.wait()
    await cancel(waiting, times)
    assert not waiting.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert history == ["told to stop", "ended"]


@pytest.mark.parametrize("times", [1, 2])
async def test_work_that_waits_for_its_thread_never_begins_after_a_cancellation_or_is_waited_for(executor, times):
    busy, begun = threading.Event(), []
    first = asyncio.create_task(in_thread(executor, lambda _: busy.wait(20)))
    await turns()
    second = asyncio.create_task(in_thread(executor, lambda stop: begun.append(stop.is_set())))
    await turns()
    await cancel(second, times)
    busy.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert begun in ([], [True])
