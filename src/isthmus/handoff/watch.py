"""How long each stage of a hand-off took."""

from collections.abc import Iterator
from contextlib import contextmanager

from isthmus.core.clock import Clock

__all__ = ["Watch"]


class Watch:
    """Milliseconds by stage, in order of their beginning."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._clock.now()
        try:
            yield
        finally:
            self.ms[name] = (self._clock.now() - start) / 1e6
