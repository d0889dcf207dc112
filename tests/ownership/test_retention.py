"""What goes first under each policy, and that the order costs what it says."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug, ConfigInvalid
from isthmus.core.units import Duration
from isthmus.ownership.retention import (
    RETENTIONS,
    CostAware,
    Entry,
    EvictionOrder,
    LeastFrequent,
    LeastRecent,
    retention_named,
    reuses_expected,
)

HALF_LIFE = Duration.of_seconds(10)


def at(seconds: float) -> Instant:
    return Instant(round(seconds * 1e9))


def entry(name: str, *uses: float, size_bytes: int = 100, recompute_ms: float = 10.0) -> Entry:
    """An entry made at the first of `uses`, seconds, and used at the others."""
    found = Entry.made(
        name.encode(), size_bytes=size_bytes, recompute_ms=recompute_ms, now=at(uses[0]), half_life=HALF_LIFE
    )
    for use in uses[1:]:
        found = found.used(at(use), HALF_LIFE)
    return found


def order_of(retention: str, *entries: Entry) -> str:
    order = EvictionOrder(retention_named(retention), entries_max=64)
    for each in entries:
        order.put(each)
    out = []
    while (victim := order.pop()) is not None:
        out.append(victim.key.decode())
    return "".join(out)


def test_lru_gives_up_what_was_not_used_for_longest() -> None:
    assert order_of("lru", entry("a", 0, 30), entry("b", 10), entry("c", 20)) == "bca"


def test_lfu_gives_up_what_is_used_least_though_it_was_used_last() -> None:
    assert order_of("lfu", entry("a", 0, 1, 2, 3), entry("b", 0, 1, 4), entry("c", 5)) == "cba"


def test_lfu_forgets_what_was_used_often_but_long_ago() -> None:
    """Four uses, ten half-lives ago, are worth less than one now."""
    assert order_of("lfu", entry("a", 0, 0, 0, 0), entry("b", 100)) == "ab"


def test_cost_aware_gives_up_what_is_quickest_to_make_again_for_its_room() -> None:
    cheap, dear = entry("c", 0, recompute_ms=1.0), entry("d", 0, recompute_ms=50.0)
    large = entry("l", 0, recompute_ms=50.0, size_bytes=10_000)
    assert order_of("cost", dear, cheap, large) == "lcd"


def test_cost_aware_weighs_reuse_against_time_to_make_again() -> None:
    often, dear = entry("o", 0, 0, 0, 0, recompute_ms=10.0), entry("d", 0, recompute_ms=35.0)
    assert order_of("cost", often, dear) == "do"
    assert order_of("cost", often, entry("d", 0, recompute_ms=45.0)) == "od"


def test_cost_aware_gives_up_first_what_takes_no_time_to_make() -> None:
    assert order_of("cost", entry("a", 0), entry("z", 0, 0, 0, recompute_ms=0.0)) == "za"


@given(
    uses=st.lists(st.floats(0, 1000), min_size=1, max_size=20).map(sorted),
    later=st.floats(0, 100),
)
def test_reuses_expected_are_the_uses_seen_each_halved_once_a_half_life(uses: list[float], later: float) -> None:
    found = entry("a", *uses)
    now = uses[-1] + later
    wanted = sum(2.0 ** ((use - now) / HALF_LIFE.seconds) for use in uses)
    assert math.isclose(reuses_expected(found, at(now), HALF_LIFE), wanted, rel_tol=1e-6)


@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=8).map(sorted),
    st.lists(st.floats(0, 1000), min_size=1, max_size=8).map(sorted),
    st.floats(1000, 2000),
)
def test_the_order_of_two_entries_does_not_depend_on_when_one_looks(first, second, now) -> None:
    """What a heap needs: worth does not move by itself."""
    a, b = entry("a", *first), entry("b", *second)
    worths = LeastFrequent().worth(a), LeastFrequent().worth(b)
    expected = reuses_expected(a, at(now), HALF_LIFE), reuses_expected(b, at(now), HALF_LIFE)
    if not math.isclose(worths[0], worths[1], abs_tol=1e-6):
        assert (worths[0] < worths[1]) == (expected[0] < expected[1])


@given(
    st.sampled_from(sorted(RETENTIONS)),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["put", "remove", "pop"]), st.integers(0, 50)), max_size=200),
)
def test_the_heap_answers_as_a_sorted_list_does(name: str, acts: list[tuple[int, str, int]]) -> None:
    policy = retention_named(name)
    order, plain = EvictionOrder(policy, entries_max=8), {}
    for number, (key, act, moment) in enumerate(acts):
        made = entry(str(key), moment, recompute_ms=float(key), size_bytes=key + 1)
        if act == "put":
            order.put(made)
            plain[made.key] = (policy.worth(made), number, made)
        elif act == "remove":
            found = plain.pop(made.key, None)
            assert order.remove(made.key) == (None if found is None else found[2])
        else:
            wanted = min(plain.values(), key=lambda item: item[:2], default=None)
            assert order.pop() == (None if wanted is None else wanted[2])
            if wanted is not None:
                del plain[wanted[2].key]
        assert len(order) == len(plain)
        assert all(key in order for key in plain)


def test_a_thousand_uses_of_one_entry_leave_a_small_heap() -> None:
    order = EvictionOrder(LeastRecent(), entries_max=4)
    for moment in range(1000):
        order.put(entry("a", moment))
    assert len(order) == 1
    assert len(order._heap) <= 2 * 1 + 65


def test_an_order_refuses_more_entries_than_its_bound() -> None:
    order = EvictionOrder(LeastRecent(), entries_max=2)
    order.put(entry("a", 0))
    order.put(entry("b", 0))
    order.put(entry("b", 1))
    with pytest.raises(Bug, match="wanted at most 2"):
        order.put(entry("c", 0))


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match="lru, lfu, cost"):
        retention_named("mru")


@pytest.mark.parametrize("policy", [LeastRecent(), LeastFrequent(), CostAware()], ids=lambda p: type(p).__name__)
def test_each_operation_costs_far_less_than_the_number_of_entries(policy) -> None:
    """64 times the entries must not make an operation even 8 times as dear: a scan would."""

    def cost_ns(entries: int) -> float:
        order = EvictionOrder(policy, entries_max=entries)
        known = [entry(str(number), number % 97) for number in range(entries)]
        for each in known:
            order.put(each)
        start = time.perf_counter_ns()
        for each in known[:2000]:
            order.put(each.used(at(100), HALF_LIFE))
        for _ in range(500):
            order.pop()
        return (time.perf_counter_ns() - start) / 2500

    assert min(cost_ns(65_536) for _ in range(2)) < 8 * max(cost_ns(2000) for _ in range(3))
