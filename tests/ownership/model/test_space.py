"""The state space: it is what the protocol makes of it, and its short cuts cut nothing away."""

from dataclasses import replace

import pytest

from isthmus.ownership.model.scope import Faults, Scope
from isthmus.ownership.model.scopes import SCOPES
from tests.ownership.model.worlds import SMALL, explored, renamings, spelled_out, strangers_alike, visited


@pytest.mark.parametrize(
    ("requests", "source_slots", "destination_slots", "states", "transitions"),
    [(1, 1, 1, 50, 102), (2, 1, 1, 713, 2032), (2, 1, 2, 5391, 19194), (2, 2, 2, 15367, 61322)],
)
def test_the_shared_scope_has_as_many_states_as_a_second_model_of_it_found(
    requests: int, source_slots: int, destination_slots: int, states: int, transitions: int
) -> None:
    scope = Scope(
        name="shared",
        about="",
        requests=requests,
        source_slots=source_slots,
        destination_slots=destination_slots,
        reduced=False,
    )
    found = explored(scope)
    assert (found.states, found.transitions, found.exhausted) == (states, transitions, True)


@pytest.mark.parametrize("name", ["pull", "fleet"])
def test_states_that_stand_for_others_stand_for_all_of_them_and_for_nothing_else(name: str) -> None:
    """Orbits: the canonical states' renamings are, all together and each once, the states of the unreduced space."""
    scope = replace(SMALL[name], source_slots=1, faults=Faults(gives_up=name == "pull"))
    whole, states = visited(replace(scope, reduced=False))
    worlds = {strangers_alike(spelled_out(whole, state), scope.parts) for state in states}
    reduced, canonical = visited(scope)
    orbits = [set(renamings(spelled_out(reduced, state), scope.parts)) for state in canonical]
    assert sum(len(orbit) for orbit in orbits) == len(worlds)
    assert set().union(*orbits) == worlds


@pytest.mark.parametrize("name", list(SMALL))
def test_what_a_view_gives_is_what_the_whole_state_gives(name: str) -> None:
    space, states = visited(SMALL[name])
    for state in sorted(states)[:: max(1, len(states) // 400)]:
        _, found = space.expand(state)
        moves = [space.packing.pack(move.world) for move in space.moves(state) if move.world is not None]
        assert {space.canonical(after) for after in found} - {state} == {space.canonical(after) for after in moves} - {
            state
        }


@pytest.mark.parametrize("name", list(SMALL))
def test_all_that_only_goes_on_comes_to_an_end(name: str) -> None:
    space, _ = visited(SMALL[name])
    space.check_progress()


@pytest.mark.parametrize("name", ["hostile"])
def test_a_scope_holds_and_shows_all_that_must_happen_in_it(name: str) -> None:
    space, _ = visited(SCOPES[name].scope)
    assert space.marks >= set(SCOPES[name].sometimes)
