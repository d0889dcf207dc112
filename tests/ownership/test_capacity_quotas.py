"""Admission between tenants: guarantees, maxima, turns, and what gives way."""

import asyncio

import pytest

from isthmus.core.clock import ManualClock
from isthmus.core.errors import CapacityExceeded, ConfigInvalid, QuotaExceeded
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment, Count
from isthmus.ownership.capacity import RETRY_AFTER_MAX, Capacity
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.quotas import Quota, Quotas
from isthmus.ownership.side import Side

SECOND = Duration.of_seconds(1)
A, B, C = TenantId("a"), TenantId("b"), TenantId("c")
Asked = "asyncio.Task[Assignment]"


class Pool:
    """A ledger of `num_blocks` blocks and 100 staging bytes, and its queue."""

    def __init__(self, num_blocks: int = 10, *, quotas: dict[TenantId, Quota] | None = None, **fields: object) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(num_blocks=num_blocks, block_bytes=16, staging_bytes=100)
        self.capacity = Capacity(
            ledger=self.ledger,
            clock=self.clock,
            quotas=Quotas(num_blocks=num_blocks, tenants=quotas),
            **fields,  # type: ignore[arg-type]
        )

    def ask(self, tenant: TenantId, blocks: int, staging_bytes: int = 0, side: Side = Side.CONSUMER) -> Asked:
        handoff = HandoffId(self.clock.token())
        return asyncio.ensure_future(
            self.capacity.acquire(
                handoff, tenant=tenant, blocks=blocks, staging_bytes=staging_bytes, deadline=SECOND, side=side
            )
        )

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def take(self, tenant: TenantId, blocks: int, staging_bytes: int = 0) -> Assignment:
        async with asyncio.timeout(5):  # the pool's clock stands still: a wait would never end
            return await self.ask(tenant, blocks, staging_bytes)

    def give(self, assignment: Assignment) -> None:
        self.capacity.give_back(assignment, staging_bytes=0)

    async def order(self, asked: list[tuple[str, Asked]], in_use: list[Assignment]) -> str:
        """Names in the order in which they were served, as what is in use is given back, oldest first."""
        served: list[str] = []
        await self.settle()
        for name, task in asked:
            task.add_done_callback(lambda done, name=name: (served.append(name), in_use.append(done.result())))
        while in_use:
            self.give(in_use.pop(0))
            await self.settle()
        return "".join(served)


async def test_what_is_guaranteed_is_kept_free_and_had_at_once() -> None:
    pool = Pool(quotas={B: Quota(blocks_min=4)})
    greedy = [pool.ask(A, 3) for _ in range(4)]
    await pool.settle()
    assert [task.done() for task in greedy] == [True, True, False, False]
    assert len((await pool.take(B, 4)).blocks) == 4  # though others wait


async def test_what_is_not_guaranteed_is_lent_to_whoever_asks() -> None:
    pool = Pool(quotas={A: Quota(), B: Quota()})
    assert len((await pool.take(A, 10)).blocks) == 10


async def test_a_tenant_at_its_maximum_waits_for_its_own_and_keeps_nobody_waiting() -> None:
    pool = Pool(quotas={A: Quota(blocks_max=4)})
    own = await pool.take(A, 4)
    more = pool.ask(A, 2)
    await pool.settle()
    assert not more.done()
    await pool.take(B, 6)
    pool.give(own)
    await pool.settle()
    assert more.done()


async def test_the_end_of_a_wait_for_ones_own_quota_is_said_to_be_that() -> None:
    pool = Pool(quotas={A: Quota(blocks_max=4)})
    await pool.take(A, 4)
    more = pool.ask(A, 2)
    await pool.settle()
    pool.clock.advance(SECOND)
    with pytest.raises(QuotaExceeded, match="tenant 'a' holds 4 blocks and wants 2 more") as caught:
        await more
    assert caught.value.retry_after is not None
    assert caught.value.http_status == 429


async def test_more_than_a_tenant_may_ever_have_is_refused_at_once() -> None:
    pool = Pool(quotas={A: Quota(blocks_max=4), B: Quota(blocks_min=7)})
    with pytest.raises(QuotaExceeded, match="tenant 'a' may have 3") as caught:
        await pool.take(A, 4)
    assert caught.value.retry_after is None


async def test_tenants_take_turns_by_blocks_and_not_by_requests() -> None:
    pool = Pool(4)
    in_use = [await pool.take(C, 1) for _ in range(4)]
    asked = [(f"{i}", pool.ask(A, 1)) for i in range(4)] + [("x", pool.ask(B, 2)), ("y", pool.ask(B, 2))]
    # Equal tags go to who came first: 0 (tag 0), x (0, 2 blocks), 1 (1), 2 (2) before y (2), 3 (3).
    assert await pool.order(asked, in_use) == "0x12y3"


async def test_weights_decide_how_much_of_each_turn_is_whose() -> None:
    pool = Pool(1, quotas={A: Quota(weight=3.0)})
    in_use = [await pool.take(C, 1)]
    asked = [("abcdef"[i], pool.ask(A, 1)) for i in range(6)] + [("xyz"[i], pool.ask(B, 1)) for i in range(3)]
    served = await pool.order(asked, in_use)
    assert [name in "abcdef" for name in served[:8]].count(True) == 6
    assert served.index("y") > served.index("d")


async def test_a_tenant_that_was_idle_is_overtaken_by_one_request_of_each_other_at_most() -> None:
    pool = Pool(2)
    in_use = [await pool.take(C, 1), await pool.take(C, 1)]
    asked = [("abcdefgh"[i], pool.ask(A, 1)) for i in range(8)]
    await pool.settle()
    for name, task in asked[:2]:
        pool.give(in_use.pop(0))
        await pool.settle()
        assert task.done(), name
        in_use.append(task.result())
    asked.append(("X", pool.ask(B, 2)))  # large, and late
    served = await pool.order(asked[2:], in_use)
    assert len(served) == 7
    assert served.index("X") <= 1


async def test_a_tenant_that_comes_later_is_not_paid_for_the_time_before() -> None:
    pool = Pool(1)
    in_use = [await pool.take(C, 1)]
    asked = [("abcdefgh"[i], pool.ask(A, 1)) for i in range(8)]
    await pool.settle()
    for _ in range(4):
        pool.give(in_use.pop(0))
        await pool.settle()
        in_use.append(asked.pop(0)[1].result())
    asked += [("wxyz"[i], pool.ask(B, 1)) for i in range(4)]
    assert await pool.order(asked, in_use) == "wexfygzh"  # B's turn was never before, and from now on they alternate


async def test_a_tenant_that_leaves_and_comes_back_is_not_forgiven_what_it_had() -> None:
    pool = Pool(6)
    in_use = [await pool.take(C, 6)]
    large = pool.ask(A, 5)
    asked = [("xyz"[i], pool.ask(B, 1)) for i in range(3)]
    await pool.settle()
    pool.give(in_use.pop(0))
    await pool.settle()
    in_use = [large.result(), asked.pop(0)[1].result()]
    asked.append(("A", pool.ask(A, 1)))  # its lane was empty for a moment
    assert await pool.order(asked, in_use) == "yzA"


async def test_within_its_guarantee_a_tenant_passes_one_that_waits_and_takes_nothing_from_it() -> None:
    pool = Pool(quotas={B: Quota(blocks_min=3)})
    first = await pool.take(A, 5)
    large = pool.ask(A, 6)
    await pool.settle()
    own = [await pool.take(B, 1) for _ in range(3)]
    over = pool.ask(B, 1)
    await pool.settle()
    assert not over.done()  # it would fit, but is not guaranteed, and the large one came first
    pool.give(first)
    await pool.settle()
    assert large.done()
    assert len(own) == 3


async def test_who_passes_within_its_guarantee_does_not_hurry_time_on_for_the_others() -> None:
    pool = Pool(quotas={B: Quota(blocks_min=3)})
    in_use = [await pool.take(C, 7)]
    asked = [("A", pool.ask(A, 6))]
    await pool.settle()
    for _ in range(3):
        await pool.take(B, 1)
    asked += [(name, pool.ask(TenantId("d"), 1)) for name in "xyz"]
    asked += [("b", pool.ask(B, 1))]
    assert await pool.order(asked, in_use) == "Axyzb"  # B has had three, and D none


async def test_who_waits_for_staging_only_is_not_overtaken_for_it() -> None:
    pool = Pool(quotas={B: Quota(blocks_min=5)})
    first = await pool.take(A, 1, staging_bytes=60)
    large = pool.ask(A, 1, staging_bytes=80)
    await pool.settle()
    small = pool.ask(B, 1, staging_bytes=10)
    await pool.settle()
    assert not small.done()
    pool.ledger.release_staging(first.epoch)
    await pool.settle()
    assert (large.done(), small.done()) == (True, True)


async def test_one_tenant_can_fill_neither_the_queue_nor_anothers_place_in_it() -> None:
    pool = Pool(1, waiting_max=4, waiting_per_tenant_max=3)
    await pool.take(C, 1)
    flood = [pool.ask(A, 1) for _ in range(4)]
    await pool.settle()
    with pytest.raises(QuotaExceeded, match="3 requests of tenant 'a' wait"):
        await flood[3]
    polite = [pool.ask(B, 1), pool.ask(B, 1)]
    await pool.settle()
    assert not any(task.done() for task in polite)  # the second had a place because the last of the flood lost its own
    with pytest.raises(CapacityExceeded, match="4 requests wait") as caught:
        await flood[2]
    assert caught.value.retry_after is not None
    assert pool.capacity.waiting == 4


def retain(pool: Pool, blocks: int) -> list[Assignment]:
    """Blocks that outlive their hand-off, as a prefix cache keeps them."""
    kept: list[Assignment] = []
    pool.ledger.when_retained(lambda _, assignments: kept.extend(assignments))
    assigned = pool.ledger.try_reserve(HandoffId("f" * 32), tenant=C, blocks=blocks, staging_bytes=0)
    assert assigned is not None
    pool.ledger.fill(assigned.blocks, assigned.epoch)
    pool.ledger.hold(assigned.blocks, assigned.epoch, Count.RETENTION)
    pool.ledger.settle(assigned.blocks, assigned.epoch, in_use=False)
    pool.ledger.free(assigned.blocks, assigned.epoch, Evidence.OWN_WORK_ENDED)
    return kept


async def test_retained_cache_gives_way_before_anybody_waits_and_only_as_much_as_is_missing() -> None:
    asked: list[int] = []

    def reclaim(blocks: int) -> int:
        asked.append(blocks)
        for _ in range(min(blocks, len(kept))):
            gone = kept.pop()
            pool.ledger.unhold(gone.blocks, gone.epoch, Count.RETENTION)
            pool.ledger.free(gone.blocks, gone.epoch, Evidence.OWN_WORK_ENDED)
        return blocks

    pool = Pool(reclaim=reclaim)
    kept = retain(pool, 8)
    await pool.take(A, 2)
    assert asked == []  # it fits beside the cache
    await pool.take(A, 3)
    assert (asked, len(kept)) == ([3], 5)
    pool.ledger.check_in_full()


async def test_a_waiter_is_admitted_when_cache_becomes_reclaimable_without_a_release() -> None:
    in_use = True

    def reclaim(blocks: int) -> int:
        if in_use:
            return 0
        for gone in kept:
            pool.ledger.unhold(gone.blocks, gone.epoch, Count.RETENTION)
            pool.ledger.free(gone.blocks, gone.epoch, Evidence.OWN_WORK_ENDED)
        return len(kept)

    pool = Pool(reclaim=reclaim)
    kept = retain(pool, 8)
    waiting = pool.ask(A, 5)
    await pool.settle()
    assert not waiting.done()
    in_use = False
    pool.capacity.look_again()
    await pool.settle()
    assert waiting.done()


async def test_too_much_in_quarantine_refuses_all_new_and_those_that_wait_until_proof_comes() -> None:
    pool = Pool(quarantine_blocks_max=4)
    doubtful, more = await pool.take(A, 4), await pool.take(A, 1)
    pool.ledger.quarantine(doubtful.blocks, doubtful.epoch)
    waiting = pool.ask(B, 6)
    await pool.settle()
    assert pool.capacity.unhealthy is None
    assert not waiting.done()  # quarantine shrinks what there is
    pool.ledger.quarantine(more.blocks, more.epoch)
    assert "5 of 10 blocks" in (pool.capacity.unhealthy or "")
    pool.capacity.look_again()
    for refused in (waiting, pool.ask(B, 1)):
        with pytest.raises(CapacityExceeded, match="quarantine: 5 of 10 blocks") as caught:
            async with asyncio.timeout(5):
                await refused
        assert (caught.value.field, caught.value.retry_after) == ("quarantine", RETRY_AFTER_MAX)
    pool.ledger.free(more.blocks, more.epoch, Evidence.PROCESS_EXITED)
    assert pool.capacity.unhealthy is None
    await pool.take(B, 6)


async def test_blocks_in_quarantine_count_against_whose_they_were() -> None:
    pool = Pool(quotas={A: Quota(blocks_max=5), B: Quota(blocks_min=5)})
    doubtful = await pool.take(A, 5)
    pool.ledger.quarantine(doubtful.blocks, doubtful.epoch)
    await pool.take(B, 5)
    pool.ledger.check_in_full()


async def test_when_to_ask_again_follows_from_how_fast_blocks_come_free() -> None:
    pool = Pool(100)
    await pool.take(A, 50)
    for _ in range(60):  # 4 blocks a second, for a minute
        held = await pool.take(A, 4)
        pool.clock.advance(SECOND)
        pool.give(held)
    held = await pool.take(A, 50)
    refused = pool.ask(A, 80)
    await pool.settle()
    pool.clock.advance(SECOND)
    with pytest.raises(CapacityExceeded) as caught:
        await refused
    assert caught.value.retry_after is not None
    assert 16 <= caught.value.retry_after.seconds <= 25  # 80 blocks at about 4 a second
    pool.give(held)


async def test_a_producers_want_waits_neither_behind_nor_for_a_consumers() -> None:
    pool = Pool(producer_blocks=2)
    await pool.take(A, 8)
    waiting = pool.ask(A, 2)
    await pool.settle()
    assert not waiting.done()  # two are free, and not for it
    first, second, third = (pool.ask(A, 1, side=Side.PRODUCER) for _ in range(3))
    await pool.settle()
    assert [first.done(), second.done(), third.done()] == [True, True, False]
    pool.give(first.result())
    await pool.settle()
    assert (third.done(), waiting.done()) == (True, False)


@pytest.mark.parametrize(
    ("quotas", "others", "says"),
    [
        ({A: Quota(blocks_min=6), B: Quota(blocks_min=5)}, None, "add up to 11 blocks, wanted at most num_blocks = 10"),
        ({A: Quota(blocks_min=3, blocks_max=2)}, None, "quotas.a: min 3, max 2 blocks"),
        ({A: Quota(blocks_max=11)}, None, "max 11 blocks"),
        ({A: Quota(blocks_max=0)}, None, "max at least 1"),
        ({A: Quota(weight=0.0)}, None, "quotas.a.weight: got 0.0"),
        ({A: Quota(weight=float("nan"))}, None, "quotas.a.weight: got nan"),
        ({A: Quota(blocks_min=10)}, None, "quotas.*: the minimums of others leave it no block"),
        ({}, Quota(blocks_min=1), "quotas.*.min: got 1, wanted 0"),
    ],
)
def test_quotas_that_contradict_themselves_are_refused(
    quotas: dict[TenantId, Quota], others: Quota | None, says: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Quotas(num_blocks=10, tenants=quotas, others=others)
    assert says in str(caught.value)
