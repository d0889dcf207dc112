"""With a check taken out, the simulation goes red: so it would see its absence."""

import pytest

from isthmus.lab.seeds.canaries import CANARIES, Canary, run_canary


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_check_that_is_missing_is_noticed(canary: Canary) -> None:
    caught = run_canary(canary)
    assert caught.seed is not None, f"not caught in {canary.within} seeds: without {canary.without}"
