"""Named points on a hand-off's way, where a test may hold it up, fail it, or look around."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from isthmus.core.clock import Clock, ManualClock
from isthmus.core.waiting import within
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.handoff.producer import ProducerSide
from isthmus.transport.base import Reader
from isthmus.transport.faulty import Fault, FaultyReader

POINTS = (
    "order prefill",
    "engine prefill",
    "engine prefilled",
    "prefill ordered",
    "read",
    "read done",
    "convert",
    "converted",
    "confirm",
    "confirmed",
)
"""In order. Also: `copied` (the last byte is there), and off the way `stop`, `renew` and `abort`."""

Action = Callable[[], Awaitable[None]]


class Hooks:
    """What happens at each point, and which were passed."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._actions: dict[str, Action] = {}

    def at(self, point: str, action: Action) -> None:
        self._actions[point] = action

    async def __call__(self, point: str) -> None:
        self.seen.append(point)
        if point in self._actions:
            await self._actions[point]()


class Gate:
    """An action that says it was reached and waits to be opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.open.wait()


async def lose() -> None:
    """A message that never arrives."""
    await asyncio.Event().wait()


def times(count: int, action: Action) -> Action:
    """Do `action` the first `count` times, and nothing after."""
    left = [count]

    async def act() -> None:
        left[0] -= 1
        if left[0] >= 0:
            await action()

    return act


class HookedEngine:
    """An engine whose every await passes a point."""

    def __init__(self, inner: EmbeddedKV, hooks: Hooks) -> None:
        self._inner, self._hooks = inner, hooks

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def prefill(self, *args):
        await self._hooks("engine prefill")
        filled = await self._inner.prefill(*args)
        await self._hooks("engine prefilled")
        return filled

    async def stop_prefill(self, handoff):
        await self._hooks("stop")
        await self._inner.stop_prefill(handoff)

    async def convert(self, *args):
        await self._hooks("convert")
        checked = await self._inner.convert(*args)
        await self._hooks("converted")
        return checked


class HookedProducer:
    """The way to the producer: an order may be held up or lost on its way, and so may its answer, but not for ever."""

    def __init__(self, inner: ProducerSide, hooks: Hooks, clock: Clock) -> None:
        self._inner, self._hooks, self._clock = inner, hooks, clock

    async def prefill(self, order, deadline):
        return await self._pass(deadline, "order prefill", self._inner.prefill(order), "prefill ordered")

    async def confirm(self, order, deadline):
        return await self._pass(deadline, "confirm", self._inner.confirm(order), "confirmed")

    async def renew(self, order, deadline):
        await self._pass(deadline, "renew", self._inner.renew(order))

    async def abort(self, order, deadline):
        await self._pass(deadline, "abort", self._inner.abort(order))

    async def _pass(self, deadline, before, work, after=None):
        async def passing():
            try:
                await self._hooks(before)
                answer = await work
            finally:
                work.close()
            if after is not None:
                await self._hooks(after)
            return answer

        return await within(self._clock, deadline, passing(), before)


class HookedReader(FaultyReader):
    """A reader with a schedule of faults, and a point before it, after the last byte, and after both."""

    def __init__(self, inner: Reader, schedule: Iterable[Fault | None], clock: ManualClock, hooks: Hooks) -> None:
        super().__init__(_Copied(inner, hooks), iter(schedule), clock)
        self._hooks = hooks

    async def read(self, *args):
        await self._hooks("read")
        size = await super().read(*args)
        await self._hooks("read done")
        return size


class _Copied:
    """The reader itself, without faults."""

    def __init__(self, inner: Reader, hooks: Hooks) -> None:
        self._inner, self._hooks = inner, hooks

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def read(self, *args):
        size = await self._inner.read(*args)
        await self._hooks("copied")
        return size
