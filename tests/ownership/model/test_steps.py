"""What the checker assumes of production's `step`: evidence and names decide nothing, what has ended stays ended."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from isthmus.ownership.model.rules import PRODUCTION
from isthmus.ownership.model.space import Space
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.states import DestinationHandoff, SourceHandoff
from tests.ownership.model.worlds import SMALL, visited, without_evidence

Taken = tuple[Callable[[Any, Any], Any], Any, Any]

NAMES = {"own", "other", "old", "next", "stranger", "producer", "consumer"}


@pytest.fixture(scope="module")
def taken() -> list[Taken]:
    """Every (step, state, event) that was asked for in any of the small scopes."""
    found: list[Taken] = []
    for scope in SMALL.values():
        space, _ = visited(scope)
        found += _asked(space)
    return found


def _asked(space: Space) -> list[Taken]:
    steps = space.steps
    sources = [(PRODUCTION.source, steps.sources[state], event) for state, event in steps._source_memo]
    return sources + [
        (PRODUCTION.destination, steps.destinations[state], event) for state, event in steps._destination_memo
    ]


def test_evidence_is_for_people_and_decides_nothing(taken: list[Taken]) -> None:
    for step, state, event in taken:
        if state is None:
            continue
        after, effects = step(state, event)
        for evidence in (Evidence.ACKNOWLEDGED, Evidence.SILENCE):
            other, other_effects = step(replace(state, evidence=evidence), event)
            assert (without_evidence(other), other_effects) == (without_evidence(after), effects)


def test_names_and_epochs_are_compared_for_equality_only(taken: list[Taken]) -> None:
    for step, state, event in taken:
        after, effects = step(state, event)
        renamed, renamed_effects = step(called_otherwise(state), called_otherwise(event))
        assert renamed == called_otherwise(after)
        assert renamed_effects == tuple(called_otherwise(effect) for effect in effects)


def called_otherwise(value: Any) -> Any:
    """The same, in a world where every name is another and every epoch is higher."""
    if value is None:
        return None
    return msgspec.convert(_renamed(msgspec.to_builtins(value)), type(value))


def _renamed(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _renamed(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(each, key) for each in value]
    if key in ("epoch", "target_epoch") and value is not None:
        return value + 40
    if key == "blocks":
        return value + 7
    return f"another {value}" if value in NAMES else value


def test_what_has_ended_stays_as_it_ended(taken: list[Taken]) -> None:
    for step, state, event in taken:
        if isinstance(state, SourceHandoff | DestinationHandoff) and state.ended:
            after, effects = step(state, event)
            assert after == state
            assert all(type(effect).__name__.startswith("Reply") for effect in effects)
