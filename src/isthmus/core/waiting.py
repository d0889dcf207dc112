"""Waiting that leaves nothing running behind it: deadlines on the clock, and work in threads.

Both serve the promise that transports and engines make: when a call is over, nothing that it started writes any more.
A task that is cancelled, and a copy in a thread that is told to stop, are waited for until they have really ended,
however often the waiter itself is cancelled meanwhile.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, TypeVar

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, DeadlineExceeded
from isthmus.core.units import Duration

__all__ = ["begin", "in_thread", "settle", "through", "within"]

Result = TypeVar("Result")


async def settle(work: "asyncio.Future[Any]") -> None:
    """Return when `work` is done; its outcome is not looked at. A cancellation that comes meanwhile is raised then.

    Raises:
        Bug: `work` has raised it: a cancellation must not hide it, since nobody else would ever look.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
    # Looked at, or asyncio reports it as never retrieved.
    error = None if work.cancelled() else work.exception()
    if isinstance(error, Bug):
        raise error
    if cancelled:
        raise asyncio.CancelledError


async def through(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which runs to its end whatever happens to the caller: for clean-up.

    A caller that is cancelled meanwhile, even twice, is told so after the end of `work`, not instead of it.
    """
    task = asyncio.create_task(work)
    await settle(task)
    return task.result()


def begin(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result] | None":
    """Run `work` at once, as far as it goes without waiting; what is left of it is a task. None: nothing is left.

    Raises what it raises by then. Until it first waits it is no task's, or the caller's.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return asyncio.create_task(_Begun(work, waits_for))


async def within(clock: Clock, deadline: Duration, work: Coroutine[Any, Any, Result], what: str) -> Result:
    """The result of `work`, which is cancelled and waited for when `deadline` has passed or the caller is cancelled.

    It runs in a task of its own, so that a caller that is cancelled twice does not cut its cleaning up short.

    Raises:
        DeadlineExceeded: it was not done in time.
    """
    task = asyncio.create_task(work)
    timer = clock.call_later(deadline, task.cancel)
    done = asyncio.get_running_loop().create_future()
    task.add_done_callback(lambda _: None if done.done() else done.set_result(None))
    try:
        await done
    finally:
        timer.cancel()
        task.cancel()  # does nothing to a task that is done
        await settle(task)
    if task.cancelled():
        raise DeadlineExceeded(f"{what}: not done within {deadline}", field="deadline")
    return task.result()


class _Begun(Coroutine[Any, Any, Result]):
    """A coroutine that waits for something already, to go on as a task. A cancellation reaches it at any time: also
    before the task's first step, where that of an ordinary coroutine would never begin.
    """

    def __init__(self, work: Coroutine[Any, Any, Result], waits_for: object) -> None:
        self._work = work
        self._waits_for = [waits_for]

    def send(self, value: Any) -> Any:
        return self._waits_for.pop() if self._waits_for else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        self._waits_for.clear()
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Result]:
        raise Bug("what has begun goes on as a task", field="work")


async def in_thread(executor: Executor, work: Callable[[threading.Event], Result]) -> Result:
    """The result of `work(stop)`, run in a thread. On cancellation `stop` is set and the thread waited for."""
    stop = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(executor, work, stop)
    try:
        await asyncio.wait({running})
    finally:
        stop.set()
        await settle(running)
    return running.result()
