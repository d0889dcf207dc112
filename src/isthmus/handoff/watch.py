"""How long each stage of a hand-off took."""

from isthmus.core.clock import Clock, Instant

__all__ = ["Watch"]


class Watch:
    """Milliseconds by stage, in order of their beginning."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: list[tuple[str, Instant]] = []
        self.ms: dict[str, float] = {}

    def stage(self, name: str) -> "Watch":
        """The time that the body of `with` takes, however it ends."""
        self._under_way.append((name, self._clock.now()))
        return self

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        name, start = self._under_way.pop()
        self.ms[name] = (self._clock.now() - start) / 1e6
