"""A simulated process's own clock: a little fast or slow, and it may jump ahead. Its chance comes from the seed."""

import asyncio
from collections.abc import Callable

from isthmus.core.clock import Chance, Instant, Timer
from isthmus.core.units import Duration
from isthmus.lab.seeds.loop import VirtualLoop

__all__ = ["SkewedClock"]


class SkewedClock:
    """`core.clock.Clock` on a virtual loop. `rate` is how many of its seconds pass in one of the world's."""

    def __init__(self, loop: VirtualLoop, chance: Chance, *, rate: float = 1.0, ahead: int = 0) -> None:
        self._loop = loop
        self._chance = chance
        self._rate = rate
        self._ahead = ahead

    def now(self) -> Instant:
        return Instant(int(self._loop.now * self._rate) + self._ahead)

    def jump(self, duration: Duration) -> None:
        """Go ahead at once, as the clock of a machine that was suspended. Who sleeps is not woken by it."""
        self._ahead += duration.ns

    async def sleep(self, duration: Duration) -> None:
        woken: asyncio.Future[None] = asyncio.Future(loop=self._loop)
        timer = self.call_later(duration, lambda: _wake(woken))
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, duration: Duration, callback: Callable[[], object]) -> Timer:
        # Rounded up, so that who sleeps until an instant finds it passed.
        return self._loop.call_in(int(duration.ns / self._rate) + 2, callback)

    def token(self) -> str:
        return self._chance.token()

    def unix_seconds(self) -> int:
        return self.now() // 1_000_000_000


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
