"""How fast blocks come free: an average over the last seconds, for telling a refused request when to ask again."""

import math

from isthmus.core.clock import Clock, Instant
from isthmus.core.units import Duration

__all__ = ["ReleaseRate"]

WINDOW = Duration.of_seconds(10)
"""What happened this long ago counts e times less than what happens now."""

GRAIN = Duration.of_ms(10)
"""What happens within it counts as one: a thousandth of the window makes no difference to a rate."""


class ReleaseRate:
    """Blocks per second, exponentially averaged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._level = 0.0
        self._at: Instant = clock.now()

    def observe(self, blocks: int) -> None:
        """So many came free just now."""
        self._decay()
        self._level += blocks

    def until(self, blocks: int, *, least: Duration, most: Duration) -> Duration:
        """How long that many will take at this rate, within bounds; `least` where nothing was ever observed."""
        self._decay()
        if not self._level:
            return least
        seconds = blocks * WINDOW.seconds / self._level
        return max(least, Duration.of_seconds(min(seconds, most.seconds)))

    def _decay(self) -> None:
        now = self._clock.now()
        if now - self._at < GRAIN.ns:
            return
        self._level *= math.exp((self._at - now) / WINDOW.ns)
        self._at = now
