"""The tier in host memory by itself: in any order of what can happen to it, its bound holds and no byte is another."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.clock import ManualClock
from isthmus.core.units import Duration
from isthmus.handoff.host_tier import HostTier, _name
from isthmus.handoff.tier_store import Kept, Leaving
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.residency import Tier
from isthmus.ownership.retention import RETENTIONS, LeastRecent, retention_named

SIZE, SLOTS, KEYS = 64, 4, 9


def key(number: int) -> FileKey:
    return FileKey(prefix=bytes([number]), tenant=b"tenant", identity=b"model", representation=b"form")


def payload_of(number: int) -> bytes:
    return bytes((number * 31 + place) % 256 for place in range(SIZE))


def leaving(number: int) -> Leaving:
    def write(into: memoryview) -> None:
        into[:] = payload_of(number)

    return Leaving(key=key(number), logical_digest=number, recompute_ms=1.0 + number, write=write)


@dataclass
class _Store:
    """A tier under test, with what it must have in it: block by number, and those whose bytes were changed."""

    host: HostTier
    here: set[int] = field(default_factory=set)
    torn: set[int] = field(default_factory=set)
    holding: list[tuple[list[int], ExitStack]] = field(default_factory=list)

    @property
    def held(self) -> set[int]:
        return {number for numbers, _ in self.holding for number in numbers}

    def given_up(self, gone: Leaving, tier: Tier) -> bool:
        """Whole, and not under anybody's hands."""
        number = gone.key.prefix[0]
        assert number in self.here - self.held - self.torn
        data = bytearray(SIZE)
        gone.write(memoryview(data))
        assert bytes(data) == payload_of(number)
        self.here.remove(number)
        return number % 2 == 0

    def found(self) -> None:
        """What was torn and is given up says nothing: take it out of what must be here by looking."""
        gone = {number for number in self.torn - self.held if self.host.recompute_ms(key(number)) is None}
        self.here -= gone
        self.torn -= gone

    def keep(self, number: int) -> None:
        full = len(self.here) == SLOTS
        new, room = number not in self.here, not full or bool(self.here - self.held)
        kept = self.host.keep(leaving(number))
        if new:
            assert kept == room
            if kept:
                self.here.add(number)
        self.found()

    def hold(self, numbers: Sequence[int]) -> None:
        present = [number for number in dict.fromkeys(numbers) if self.host.recompute_ms(key(number)) is not None]
        stack = ExitStack()
        stack.enter_context(self.host.holding([key(number) for number in present]))
        self.holding.append((present, stack))

    async def load(self) -> None:
        if not self.holding:
            return
        numbers, _ = self.holding[-1]
        loaded: list[bytes] = []

        def install(kept: Kept) -> bool:
            loaded.append(bytes(kept.payload))
            return True

        count = await self.host.load([key(number) for number in numbers], install)
        whole = next((place for place, number in enumerate(numbers) if number in self.torn), len(numbers))
        assert count == len(loaded) == whole
        assert loaded == [payload_of(number) for number in numbers[:whole]]

    def release(self) -> None:
        if self.holding:
            self.holding.pop(0)[1].close()
            self.found()

    def tear(self, number: int) -> None:
        if number in self.here and number not in self.torn:
            self.host._view(self.host._slots[_name(key(number))].number)[number % SIZE] ^= 0x40
            self.torn.add(number)


numbers = st.integers(0, KEYS - 1)
MOVES = st.one_of(
    st.tuples(st.just("keep"), numbers),
    st.tuples(st.just("hold"), st.lists(numbers, max_size=4)),
    st.tuples(st.sampled_from(["load", "release"])),
    st.tuples(st.just("tear"), numbers),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(RETENTIONS)), st.lists(MOVES, max_size=40))
def test_whatever_happens_the_bound_holds_and_what_is_held_stays_and_no_byte_is_another(retention, moves) -> None:
    asyncio.run(_happen(retention, moves))


async def _happen(retention: str, moves: list[tuple]) -> None:
    clock = ManualClock()
    bytes_max = SLOTS * SIZE + SIZE - 1
    host = HostTier(
        Tier.HOST,
        bytes_max=bytes_max,
        payload_bytes=SIZE,
        memory=lambda size_bytes: memoryview(bytearray(size_bytes)),
        retention=retention_named(retention),
        clock=clock,
    )
    store = _Store(host)
    host.when_given_up(store.given_up)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(host.running())
        for what, *arguments in moves:
            clock.advance(Duration(1))
            step = getattr(store, what)(*arguments)
            if step is not None:
                await step
            assert host.bytes_held <= bytes_max
            assert host.bytes_held == len(store.here) * SIZE
            assert host.state().used_bytes == len(store.held) * SIZE
            assert len(host._free) + len(store.here) == SLOTS
            assert all(host.recompute_ms(key(number)) == 1.0 + number for number in store.here - store.torn)
        while store.holding:
            store.release()
        for _ in host.give_up_all():
            pass
        assert host.bytes_held == 0
        assert len(host._order) == 0


async def test_what_a_load_takes_is_learnt_and_the_latest_counts_most() -> None:
    """The clock moves while a block is installed: 64 bytes in 2 ms."""
    clock = ManualClock()
    host = HostTier(
        Tier.HOST,
        bytes_max=SIZE,
        payload_bytes=SIZE,
        memory=lambda size_bytes: memoryview(bytearray(size_bytes)),
        retention=LeastRecent(),
        clock=clock,
    )

    def install(kept: Kept) -> bool:
        clock.advance(Duration.of_ms(2))
        return True

    async with host.running():
        assert host.keep(leaving(1))
        first = host.state().load_ms(SIZE)
        with host.holding([key(1)]):
            for _ in range(60):
                assert await host.load([key(1)], install) == 1
    assert first < 0.1
    assert host.state().bytes_per_ms == pytest.approx(SIZE / 2, rel=0.5)
    assert host.state().load_ms(SIZE) == pytest.approx(2.0, rel=0.5)
