"""Production's own protocol functions, memoised: what is checked is the code that runs, not a restatement of it.

`Rules` are two `step`s and the two questions a reaper asks. `Steps` interns protocol states as small ints and remembers
(state, event) → (state, effects), which `step` being pure makes sound. `evidence` is dropped from interned states: it
is written for people, and no rule reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol import destination, destination_push, source, source_ends
from isthmus.ownership.protocol.effects import Effect
from isthmus.ownership.protocol.events import DestinationEvent, SourceEvent
from isthmus.ownership.protocol.states import DestinationHandoff, SourceHandoff

__all__ = ["PRODUCTION", "Rules", "Steps"]

SourceStepped = tuple[SourceHandoff | None, tuple[Effect, ...]]
DestinationStepped = tuple[DestinationHandoff, tuple[Effect, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The functions under test."""

    source: Callable[[SourceHandoff | None, SourceEvent], SourceStepped]
    destination: Callable[[DestinationHandoff | None, DestinationEvent], DestinationStepped]
    source_lease_over: Callable[[SourceHandoff, Instant], bool]
    destination_lease_over: Callable[[DestinationHandoff, Instant], bool]


PRODUCTION = Rules(
    source=source.step,
    destination=destination.step,
    source_lease_over=source_ends.lease_over,
    destination_lease_over=destination_push.lease_over,
)


class Steps:
    """Interned states of both sides. Id 0 is "not known"."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.sources: list[SourceHandoff | None] = [None]
        self.destinations: list[DestinationHandoff | None] = [None]
        self._source_ids: dict[SourceHandoff | None, int] = {None: 0}
        self._destination_ids: dict[DestinationHandoff | None, int] = {None: 0}
        self._source_memo: dict[tuple[int, SourceEvent], tuple[int, tuple[Effect, ...]]] = {}
        self._destination_memo: dict[tuple[int, DestinationEvent], tuple[int, tuple[Effect, ...]]] = {}

    def source(self, state: int, event: SourceEvent) -> tuple[int, tuple[Effect, ...]]:
        """One step of the producer's side."""
        known = self._source_memo.get((state, event))
        if known is None:
            try:
                after, effects = self.rules.source(self.sources[state], event)
            except Bug as bug:
                raise Violation("Bug", f"{type(event).__name__}: {bug}") from bug
            known = self._source_memo[state, event] = (self._source_id(after), effects)
        return known

    def destination(self, state: int, event: DestinationEvent) -> tuple[int, tuple[Effect, ...]]:
        """One step of the consumer's side."""
        known = self._destination_memo.get((state, event))
        if known is None:
            try:
                after, effects = self.rules.destination(self.destinations[state], event)
            except Bug as bug:
                raise Violation("Bug", f"{type(event).__name__}: {bug}") from bug
            known = self._destination_memo[state, event] = (self._destination_id(after), effects)
        return known

    def _source_id(self, state: SourceHandoff | None) -> int:
        kept = None if state is None else replace(state, evidence=None)
        if kept not in self._source_ids:
            self._source_ids[kept] = len(self.sources)
            self.sources.append(kept)
        return self._source_ids[kept]

    def _destination_id(self, state: DestinationHandoff) -> int:
        kept = replace(state, evidence=None)
        if kept not in self._destination_ids:
            self._destination_ids[kept] = len(self.destinations)
            self.destinations.append(kept)
        return self._destination_ids[kept]
