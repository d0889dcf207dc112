"""Where something lies: by the time it takes to be used again, and never by its worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import Bug, ConfigInvalid
from isthmus.ownership.residency import (
    RESIDENCIES,
    Discard,
    Item,
    Lie,
    MemoryOnly,
    NearestThatPays,
    NearestWithRoom,
    Tier,
    TierState,
    residency_named,
)

MB = 1_000_000
POLICY = NearestThatPays()


def tiers(**used: int) -> list[TierState]:
    """A device of 10 MB, a host of 20, a disk of 100, and a peer; `used` in MB."""
    shapes = {
        Tier.DEVICE: (10, 0.0, 1000 * MB),
        Tier.PINNED_HOST: (20, 0.05, 20_000.0 * 1000),
        Tier.FILE: (100, 0.2, 2_000.0 * 1000),
        Tier.REMOTE: (1000, 1.0, 1_000.0 * 1000),
    }
    return [
        TierState(
            tier=tier,
            capacity_bytes=capacity * MB,
            used_bytes=used.get(tier.value, 0) * MB,
            latency_ms=latency,
            bytes_per_ms=rate,
        )
        for tier, (capacity, latency, rate) in shapes.items()
    ]


def item(megabytes: int = 5, recompute_ms: float = 100.0) -> Item:
    return Item(size_bytes=megabytes * MB, recompute_ms=recompute_ms)


def test_something_new_lies_in_the_nearest_tier_with_room() -> None:
    assert POLICY.place(item(), tiers()) == Lie(tier=Tier.DEVICE)
    assert POLICY.place(item(), tiers(device=6)) == Lie(tier=Tier.PINNED_HOST)
    assert POLICY.place(item(), tiers(device=6, pinned_host=16)) == Lie(tier=Tier.FILE)


def test_no_tier_is_a_place_for_what_is_made_again_sooner_than_it_is_loaded() -> None:
    """5 MB take 2.7 ms from the file; made again in 1 ms, it does not go there."""
    full = tiers(device=10, pinned_host=20)
    assert POLICY.place(item(recompute_ms=3.0), full) == Lie(tier=Tier.FILE)
    answer = POLICY.place(item(recompute_ms=1.0), full)
    assert isinstance(answer, Discard)
    assert "no room" in answer.reason


def test_what_must_leave_its_tier_goes_outwards_only() -> None:
    assert POLICY.demote(item(), Tier.DEVICE, tiers(device=10)) == Lie(tier=Tier.PINNED_HOST)
    assert POLICY.demote(item(), Tier.PINNED_HOST, tiers(pinned_host=20)) == Lie(tier=Tier.FILE)
    answer = POLICY.demote(item(), Tier.REMOTE, tiers())
    assert answer == Discard(reason="there is no tier further out")


def test_what_must_leave_is_discarded_where_a_load_would_not_pay() -> None:
    answer = POLICY.demote(item(recompute_ms=0.2), Tier.DEVICE, tiers(device=10))
    assert isinstance(answer, Discard)
    assert "made again in 0.2 ms" in answer.reason


def test_what_was_used_moves_inwards_if_there_is_room() -> None:
    assert POLICY.promote(item(), Tier.FILE, tiers(file=5)) == Lie(tier=Tier.DEVICE)
    assert POLICY.promote(item(), Tier.FILE, tiers(file=5, device=9)) == Lie(tier=Tier.PINNED_HOST)
    assert POLICY.promote(item(), Tier.FILE, tiers(file=5, device=9, pinned_host=19)) == Lie(tier=Tier.FILE)


def test_what_is_used_stays_where_loading_it_takes_longer_than_making_it_again() -> None:
    """5 MB take 2.7 ms from the file."""
    assert POLICY.promote(item(recompute_ms=3.0), Tier.FILE, tiers()) == Lie(tier=Tier.DEVICE)
    assert POLICY.promote(item(recompute_ms=2.0), Tier.FILE, tiers()) == Lie(tier=Tier.FILE)


def test_with_room_and_no_regard_for_time_everything_is_kept_and_loaded() -> None:
    policy = NearestWithRoom()
    assert policy.demote(item(recompute_ms=0.0), Tier.DEVICE, tiers(device=10)) == Lie(tier=Tier.PINNED_HOST)
    assert policy.demote(item(recompute_ms=0.0), Tier.DEVICE, tiers(device=10, pinned_host=16)) == Lie(tier=Tier.FILE)
    assert policy.promote(item(recompute_ms=0.0), Tier.FILE, tiers()) == Lie(tier=Tier.DEVICE)
    full = tiers(device=10, pinned_host=20, file=100, remote=1000)
    assert isinstance(policy.place(item(), full), Discard)


def test_memory_only_keeps_files_unwritten_and_reads_them() -> None:
    policy = MemoryOnly()
    assert policy.demote(item(), Tier.DEVICE, tiers(device=10)) == Lie(tier=Tier.PINNED_HOST)
    assert policy.place(item(), tiers(device=10, pinned_host=20)) == Lie(tier=Tier.REMOTE)
    assert policy.demote(item(), Tier.PINNED_HOST, tiers(pinned_host=20, remote=1000)) == Discard(
        reason="no room for 5000000 bytes in remote"
    )
    assert policy.demote(item(), Tier.FILE, tiers()) == Lie(tier=Tier.REMOTE)
    assert policy.promote(item(), Tier.FILE, tiers()) == Lie(tier=Tier.DEVICE)


def test_policies_are_found_by_their_names() -> None:
    assert isinstance(residency_named("nearest_that_pays"), NearestThatPays)
    with pytest.raises(ConfigInvalid, match="nearest_that_pays, nearest_with_room, memory_only") as caught:
        residency_named("nearest")
    assert caught.value.field == "residency"


def test_a_tier_named_twice_is_our_own_mistake() -> None:
    with pytest.raises(Bug, match="2 times"):
        POLICY.promote(item(), Tier.FILE, tiers() + tiers())


@pytest.mark.parametrize("wrong", [{"used_bytes": 11}, {"used_bytes": -1}, {"latency_ms": -1.0}, {"bytes_per_ms": 0.0}])
def test_a_tier_that_cannot_be_is_refused(wrong: dict) -> None:
    right = {"tier": Tier.HOST, "capacity_bytes": 10, "used_bytes": 0, "latency_ms": 0.0, "bytes_per_ms": 1.0}
    with pytest.raises(Bug, match="no tier"):
        TierState(**right | wrong)


states = st.builds(
    lambda tier, capacity, used, latency, rate: TierState(
        tier=tier, capacity_bytes=capacity, used_bytes=min(used, capacity), latency_ms=latency, bytes_per_ms=rate
    ),
    st.just(Tier.HOST),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.floats(0, 10),
    st.floats(0.1, 1000),
)


@given(
    st.lists(states, min_size=5, max_size=5),
    st.integers(1, 500),
    st.floats(0, 100),
    st.sampled_from(Tier),
    st.sampled_from(sorted(RESIDENCIES)),
)
def test_a_chosen_tier_always_has_room_and_pays_where_that_is_asked(found, size, recompute_ms, lies_in, name) -> None:
    policy = residency_named(name)
    named = [
        TierState(
            tier=tier,
            capacity_bytes=state.capacity_bytes,
            used_bytes=state.used_bytes,
            latency_ms=state.latency_ms,
            bytes_per_ms=state.bytes_per_ms,
        )
        for tier, state in zip(Tier, found, strict=True)
    ]
    wanted = Item(size_bytes=size, recompute_ms=recompute_ms)
    by_tier = {state.tier: state for state in named}
    for answer, may_stay in (
        (policy.place(wanted, named), False),
        (policy.demote(wanted, lies_in, named), False),
        (policy.promote(wanted, lies_in, named), True),
    ):
        if isinstance(answer, Discard) or (may_stay and answer.tier is lies_in):
            continue
        chosen = by_tier[answer.tier]
        assert chosen.fits(size)
        assert chosen.load_ms(size) < recompute_ms or name == "nearest_with_room"
        assert chosen.tier is not Tier.FILE or may_stay or name != "memory_only"
        assert may_stay == (answer.tier is not lies_in) or not may_stay
