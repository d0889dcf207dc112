"""The ledger's sums hold, and it refuses what would break them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, HandoffId, TenantId
from isthmus.ownership.accounts import Assignment, BlockState, Count
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence

H = HandoffId("a" * 32)
T = TenantId("tenant-0")


def ledger(num_blocks: int = 4, staging_bytes: int = 100) -> Ledger:
    return Ledger(num_blocks=num_blocks, block_bytes=16, staging_bytes=staging_bytes)


def reserved(book: Ledger, blocks: int = 2, staging_bytes: int = 0) -> Assignment:
    assignment = book.try_reserve(H, tenant=T, blocks=blocks, staging_bytes=staging_bytes)
    assert assignment is not None
    return assignment


def test_a_block_goes_through_its_states_and_back_to_free() -> None:
    book = ledger()
    given_ = reserved(book)
    blocks, epoch = given_.blocks, given_.epoch
    assert (book.held().reserved, book.available().blocks) == (2, 2)
    assert all(book.owner(block) == H and book.assigned_to(block, epoch) for block in blocks)
    book.fill(blocks, epoch)
    assert (book.held().filling, book.held().active) == (2, 2)
    book.settle(blocks, epoch, in_use=False)
    assert (book.held().resident, book.held().active) == (2, 0)
    book.hold(blocks, epoch, Count.GRANTS)
    book.unhold(blocks, epoch, Count.GRANTS)
    book.quarantine(blocks, epoch)
    book.free(blocks, epoch, Evidence.PROCESS_EXITED)
    book.check_in_full()
    held = book.held()
    assert (held.blocks, held.quarantined_max, book.available().blocks) == (0, 2, 4)
    assert all(book.owner(block) is None and book.state(block) is BlockState.FREE for block in blocks)


def test_I10_a_reservation_takes_blocks_and_staging_at_once_or_nothing() -> None:
    book = ledger(num_blocks=4, staging_bytes=100)
    assert book.try_reserve(H, tenant=T, blocks=2, staging_bytes=101) is None
    assert book.try_reserve(H, tenant=T, blocks=5, staging_bytes=10) is None
    assert (book.available().blocks, book.available().staging_bytes) == (4, 100)
    reserved(book, blocks=3, staging_bytes=60)
    assert book.try_reserve(H, tenant=T, blocks=1, staging_bytes=41) is None
    assert book.try_reserve(H, tenant=T, blocks=2, staging_bytes=0) is None
    assert (book.available().blocks, book.available().staging_bytes) == (1, 40)


@pytest.mark.parametrize("count", [Count.GRANTS, Count.ACTIVE])
def test_a_block_with_any_count_is_not_freed(count: Count) -> None:
    book = ledger()
    given_ = reserved(book)
    book.hold(given_.blocks[:1], given_.epoch, count)
    with pytest.raises(Bug, match="freed with"):
        book.free(given_.blocks, given_.epoch, Evidence.OWN_WORK_ENDED)


@pytest.mark.parametrize("evidence", [Evidence.SILENCE, Evidence.LEASE_EXPIRED_MANY_TENANTS])
def test_a_block_is_not_freed_on_what_is_no_evidence(evidence: Evidence) -> None:
    book = ledger()
    given_ = reserved(book)
    with pytest.raises(Bug, match="frees no block"):
        book.free(given_.blocks, given_.epoch, evidence)


def test_I2_an_act_under_an_old_epoch_does_not_reach_the_block_s_next_owner() -> None:
    book = ledger(num_blocks=2)
    old = reserved(book)
    book.free(old.blocks, old.epoch, Evidence.NEVER_EXPOSED)
    new = reserved(book)
    assert set(new.blocks) == set(old.blocks)
    assert new.epoch > old.epoch
    assert not book.assigned_to(old.blocks[0], old.epoch)
    for act in (
        lambda: book.fill(old.blocks, old.epoch),
        lambda: book.free(old.blocks, old.epoch, Evidence.OWN_WORK_ENDED),
        lambda: book.quarantine(old.blocks, old.epoch),
        lambda: book.hold(old.blocks, old.epoch, Count.GRANTS),
    ):
        with pytest.raises(Bug, match="under epoch"):
            act()
    assert book.held().reserved == 2


def test_I4_a_count_that_ends_twice_is_a_bug() -> None:
    book = ledger()
    given_ = reserved(book)
    book.hold(given_.blocks, given_.epoch, Count.GRANTS)
    book.unhold(given_.blocks, given_.epoch, Count.GRANTS)
    with pytest.raises(Bug, match="ended twice"):
        book.unhold(given_.blocks, given_.epoch, Count.GRANTS)


def test_freeing_twice_is_a_bug() -> None:
    book = ledger()
    given_ = reserved(book)
    book.free(given_.blocks, given_.epoch, Evidence.NEVER_EXPOSED)
    with pytest.raises(Bug, match="under epoch"):
        book.free(given_.blocks, given_.epoch, Evidence.NEVER_EXPOSED)


def test_releasing_staging_twice_is_a_bug() -> None:
    book = ledger()
    given_ = reserved(book, staging_bytes=10)
    book.release_staging(given_.epoch)
    with pytest.raises(Bug, match="released twice"):
        book.release_staging(given_.epoch)


def test_I3_a_lost_block_is_noticed_at_the_next_mutation(monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger()
    given_ = reserved(book)
    monkeypatch.setattr(book, "_free", book._free[:-1])  # a block slips out of the free list
    with pytest.raises(Bug, match="sum"):
        book.fill(given_.blocks, given_.epoch)


def test_a_recount_notices_what_counters_do_not() -> None:
    book = ledger()
    given_ = reserved(book)
    book._accounts[given_.epoch].state = BlockState.RESIDENT
    with pytest.raises(Bug, match="recount"):
        book.check_in_full()


def test_a_peer_s_block_id_out_of_range_is_not_assigned() -> None:
    book = ledger()
    given_ = reserved(book, blocks=4)
    assert not book.assigned_to(BlockId(-1), given_.epoch)
    assert not book.assigned_to(BlockId(4), given_.epoch)


def test_room_is_announced_when_blocks_or_staging_come_free() -> None:
    book = ledger()
    calls: list[int] = []
    book.when_room(lambda: calls.append(book.available().blocks))
    given_ = reserved(book, staging_bytes=10)
    book.release_staging(given_.epoch)
    book.free(given_.blocks, given_.epoch, Evidence.NEVER_EXPOSED)
    assert calls == [2, 4]


@given(st.lists(st.integers(1, 5), max_size=30), st.randoms(use_true_random=False))
def test_I3_the_sum_is_constant_whatever_is_taken_and_given_back(sizes: list[int], chance: object) -> None:
    book = ledger(num_blocks=12)
    live: list[Assignment] = []
    epochs: list[Epoch] = []
    for size in sizes:
        assignment = book.try_reserve(H, tenant=T, blocks=size, staging_bytes=0)
        if assignment is None:
            chance.shuffle(live)  # type: ignore[attr-defined]
            gone = live.pop()
            book.free(gone.blocks, gone.epoch, Evidence.NEVER_EXPOSED)
        else:
            live.append(assignment)
            epochs.append(assignment.epoch)
        assert book.held().blocks + book.available().blocks == 12
        book.check_in_full()
    assert epochs == sorted(set(epochs))


def test_what_is_retained_outlives_its_hand_off_under_an_epoch_of_its_own() -> None:
    book = ledger()
    kept: list[tuple[HandoffId, tuple[Assignment, ...]]] = []
    book.when_retained(lambda owner, assignments: kept.append((owner, assignments)))
    given_ = reserved(book, blocks=3)
    book.fill(given_.blocks, given_.epoch)
    book.settle(given_.blocks, given_.epoch, in_use=False)
    book.hold(given_.blocks[:2], given_.epoch, Count.RETENTION)
    book.free(given_.blocks, given_.epoch, Evidence.ACKNOWLEDGED)
    ((owner, assignments),) = kept
    assert owner == H
    assert [each.blocks for each in assignments] == [given_.blocks[:1], given_.blocks[1:2]]
    assert (book.held().resident, book.held().retention, book.held_by(T), book.available().blocks) == (2, 2, 0, 2)
    assert not any(book.assigned_to(block, given_.epoch) for block in given_.blocks)  # I2: old grants end
    book.check_in_full()
    for each in assignments:
        with pytest.raises(Bug, match="freed with"):
            book.free(each.blocks, each.epoch, Evidence.OWN_WORK_ENDED)
        book.unhold(each.blocks, each.epoch, Count.RETENTION)
        book.free(each.blocks, each.epoch, Evidence.OWN_WORK_ENDED)
    assert book.available().blocks == 4
    book.check_in_full()


def test_a_block_that_is_still_being_filled_cannot_be_retained() -> None:
    book = ledger()
    given_ = reserved(book)
    book.hold(given_.blocks, given_.epoch, Count.RETENTION)
    with pytest.raises(Bug, match="retained while"):
        book.free(given_.blocks, given_.epoch, Evidence.OWN_WORK_ENDED)


def test_only_a_whole_assignment_changes_its_state() -> None:
    book = ledger()
    given_ = reserved(book)
    with pytest.raises(Bug, match="wanted all"):
        book.fill(given_.blocks[:1], given_.epoch)


def test_a_tenant_s_share_is_what_its_hand_offs_hold() -> None:
    book = ledger()
    given_ = reserved(book, blocks=3)
    assert (book.held_by(T), book.held_by(TenantId("other"))) == (3, 0)
    book.free(given_.blocks, given_.epoch, Evidence.NEVER_EXPOSED)
    assert book.held_by(T) == 0
