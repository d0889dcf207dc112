"""What is retained is what was filled, is not given up under who uses it, and gives way to who needs room."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from isthmus.core.clock import ManualClock
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Digest, HandoffId, TenantId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment, BlockState
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import PrefixCache, PrefixGone
from isthmus.ownership.prefix_hash import block_hashes, tenant_salt
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.retention import RETENTIONS, retention_named
from isthmus.state.tokens import pack_tokens

SECRET = b"a secret of the deployment"
TENANT, OTHER = TenantId("tenant-0"), TenantId("tenant-1")
BLOCK_SIZE = 2


def names_of(tokens: list[int], tenant: TenantId = TENANT) -> tuple[bytes, ...]:
    return block_hashes(pack_tokens(tokens), BLOCK_SIZE, salt=tenant_salt(SECRET, tenant))


class Worker:
    """A ledger, a cache in it, and hand-offs that live through their stages one call at a time."""

    def __init__(self, *, num_blocks: int = 12, retention: str = "lru", blocks_max: int = 1 << 20) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(num_blocks=num_blocks, block_bytes=16, staging_bytes=0)
        self.cache = PrefixCache(
            ledger=self.ledger, clock=self.clock, retention=retention_named(retention), blocks_max=blocks_max
        )
        self.content: dict[BlockId, bytes] = {}
        self.names: dict[HandoffId, tuple[bytes, ...]] = {}
        self.own: dict[HandoffId, Assignment] = {}

    def begin(self, tokens: list[int], *, tenant: TenantId = TENANT, more: int = 1) -> HandoffId | None:
        """Reserve blocks for `tokens` and `more` behind them, but for what is here; None where there is no room."""
        handoff, names = HandoffId(self.clock.token()), names_of(tokens, tenant)
        matched = names[: self.cache.match(names)]
        fresh = len(names) - len(matched) + more
        missing = fresh - self.ledger.available().blocks
        if missing > 0:
            self.cache.reclaim(missing)
        own = self.ledger.try_reserve(handoff, tenant=tenant, blocks=fresh, staging_bytes=0)
        if own is None:
            return None
        try:
            self.cache.pin(handoff, matched)
        except PrefixGone:
            self.ledger.free(own.blocks, own.epoch, Evidence.NEVER_EXPOSED)
            return None
        self.names[handoff], self.own[handoff] = names, own
        self.ledger.fill(own.blocks, own.epoch)
        for name, block in zip(names[len(matched) :], own.blocks, strict=False):
            self.content[block] = name
        for block in own.blocks[len(names) - len(matched) :]:
            self.content[block] = b"not a whole block of a prompt"
        return handoff

    def settle(self, handoff: HandoffId) -> None:
        own, first = self.own[handoff], len(self.cache.pinned(handoff).blocks)
        self.ledger.settle(own.blocks, own.epoch, in_use=False)
        digests = [(Digest(place), Digest(-place % 97)) for place in range(first, len(self.names[handoff]))]
        self.cache.offer(handoff, self.names[handoff], own.blocks, digests=digests, recompute_ms=3.0)

    def end(self, handoff: HandoffId, evidence: Evidence = Evidence.OWN_WORK_ENDED) -> None:
        own = self.own.pop(handoff)
        if self.ledger.state(own.blocks[0]) is BlockState.FILLING:
            self.ledger.settle(own.blocks, own.epoch, in_use=True)
            self.ledger.unhold(own.blocks, own.epoch, 1)
        self.cache.ending(handoff, own.blocks, own.epoch)
        self.ledger.free(own.blocks, own.epoch, evidence)

    def run(self, tokens: list[int], **more) -> None:
        """A whole hand-off."""
        handoff = self.begin(tokens, **more)
        assert handoff is not None
        self.settle(handoff)
        self.end(handoff)
        self.clock.advance(Duration.of_seconds(1))

    def matched(self, tokens: list[int], tenant: TenantId = TENANT) -> int:
        return self.cache.match(names_of(tokens, tenant))


def test_a_prompt_s_whole_blocks_outlive_its_hand_off_and_the_rest_does_not() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4, 5])
    assert len(worker.cache) == 2
    assert worker.ledger.held().blocks == worker.ledger.held().retention == 2
    assert worker.matched([1, 2, 3, 4, 5, 6, 7]) == 2
    assert worker.matched([1, 2, 9, 9]) == 1
    assert worker.matched([9, 9, 3, 4]) == 0


def test_I7_another_tenant_finds_nothing() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4])
    assert worker.matched([1, 2, 3, 4], OTHER) == 0


def test_what_was_never_completed_is_not_retained() -> None:
    worker = Worker()
    handoff = worker.begin([1, 2, 3, 4])
    worker.end(handoff)
    assert (len(worker.cache), worker.ledger.held().blocks) == (0, 0)


def test_what_comes_out_of_quarantine_is_not_retained() -> None:
    worker = Worker()
    handoff = worker.begin([1, 2, 3, 4])
    worker.settle(handoff)
    own = worker.own[handoff]
    worker.ledger.quarantine(own.blocks, own.epoch)
    worker.end(handoff, Evidence.PROCESS_EXITED)
    assert (len(worker.cache), worker.ledger.held().blocks) == (0, 0)


def test_a_hand_off_that_uses_a_prefix_fills_only_what_follows() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4])
    handoff = worker.begin([1, 2, 3, 4, 5, 6])
    pinned = worker.cache.pinned(handoff)
    assert [worker.content[block] for block in pinned.blocks] == list(names_of([1, 2, 3, 4]))
    assert pinned.digests == (Digest(0), Digest(0), Digest(1), Digest(96))
    assert len(worker.own[handoff].blocks) == 2
    assert all(worker.cache.lends(handoff, block) for block in pinned.blocks)
    assert not worker.cache.lends(HandoffId("f" * 32), pinned.blocks[0])
    worker.settle(handoff)
    worker.end(handoff)
    assert len(worker.cache) == 3
    assert not worker.cache.lends(handoff, pinned.blocks[0])


def test_a_prefix_that_is_in_use_is_not_given_up() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4])
    worker.run([7, 8])
    handoff = worker.begin([1, 2, 3, 4, 5, 6])
    assert worker.cache.pinned_blocks == 2
    assert worker.cache.reclaim(2) == 0  # one would be all there is
    assert worker.cache.reclaim(1) == 1
    assert worker.cache.drop() == 0
    assert worker.matched([1, 2, 3, 4]) == 2
    worker.end(handoff)
    assert worker.cache.drop() == 2
    assert worker.ledger.held().blocks == 0


def test_two_hand_offs_share_a_prefix_and_the_first_to_end_leaves_it_to_the_other() -> None:
    worker = Worker()
    worker.run([1, 2])
    first, second = worker.begin([1, 2, 3, 4]), worker.begin([1, 2, 5, 6])
    assert worker.cache.pinned(first).blocks == worker.cache.pinned(second).blocks
    worker.end(first)
    assert (worker.cache.pinned_blocks, worker.cache.drop()) == (1, 0)
    worker.settle(second)
    worker.end(second)
    assert worker.matched([1, 2, 5, 6]) == 2


def test_of_two_hand_offs_that_fill_the_same_at_once_one_is_kept() -> None:
    worker = Worker()
    first, second = worker.begin([1, 2, 3, 4]), worker.begin([1, 2, 3, 4, 5, 6])
    for handoff in (first, second):
        worker.settle(handoff)
        worker.end(handoff)
    assert (len(worker.cache), worker.ledger.held().blocks) == (3, 3)
    assert worker.matched([1, 2, 3, 4, 5, 6]) == 3


def test_the_end_of_a_prefix_is_given_up_before_its_beginning() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4, 5, 6])
    for left in (2, 1, 0):
        assert worker.cache.reclaim(1) == 1
        assert worker.matched([1, 2, 3, 4, 5, 6]) == left


def test_lru_gives_up_the_prefix_that_was_not_used_for_longest() -> None:
    worker = Worker()
    worker.run([1, 2])
    worker.run([3, 4])
    worker.run([1, 2, 9])
    worker.cache.reclaim(1)
    assert (worker.matched([1, 2]), worker.matched([3, 4])) == (1, 0)


def test_a_cache_with_a_bound_stays_within_it() -> None:
    worker = Worker(blocks_max=2)
    worker.run([1, 2, 3, 4])
    worker.run([5, 6])
    assert len(worker.cache) == 2
    assert worker.cache.counts.evicted_bound == 1
    assert (worker.matched([1, 2, 3, 4]), worker.matched([5, 6])) == (1, 1)
    worker.run([7, 8, 9, 10, 11, 12])
    assert (len(worker.cache), worker.matched([7, 8, 9, 10, 11, 12])) == (2, 2)


async def test_retained_blocks_give_way_before_anybody_waits() -> None:
    worker = Worker(num_blocks=4)
    capacity = Capacity(ledger=worker.ledger, clock=worker.clock, reclaim=worker.cache.reclaim)
    worker.run([1, 2, 3, 4, 5, 6])
    assert worker.ledger.available().blocks == 1
    far = Duration.of_seconds(60)
    given = await capacity.acquire(HandoffId("e" * 32), tenant=TENANT, blocks=3, staging_bytes=0, deadline=far)
    assert (len(given.blocks), worker.matched([1, 2, 3, 4, 5, 6])) == (3, 1)
    assert worker.cache.counts.evicted_room == 2
    worker.ledger.check_in_full()


def test_a_hand_off_that_pins_twice_is_our_own_mistake() -> None:
    worker = Worker()
    worker.run([1, 2])
    handoff = worker.begin([1, 2, 3, 4])
    with pytest.raises(Bug, match="second"):
        worker.cache.pin(handoff, names_of([1, 2]))


def test_a_prefix_that_went_between_match_and_pin_pins_nothing() -> None:
    worker = Worker()
    worker.run([1, 2, 3, 4])
    worker.cache.reclaim(1)
    with pytest.raises(PrefixGone):
        worker.cache.pin(HandoffId("e" * 32), names_of([1, 2, 3, 4]))
    assert worker.cache.pinned_blocks == 0
    assert worker.cache.drop() == 1


@pytest.mark.parametrize("retention", sorted(RETENTIONS))
def test_a_thousand_blocks_are_given_up_in_one_go(retention: str) -> None:
    worker = Worker(num_blocks=1200, retention=retention)
    for number in range(10):
        worker.run([number, number, *range(2, 198)])
    assert len(worker.cache) == 990
    assert worker.cache.reclaim(900) == 900
    worker.ledger.check_in_full()
    assert worker.cache.drop() == 90
    assert worker.ledger.held().blocks == 0


class Cache(RuleBasedStateMachine):
    """Any order of beginnings, ends, accidents and shortages, against a ledger that checks its own sums."""

    filling = Bundle("filling")
    settled = Bundle("settled")
    quarantined = Bundle("quarantined")

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(num_blocks=10, blocks_max=7)

    @rule(target=filling, tokens=st.lists(st.integers(0, 1), max_size=9), tenant=st.sampled_from([TENANT, OTHER]))
    def begin(self, tokens, tenant):
        handoff = self.worker.begin(tokens, tenant=tenant)
        return multiple() if handoff is None else handoff

    @rule(target=settled, handoff=consumes(filling))
    def complete(self, handoff):
        self.worker.settle(handoff)
        return handoff

    @rule(handoff=consumes(filling))
    def fail(self, handoff):
        self.worker.end(handoff)

    @rule(handoff=consumes(settled))
    def end(self, handoff):
        self.worker.end(handoff)

    @rule(target=quarantined, handoff=consumes(settled))
    def doubt(self, handoff):
        own = self.worker.own[handoff]
        self.worker.ledger.quarantine(own.blocks, own.epoch)
        return handoff

    @rule(handoff=consumes(quarantined))
    def prove(self, handoff):
        self.worker.end(handoff, Evidence.PROCESS_EXITED)

    @rule(blocks=st.integers(1, 10))
    def shortage(self, blocks):
        cache, ledger = self.worker.cache, self.worker.ledger
        free, could = ledger.available().blocks, len(cache) - cache.pinned_blocks
        assert cache.reclaim(blocks) == (blocks if blocks <= could else 0)
        assert ledger.available().blocks == free + (blocks if blocks <= could else 0)

    @rule()
    def drop(self):
        could = len(self.worker.cache) - self.worker.cache.pinned_blocks
        assert self.worker.cache.drop() == could

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds):
        self.worker.clock.advance(Duration.of_seconds(seconds))

    @invariant()
    def the_ledger_s_sums_hold(self):
        ledger, cache = self.worker.ledger, self.worker.cache
        ledger.check_in_full()
        assert ledger.held().retention == len(cache) <= 7

    @invariant()
    def what_is_retained_is_resident_is_what_its_name_says_and_follows_what_is_retained(self):
        ledger, kept = self.worker.ledger, self.worker.cache._kept
        assert len({each.block for each in kept.values()}) == len(kept)
        for name, each in kept.items():
            assert ledger.assigned_to(each.block, each.epoch)
            assert ledger.state(each.block) is BlockState.RESIDENT
            assert self.worker.content[each.block] == name
            assert each.parent is None or each.parent in kept
            assert each.children == sum(other.parent == name for other in kept.values())

    @invariant()
    def what_a_hand_off_uses_is_there_and_is_nobody_s_own(self):
        worker = self.worker
        owned = [block for own in worker.own.values() for block in own.blocks]
        pinned = set()
        for handoff in worker.own:
            found = worker.cache.pinned(handoff)
            assert [worker.content[block] for block in found.blocks] == list(found.names)
            pinned |= set(found.blocks)
        assert worker.cache.pinned_blocks == len(pinned)
        assert not pinned & set(owned)
        assert len(set(owned)) == len(owned)

    def teardown(self):
        for handoff in list(self.worker.own):
            self.worker.end(handoff, Evidence.PROCESS_EXITED)
        self.worker.cache.drop()
        assert self.worker.ledger.held().blocks == 0
        self.worker.ledger.check_in_full()


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
