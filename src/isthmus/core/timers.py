"""Many timers on an event loop for the price of one: deadlines are set all the time and hardly ever come.

asyncio makes a handle for each, compares them in Python and sweeps them out one by one. Here they lie in a heap of
plain tuples, and only the earliest is asyncio's.
"""

import asyncio
import contextvars
import heapq
import time
from collections.abc import Callable

__all__ = ["Timer", "Timers"]

_CANCELLED_MIN = 256
"""Fewer than so many dead entries are left to lie."""


class Timer:
    """A call that is to come, unless it is cancelled."""

    __slots__ = ("_callback", "_timers", "context")

    def __init__(self, timers: "Timers", callback: Callable[[], object]) -> None:
        self.context = contextvars.copy_context()
        self._timers = timers
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """It does not come. Does nothing once it has."""
        if self._callback is not None:
            self._callback = None
            self._timers.cancelled += 1

    @property
    def waits(self) -> bool:
        return self._callback is not None

    def ring(self) -> None:
        """It comes now."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Timers:
    """Those of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._heap: list[tuple[int, int, Timer]] = []
        self._order = 0
        self.cancelled = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0

    def __len__(self) -> int:
        """How many entries there are, dead ones counted."""
        return len(self._heap)

    def add(self, nanoseconds: int, callback: Callable[[], object]) -> Timer:
        """Call `callback` so much later."""
        if self.cancelled > _CANCELLED_MIN and 2 * self.cancelled > len(self._heap):
            self._sweep()
        when = time.monotonic_ns() + nanoseconds
        self._order += 1
        timer = Timer(self, callback)
        heapq.heappush(self._heap, (when, self._order, timer))
        if self._alarm is None or when < self._alarm_at:
            self._set_alarm(when)
        return timer

    def _sweep(self) -> None:
        """Dead entries go when they are most of all: each pays for its own sweeping."""
        self._heap = [entry for entry in self._heap if entry[2].waits]
        heapq.heapify(self._heap)
        self.cancelled = 0

    def _set_alarm(self, when: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self.loop.call_at(when / 1e9, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = time.monotonic_ns()
        while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].waits):
            timer = heapq.heappop(self._heap)[2]
            if timer.waits:
                self.loop.call_soon(timer.ring, context=timer.context)
            else:
                self.cancelled -= 1
        if self._heap:
            self._set_alarm(self._heap[0][0])
