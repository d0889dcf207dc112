"""Time and spans of it."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.clock import ManualClock, SystemClock, after
from isthmus.core.units import Duration, blocks_for

SECOND = Duration.of_seconds(1)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def sleeper(clock: ManualClock, seconds: float, woken: list) -> None:
    await clock.sleep(Duration.of_seconds(seconds))
    woken.append((seconds, clock.now()))


async def test_a_manual_clock_stands_still_until_it_is_advanced():
    clock, woken = ManualClock(), []
    task = asyncio.create_task(sleeper(clock, 1, woken))
    await turns()
    assert (clock.now(), woken) == (0, [])
    clock.advance(Duration(SECOND.ns - 1))
    await turns()
    assert not task.done()
    clock.advance(Duration(1))
    await task
    assert clock.now() == SECOND.ns
    assert clock.unix_seconds() == 1


async def test_sleepers_wake_in_the_order_of_their_times_and_then_of_their_coming():
    clock, woken = ManualClock(), []
    tasks = [asyncio.create_task(sleeper(clock, seconds, woken)) for seconds in (3, 1, 2, 1)]
    await turns()
    clock.advance(SECOND * 5)
    await asyncio.gather(*tasks)
    assert [seconds for seconds, _ in woken] == [1, 1, 2, 3]


async def test_a_sleeper_that_was_cancelled_disturbs_no_other():
    clock, woken = ManualClock(), []
    first, second = (asyncio.create_task(sleeper(clock, 1, woken)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    clock.advance(SECOND)
    await second
    assert first.cancelled()
    assert len(woken) == 1


async def test_a_sleep_of_no_time_ends_at_the_next_advance():
    clock, woken = ManualClock(), []
    task = asyncio.create_task(sleeper(clock, 0, woken))
    await turns()
    clock.advance(Duration(0))
    await task
    assert woken == [(0, 0)]


def test_chance_comes_from_the_seed_and_ids_are_128_bits_of_hex():
    one, same, other = ManualClock(7), ManualClock(7), ManualClock(8)
    drawn = [one.token() for _ in range(100)]
    assert drawn == [same.token() for _ in range(100)]
    assert drawn != [other.token() for _ in range(100)]
    assert len(set(drawn)) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in [*drawn, SystemClock().token()])
    assert SystemClock().token() != SystemClock().token()


async def test_the_system_clock_never_runs_back_and_sleeps():
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(Duration(1))
    assert clock.now() > before
    assert clock.unix_seconds() > 1_700_000_000


def test_an_instant_and_a_duration_make_an_instant():
    clock = ManualClock()
    clock.advance(SECOND)
    assert after(clock.now(), SECOND * 2) == 3 * SECOND.ns


@given(st.integers(0, 1 << 60))
def test_a_duration_says_the_same_in_every_unit(ns):
    span = Duration(ns)
    assert span.ms == ns / 1e6
    assert span.seconds == ns / 1e9
    assert span / 1 == span * 1 == Duration(round(float(ns)))


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_durations_are_ordered_as_their_lengths(one, other):
    assert (Duration(one) < Duration(other)) == (one < other)
    assert (Duration(one) == Duration(other)) == (one == other)


def test_a_duration_is_whole_nanoseconds_and_reads_as_milliseconds():
    assert Duration.of_ms(1.5) == Duration(1_500_000)
    assert Duration.of_seconds(0.25).ms == 250
    assert Duration.of_ms(0.0000004).ns == 0
    assert (Duration(10) / 3, Duration(10) * 0.25) == (Duration(3), Duration(2))
    assert str(Duration.of_ms(1500)) == "1500 ms"


@pytest.mark.parametrize("make", [lambda: Duration(-1), lambda: Duration.of_ms(-1), lambda: Duration.of_seconds(-1e-9)])
def test_a_duration_is_not_negative(make):
    with pytest.raises(ValueError, match="not negative"):
        make()


@given(st.integers(0, 1 << 20), st.integers(1, 4096))
def test_blocks_hold_all_tokens_and_none_is_spare(tokens, block_size):
    blocks = blocks_for(tokens, block_size)
    assert blocks * block_size >= tokens
    assert (blocks - 1) * block_size < tokens or blocks == 0
