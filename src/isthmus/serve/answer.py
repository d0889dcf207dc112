"""What a call waits for: a future whose waiter goes on in the very turn of the event loop in which the answer comes.

asyncio's own would have the loop take another turn first, which asks the kernel for news once more. It is awaited once,
by the task that makes the call.
"""

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

__all__ = ["Answer"]

Result = TypeVar("Result")


class Answer(Generic[Result]):
    """As much of a future as a task needs (PEP 3156: `_asyncio_future_blocking` says that it is waited for)."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_error", "_loop", "_result", "_wake", "done")

    def __init__(self) -> None:
        self._asyncio_future_blocking = False
        self._loop = asyncio.get_running_loop()
        self._wake: Callable[[Answer[Result]], object] | None = None
        self._context: contextvars.Context
        self._error: BaseException | None = None
        self._result: Result
        self.done = False

    def set_result(self, result: Result) -> None:
        """The answer. Whoever waits goes on now, before this returns."""
        self._result = result
        self.done = True
        wake = self._wake
        if wake is None:
            return
        if asyncio.current_task() is None:
            self._context.run(wake, self)
        else:  # one task cannot go on within another
            self._loop.call_soon(wake, self, context=self._context)

    def set_exception(self, error: BaseException) -> None:
        """There is none, for this reason. Whoever waits goes on soon: many may be told at once."""
        self._error = error
        self.done = True
        if self._wake is not None:
            self._loop.call_soon(self._wake, self, context=self._context)

    def give_up(self, error: BaseException) -> None:
        """As `set_exception`, unless it has come already."""
        if not self.done:
            self.set_exception(error)

    # the task's

    def __await__(self) -> Generator["Answer[Result]", None, Result]:
        if not self.done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, wake: Callable[["Answer[Result]"], object], *, context: contextvars.Context) -> None:
        self._wake, self._context = wake, context

    def cancel(self, msg: Any = None) -> bool:
        """The waiter is told to end. What comes later is of no account."""
        if self.done:
            return False
        self.set_exception(asyncio.CancelledError())
        return True
