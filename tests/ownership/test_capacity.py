"""Admission: in order of arrival, bounded, and leaving nothing behind."""

import asyncio
from collections.abc import Callable

import pytest

from isthmus.core.clock import ManualClock
from isthmus.core.errors import CapacityExceeded
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.ledger import Ledger

SECOND = Duration.of_seconds(1)
TENANT = TenantId("tenant-0")


class Desk:
    """A ledger of 4 blocks and 100 staging bytes, and its queue."""

    def __init__(self, waiting_max: int = 8) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(num_blocks=4, block_bytes=16, staging_bytes=100)
        self.capacity = Capacity(ledger=self.ledger, clock=self.clock, waiting_max=waiting_max)

    def ask(self, blocks: int, staging_bytes: int = 0) -> "asyncio.Task[Assignment]":
        handoff = HandoffId(self.clock.token())
        return asyncio.ensure_future(
            self.capacity.acquire(handoff, tenant=TENANT, blocks=blocks, staging_bytes=staging_bytes, deadline=SECOND)
        )

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def take(self, blocks: int, staging_bytes: int = 0) -> Assignment:
        async with asyncio.timeout(5):  # the clock stands still: a wait would never end
            return await self.ask(blocks, staging_bytes)


async def test_a_large_request_at_the_head_is_not_starved_by_small_ones() -> None:
    desk = Desk()
    first = await desk.take(2)
    large, small = desk.ask(4), desk.ask(1)
    await desk.settle()
    assert not large.done()
    assert not small.done()  # it would fit, but it came later
    desk.capacity.give_back(first, staging_bytes=0)
    await desk.settle()
    assert large.done()
    assert not small.done()
    desk.capacity.give_back(large.result(), staging_bytes=0)
    await desk.settle()
    assert small.done()


async def test_a_late_comer_does_not_overtake_the_queue_even_if_it_fits() -> None:
    desk = Desk()
    await desk.take(2)
    large = desk.ask(3)
    await desk.settle()
    late = desk.ask(1)
    await desk.settle()
    assert not late.done()
    large.cancel()
    await desk.settle()
    assert late.done()  # the head has left, and those behind it move up


async def test_a_release_of_staging_wakes_a_waiter() -> None:
    desk = Desk()
    first = await desk.take(1, staging_bytes=80)
    second = desk.ask(1, staging_bytes=30)
    await desk.settle()
    assert not second.done()
    desk.ledger.release_staging(first.epoch)
    await desk.settle()
    assert second.done()


async def test_a_cancelled_waiter_leaves_no_reservation() -> None:
    desk = Desk()
    first = await desk.take(4)
    waiting = desk.ask(2)
    await desk.settle()
    waiting.cancel()
    await desk.settle()
    assert desk.capacity.waiting == 0
    desk.capacity.give_back(first, staging_bytes=0)
    assert desk.ledger.held().blocks == 0


async def test_a_waiter_cancelled_in_the_turn_of_its_admission_leaves_no_reservation() -> None:
    desk = Desk()
    first = await desk.take(4)
    waiting = desk.ask(2, staging_bytes=50)
    await desk.settle()
    desk.capacity.give_back(first, staging_bytes=0)  # admits
    assert desk.ledger.held().reserved == 2
    waiting.cancel()
    await desk.settle()
    assert waiting.cancelled()
    assert (desk.ledger.held().blocks, desk.ledger.held().staging_bytes) == (0, 0)
    desk.ledger.check_in_full()


async def test_I5_a_wait_ends_at_its_deadline_with_an_answer_that_says_when_to_ask_again() -> None:
    desk = Desk()
    await desk.take(3)
    waiting = desk.ask(2)
    await desk.settle()
    desk.clock.advance(SECOND)
    with pytest.raises(CapacityExceeded, match="1 of 4 blocks") as caught:
        await waiting
    assert caught.value.retry_after is not None
    assert desk.capacity.waiting == 0


async def test_the_queue_is_bounded() -> None:
    desk = Desk(waiting_max=1)
    await desk.take(4)
    desk.ask(1)
    await desk.settle()
    with pytest.raises(CapacityExceeded, match="1 requests wait") as caught:
        await desk.take(1)
    assert caught.value.retry_after is not None


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda desk: desk.take(5), "wants 5 blocks of 16 bytes; the whole pool has 4"),
        (lambda desk: desk.take(1, 101), "wants 101 staging bytes; the whole budget is 100"),
    ],
)
async def test_what_can_never_fit_is_refused_at_once_with_the_numbers(ask: Callable[[Desk], object], says: str) -> None:
    with pytest.raises(CapacityExceeded, match=says) as caught:
        await ask(Desk())  # type: ignore[misc]
    assert caught.value.retry_after is None  # asking again would not help


async def test_a_deadline_of_zero_still_takes_what_is_free() -> None:
    desk = Desk()
    got = await desk.capacity.acquire(
        HandoffId("f" * 32), tenant=TENANT, blocks=4, staging_bytes=100, deadline=Duration(0)
    )
    assert len(got.blocks) == 4
