"""An event loop with virtual time, on which several simulated processes live: any may die or be stopped at any await.

Every callback belongs to the process in whose context it was made. What belongs to a dead process is dropped: none of
its code runs any more, no `finally` either, as after SIGKILL. What belongs to a stopped one is kept until it goes on,
while time goes on, as after SIGSTOP. Time jumps to the next timer. There is no real clock, socket or thread.
"""

import asyncio
import contextvars
import enum
import heapq
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from isthmus.core.clock import Chance
from isthmus.core.errors import Bug
from isthmus.core.limits import SIMULATED_CALLBACKS_MAX

__all__ = ["Order", "Process", "VirtualLoop"]

Result = TypeVar("Result")

_PROCESS: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


class Order(enum.StrEnum):
    """In which order callbacks run that are ready at one moment."""

    ARRIVAL = "arrival"  # as they became ready: what asyncio does
    BY_PROCESS = "by_process"  # each process's in arrival order, processes in any
    ANY = "any"


class Process:
    """What lives and dies together: the callbacks and tasks made in one context."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False
        self.held: list[_Call] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.fuse = 0  # when so many more callbacks have run, `on_fuse` is called; 0: never
        self.on_fuse: Callable[[], None] = lambda: None
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)


class _Call(asyncio.TimerHandle):
    """A callback to come. A handle to whoever asks asyncio for one, without what asyncio keeps in its own."""

    __slots__ = ("args", "callback", "dropped", "process")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], process: Process) -> None:
        self.callback = callback
        self.args = args
        self.process = process
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def __repr__(self) -> str:
        return f"<_Call of {self.process.name}>"


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one simulated world. `now` is in nanoseconds, and is nobody's clock: processes have their own."""

    def __init__(self, chance: Chance, order: Order) -> None:
        self.now = 0
        self.callbacks = 0
        self.unhandled: list[str] = []
        self.world = Process("world")
        self.current = self.world
        self._chance = chance
        self._order = order
        self._ready: list[_Call] = []
        self._timers: list[tuple[int, int, _Call]] = []
        self._sequence = 0
        self._halted = False

    # what asyncio asks of a loop

    def time(self) -> float:
        return self.now / 1e9

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Result],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> "asyncio.Task[Result]":
        return self.spawn(self.current, coro)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process = self.current if context is None else context.get(_PROCESS, self.current)
        call = _Call(callback, args, process)
        self._ready.append(call)
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_in(max(0, round(delay * 1e9)), callback, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback has raised, or a task failed unseen. What is destroyed with a dead process is meant to be."""
        if context.get("message") == "Task was destroyed but it is pending!":
            return
        error = context.get("exception")
        self.unhandled.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    # what the simulation asks of it

    def spawn(self, process: Process, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Run `work` as a task of `process`."""
        task = asyncio.Task(work, loop=self, context=process.context)
        process.tasks.append(task)
        return task

    def call_in(self, nanoseconds: int, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call back later, in the current process."""
        return self.call_in_of(self.current, nanoseconds, callback, *args)

    def call_in_of(
        self, process: Process, nanoseconds: int, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """Call back later, in `process`; not if that is dead by then."""
        call = _Call(callback, args, process)
        self._sequence += 1
        heapq.heappush(self._timers, (self.now + nanoseconds, self._sequence, call))
        return call

    def kill(self, process: Process) -> None:
        """Nothing of it runs any more, from this moment on."""
        process.dead = True
        process.held.clear()

    def stop_process(self, process: Process) -> None:
        """Nothing of it runs until `go_on`."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """What has become ready meanwhile is run now."""
        if process.stopped:
            process.stopped = False
            self._ready.extend(process.held)
            process.held = []

    def halt(self) -> None:
        """End `run` after the callback that runs now: something is wrong, and what follows does not matter."""
        self._halted = True

    def run(self, main: Coroutine[Any, Any, Result]) -> Result | None:
        """Run `main` in the world's own process to its end, or until `halt`: then None.

        Raises:
            Bug: nothing is ready and nothing will be, or there is no end to it.
        """
        asyncio._set_running_loop(self)
        try:
            task = self.spawn(self.world, main)
            while not task.done() and not self._halted:
                call = self._next()
                if not call.dropped:
                    self._run(call)
        finally:
            self.current = self.world
            asyncio._set_running_loop(None)
        return task.result() if task.done() else None

    def bury(self, processes: list[Process]) -> None:
        """Let go of all that is left of `processes`, once the run is over and nobody looks at it any more.

        Coroutines are closed by hand, so that their clean-up code, which a killed process would never have run, does
        not run later, in the midst of another world. What it does now is done to what has ended.
        """
        asyncio._set_running_loop(self)
        try:
            with warnings.catch_warnings():
                # What clean-up code would still start is never started.
                warnings.filterwarnings("ignore", message=".*was never awaited")
                for process in processes:
                    self.current = process
                    self.kill(process)
                    while process.tasks:
                        task = process.tasks.pop()
                        if not task.done():
                            process.context.run(_close, task)
        finally:
            self.current = self.world
            self._ready.clear()
            self._timers.clear()
            asyncio._set_running_loop(None)

    # inside

    def _run(self, call: _Call) -> None:
        process = call.process
        if process.fuse:
            process.fuse -= 1
            if not process.fuse:
                process.on_fuse()
        if process.dead:
            return
        if process.stopped:
            process.held.append(call)
            return
        self.callbacks += 1
        if self.callbacks > SIMULATED_CALLBACKS_MAX:
            raise Bug(f"{SIMULATED_CALLBACKS_MAX} callbacks and no end", field="callbacks")
        self.current = process
        try:
            process.context.run(call.callback, *call.args)
        except Exception as error:
            self.call_exception_handler({"message": "a callback raised", "exception": error})
        self.current = self.world

    def _next(self) -> _Call:
        ready = self._ready
        while not ready:
            if not self._timers:
                raise Bug("nothing is ready, and no timer runs: somebody waits for ever", field="timers")
            when, _, call = heapq.heappop(self._timers)
            if call.dropped or call.process.dead:
                continue
            self.now = when
            ready.append(call)
            while self._timers and self._timers[0][0] == when:
                ready.append(heapq.heappop(self._timers)[2])
        if self._order is Order.ARRIVAL or len(ready) == 1:
            return ready.pop(0)
        chosen = self._chance.below(len(ready))
        if self._order is Order.ANY:
            return ready.pop(chosen)
        process = ready[chosen].process
        return ready.pop(next(index for index, call in enumerate(ready) if call.process is process))


class _Buried(BaseException):
    """Thrown into what is left of a process: no clean-up code knows it, and so none lives on because of it."""


def _close(task: "asyncio.Task[Any]") -> None:
    """End a coroutine that may await again while it is ended, as often as that takes."""
    coroutine = task.get_coro()
    for _ in range(_AWAITS_AT_END_MAX):
        try:
            coroutine.throw(_Buried())
        except BaseException:
            return


_AWAITS_AT_END_MAX = 32
