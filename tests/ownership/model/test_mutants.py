"""A guard that is taken out is missed, in as few moves as it takes; and production never notices that it was."""

import sys
from dataclasses import replace

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import Bug
from isthmus.ownership.model.explore import explore
from isthmus.ownership.model.loader import mutated
from isthmus.ownership.model.mutants import MUTANTS
from isthmus.ownership.model.rules import PRODUCTION
from isthmus.ownership.model.show import story
from isthmus.ownership.model.space import Space
from isthmus.ownership.protocol import source
from tests.ownership.model.worlds import explored

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
QUICK = {"freed_while_filling": 4, "renewal_shortens": 7, "asked_before_the_copy": 15, "admitted_without_staging": 2}


@pytest.mark.parametrize("name", list(QUICK))
def test_a_missing_guard_is_found_by_the_shortest_way(name: str) -> None:
    mutant = BY_NAME[name]
    found = explored(mutant.scope, mutant.rules()).counterexample
    assert found is not None
    assert (found.violation.invariant, len(found.steps)) == (mutant.violates, QUICK[name])


@pytest.mark.parametrize("name", list(QUICK))
def test_with_its_guard_the_same_scope_holds(name: str) -> None:
    mutant = BY_NAME[name]
    scope = replace(mutant.scope, switches=type(mutant.scope.switches)())
    assert explored(scope).counterexample is None


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.module], ids=lambda mutant: mutant.name)
def test_production_still_has_every_guard_that_a_mutant_takes_out(mutant: object) -> None:
    assert mutant.rules() is not PRODUCTION  # type: ignore[attr-defined]


def test_a_guard_that_has_drifted_is_said_to_have() -> None:
    with pytest.raises(Bug, match="occurs 0 times"):
        mutated("source", "a line that is not there", "")
    with pytest.raises(Bug, match="wanted once"):
        mutated("source", "return", "")


def test_loading_a_mutant_leaves_production_as_it_was() -> None:
    before = {name: module for name, module in sys.modules.items() if "ownership" in name}
    mutated("source", "if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:", "if state.ended:")
    after = {name: module for name, module in sys.modules.items() if "ownership" in name}
    assert after == before
    from isthmus.ownership.protocol import source as again

    assert again is source
    assert PRODUCTION.source is source.step


def test_a_counterexample_reads_as_a_story() -> None:
    mutant = BY_NAME["freed_while_filling"]
    space = Space(mutant.scope, mutant.rules())
    found = explore(space, SystemClock()).counterexample
    assert found is not None
    lines = list(story(found, space.steps, mutant.scope.parts))
    moves, states, end = lines[:-1:2], lines[1:-1:2], lines[-1]
    assert [line.split()[0] for line in moves] == ["1", "2", "3", "4"]
    assert "request 0: the order reaches the producer" in moves[1]
    assert "r0 computing -> reserved" in states[1]
    assert "I2" in end
