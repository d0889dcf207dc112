"""The model stated a second time, in TLA+: TLC must be installed where tests run (see `.ci/run`)."""

import pytest

from isthmus.core.clock import ManualClock
from isthmus.lab.tlc.run import count_states
from isthmus.ownership.model.explore import explore
from isthmus.ownership.model.rules import PRODUCTION
from isthmus.ownership.model.scopes import named
from isthmus.ownership.model.space import Space


def test_two_checkers_count_the_same_states():
    """One drives production's `step`, the other a specification that was written from its description."""
    scope = named("shared_small").scope
    ours = explore(Space(scope, PRODUCTION), ManualClock())
    theirs = count_states(
        requests=scope.requests, source_blocks=scope.source_slots, destination_blocks=scope.destination_slots
    )
    assert theirs.violated == ""
    assert (theirs.distinct, theirs.depth) == (ours.states, ours.depth)


@pytest.mark.parametrize("owner_checks", [True, False])
def test_without_the_owners_check_the_specification_lets_a_stale_install_happen(owner_checks: bool):
    found = count_states(requests=2, source_blocks=1, destination_blocks=2, owner_checks=owner_checks)
    assert found.violated == ("" if owner_checks else "NoStaleOrTornInstall")
