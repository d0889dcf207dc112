"""Turns between tenants, without any room to take: what each has had is all that decides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import Bug
from isthmus.core.ids import HandoffId, TenantId
from isthmus.ownership.fair_queue import FairQueue, Want
from isthmus.ownership.side import Side

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")


def want(tenant: TenantId, blocks: int = 1) -> Want:
    return Want(handoff=HandoffId("0" * 32), tenant=tenant, side=Side.CONSUMER, blocks=blocks, staging_bytes=0)


def fill(queue: FairQueue, tenant: TenantId, *blocks: int, weight: float = 1.0) -> None:
    for each in blocks:
        queue.add(want(tenant, each), weight=weight)


def serve(queue: FairQueue, count: int) -> str:
    served = ""
    for _ in range(count):
        head = queue.heads()[0]
        queue.admitted(head, in_turn=True)
        served += head.tenant.upper()
    return served


def test_who_passes_out_of_turn_pays_and_does_not_move_the_time_of_those_who_wait() -> None:
    queue = FairQueue()
    fill(queue, A, 6, 1)
    fill(queue, B, 1, 1, 1, 1, 1, 1, 1, 1)
    for _ in range(3):
        queue.admitted(queue.heads()[1], in_turn=False)
    assert queue.heads()[0].tenant == A
    # A's turn still costs it from 0 to 6; B has had 3 and goes on from there until it has had more than 6.
    assert serve(queue, 6) == "ABBBAB"


def test_a_tenant_that_was_passed_over_for_its_own_quota_has_earned_nothing_by_it() -> None:
    queue = FairQueue()
    fill(queue, A, 1, 1, 1)
    fill(queue, B, *([1] * 8))
    for _ in range(4):  # A is at its maximum
        queue.admitted(queue.heads()[-1] if queue.heads()[0].tenant == A else queue.heads()[0], in_turn=True)
    assert serve(queue, 5) == "AABAB"  # a tie is whose lane began first


def test_only_the_first_of_a_tenant_can_be_admitted() -> None:
    queue = FairQueue()
    fill(queue, A, 1)
    later = want(A)
    queue.add(later, weight=1.0)
    with pytest.raises(Bug):
        queue.admitted(later, in_turn=True)


def test_who_leaves_pays_nothing_and_those_behind_it_keep_their_turn() -> None:
    queue = FairQueue()
    head = want(A, 100)
    queue.add(head, weight=1.0)
    fill(queue, A, 1)
    fill(queue, B, 1)
    queue.leave(head)
    assert (serve(queue, 2), len(queue)) == ("AB", 0)


SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=30)


@settings(max_examples=200)
@given(first=SIZES, second=SIZES, weight=st.sampled_from([0.5, 1.0, 3.0]))
def test_two_tenants_that_wait_differ_by_one_largest_request_of_each_at_most(
    first: list[int], second: list[int], weight: float
) -> None:
    queue = FairQueue()
    fill(queue, A, *first)
    fill(queue, B, *second, weight=weight)
    bound = max(first) + max(second) / weight
    had = {A: 0.0, B: 0.0}
    while queue.of_tenant(A) and queue.of_tenant(B):
        head = queue.heads()[0]
        queue.admitted(head, in_turn=True)
        had[head.tenant] += head.blocks / (weight if head.tenant == B else 1.0)
        assert abs(had[A] - had[B]) <= bound + 1e-9


@settings(max_examples=200)
@given(others=st.lists(SIZES, min_size=1, max_size=5), served=st.integers(0, 20), size=st.integers(1, 1000))
def test_whoever_comes_from_idleness_is_overtaken_by_one_request_of_each_other_at_most(
    others: list[list[int]], served: int, size: int
) -> None:
    queue = FairQueue()
    for number, sizes in enumerate(others):
        fill(queue, TenantId(f"other-{number}"), *sizes)
    for _ in range(min(served, len(queue) - 1)):
        queue.admitted(queue.heads()[0], in_turn=True)
    fill(queue, A, size)
    overtaken: list[str] = []
    while (head := queue.heads()[0]).tenant != A:
        queue.admitted(head, in_turn=True)
        overtaken.append(head.tenant)
    assert len(overtaken) == len(set(overtaken))
