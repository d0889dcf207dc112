"""One seed, one sequence of faults."""

from isthmus.core.units import Duration
from isthmus.lab.chaos.chance import Chance


def drawn(seed: int) -> list[object]:
    chance = Chance(seed)
    span = Duration.of_ms(100), Duration.of_seconds(8)
    return [(chance.fraction(), chance.below(7), chance.pick("abc"), chance.duration(*span)) for _ in range(20)]


def test_a_seed_draws_the_same_every_time_and_another_draws_others():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_draws_stay_within_their_bounds_and_reach_all_of_them():
    chance = Chance(0)
    assert {chance.below(3) for _ in range(100)} == {0, 1, 2}
    shortest, longest = Duration.of_ms(100), Duration.of_seconds(8)
    durations = [chance.duration(shortest, longest) for _ in range(200)]
    assert all(shortest <= each <= longest for each in durations)
    assert min(durations).ms < 200
    assert max(durations).ms > 4000
