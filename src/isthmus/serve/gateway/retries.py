"""The gateway's retry budget: what keeps failures from making the load that makes more failures.

A token bucket for the whole gateway. Each request pays in `ratio` of a token, time pays in `floor_per_second`, and a
retry takes a whole one; the bucket holds `burst` at most, and starts full. So, over any stretch of time, retries are at
most `ratio` of its requests, and the floor, and one burst: a worker that dies with a hundred streams costs a hundred
prefills at once, and a fleet that fails every attempt costs a fifth more load than one that fails none, not four times
as much. A request whose retry is not granted ends in a clear error, with the time to ask again.

Refuses to know what is tried again, and why.
"""

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import Bug
from isthmus.core.units import Duration

__all__ = ["RetryBudget"]


class RetryBudget:
    """Tokens for retries. Of one event loop."""

    def __init__(self, clock: Clock, *, ratio: float = 0.2, floor_per_second: float = 10.0, burst: int = 100) -> None:
        if not 0 <= ratio <= 1 or floor_per_second <= 0 or burst < 1:
            raise Bug(f"no budget: ratio {ratio}, {floor_per_second} a second, burst {burst}", field="retries")
        self.ratio = ratio
        self._clock = clock
        self._floor_per_second = floor_per_second
        self._burst = burst
        self._tokens = float(burst)
        self._at: Instant = clock.now()

    @property
    def tokens(self) -> float:
        """How many retries would be granted now."""
        now = self._clock.now()
        earned = self._floor_per_second * Duration(now - self._at).seconds
        self._at = now
        self._tokens = min(self._burst, self._tokens + earned)
        return self._tokens

    def request(self) -> None:
        """A request has come: it pays for a part of a retry, its own or another's."""
        self._tokens = min(self._burst, self.tokens + self.ratio)

    def take(self) -> bool:
        """One retry, if it is granted."""
        granted = self.tokens >= 1
        self._tokens -= granted
        return granted

    def next_in(self) -> Duration:
        """When the floor alone would grant one."""
        return Duration.of_seconds(max(0.0, 1 - self.tokens) / self._floor_per_second)
