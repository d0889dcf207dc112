"""No two workers wait for each other's space: every reachable state of a few requests can go on to the end.

The real ledger and the real admission decide; the search only chooses who moves. No deadline ever fires in it: a state
in which nobody can move is a deadlock, even though in life a deadline would end it. Each move takes its request
forward, so runs are finite, and "no state is stuck" is "every reachable state can reach the end".

The mutants show that the search would find what it looks for.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.ids import HandoffId, TenantId
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.admission import Admission
from isthmus.ownership.fair_queue import Want
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.quotas import Quota, Quotas
from isthmus.ownership.side import Side

A, B = TenantId("a"), TenantId("b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One reservation of a hand-off, in one worker."""

    worker: str
    side: Side
    blocks: int
    staging_bytes: int = 0


Plan = tuple[Need, ...]
"""What a hand-off reserves, in order; it holds what it has while it waits for the next."""


def consumer(worker: str, blocks: int) -> Need:
    return Need(worker=worker, side=Side.CONSUMER, blocks=blocks, staging_bytes=10)


def producer(worker: str, blocks: int) -> Need:
    return Need(worker=worker, side=Side.PRODUCER, blocks=blocks)


@dataclass(slots=True, kw_only=True)
class Request:
    """Where one stands: it has asked for `asked` of its needs, and has `held`."""

    plan: Plan
    tenant: TenantId = A
    asked: int = 0
    held: dict[int, Assignment] = field(default_factory=dict)
    committed: bool = False
    done: bool = False

    @property
    def waits(self) -> bool:
        return self.asked > len(self.held) and not self.committed


class State:
    """Workers and requests. `move` is one step of one request."""

    def __init__(self, workers: dict[str, Admission], requests: Iterable[Request]) -> None:
        self.workers = workers
        self.requests = list(requests)
        self.waiting: dict[str, dict[Want, tuple[int, int]]] = {name: {} for name in workers}

    def movable(self) -> list[int]:
        return [i for i, request in enumerate(self.requests) if not request.done and not request.waits]

    def move(self, i: int) -> "State":
        """The state after request `i` has asked for its next need, committed, or ended."""
        after = copy.deepcopy(self)
        request = after.requests[i]
        if request.asked < len(request.plan):
            after._ask(i, request)
        elif not request.committed:
            request.committed = True
            after._free(request, Side.PRODUCER)
        else:
            request.done = True
            after._free(request, Side.CONSUMER)
        return after

    def _ask(self, i: int, request: Request) -> None:
        need = request.plan[request.asked]
        want = Want(
            handoff=HandoffId(f"{i}.{request.asked}"),
            tenant=request.tenant,
            side=need.side,
            blocks=need.blocks,
            staging_bytes=need.staging_bytes,
        )
        admission = self.workers[need.worker]
        assert need.blocks <= admission.blocks_max(need.side, request.tenant), "a request that can never fit"
        if (assignment := admission.at_once(want)) is not None:
            request.held[request.asked] = assignment
        else:
            admission.add(want)
            self.waiting[need.worker][want] = (i, request.asked)
        request.asked += 1
        self._admit(need.worker)

    def _free(self, request: Request, side: Side) -> None:
        for number, need in enumerate(request.plan):
            if need.side is not side:
                continue
            ledger, assignment = ledger_of(self.workers[need.worker]), request.held[number]
            if need.staging_bytes:
                ledger.release_staging(assignment.epoch)
            ledger.free(assignment.blocks, assignment.epoch, Evidence.OWN_WORK_ENDED)
            self._admit(need.worker)

    def _admit(self, worker: str) -> None:
        for want, assignment in self.workers[worker].admit():
            i, number = self.waiting[worker].pop(want)
            self.requests[i].held[number] = assignment

    def key(self) -> object:
        """Two states with equal keys go on alike: block ids and epochs decide nothing."""
        progress = tuple((r.asked, len(r.held), r.committed, r.done) for r in self.requests)
        queues = tuple(lanes_of(admission, side) for admission in self.workers.values() for side in Side)
        return progress, queues


def ledger_of(admission: Admission) -> Ledger:
    return admission._ledger


def lanes_of(admission: Admission, side: Side) -> object:
    """All that a fair queue's next decisions depend on."""
    queue = admission.queue(side)
    lanes = sorted(queue._lanes.items(), key=lambda item: (item[1].start, item[1].since))
    waiting = tuple((name, lane.start - queue._virtual, tuple(w.handoff for w in lane.wants)) for name, lane in lanes)
    return waiting, tuple(sorted((name, start - queue._virtual) for name, start in queue._ended.items()))


def worker(
    num_blocks: int, *, staging_bytes: int = 40, producer_blocks: int = 0, quotas: dict[TenantId, Quota] | None = None
) -> Admission:
    return Admission(
        ledger=Ledger(num_blocks=num_blocks, block_bytes=1, staging_bytes=staging_bytes),
        quotas=Quotas(num_blocks=num_blocks, tenants=quotas),
        producer_blocks=producer_blocks,
    )


def search(start: State) -> tuple[int, list[State]]:
    """How many states there are, and those in which requests wait and nobody can move."""
    seen, stuck, todo = {start.key()}, [], deque([start])
    while todo:
        state = todo.popleft()
        movable = state.movable()
        if not movable and not all(request.done for request in state.requests):
            stuck.append(state)
        for i in movable:
            after = state.move(i)
            if (key := after.key()) not in seen:
                seen.add(key)
                todo.append(after)
    return len(seen), stuck


def pull(consumer_name: str, producer_name: str, *, blocks: int = 2, prompt: int = 1, tenant: TenantId = A) -> Request:
    """As Isthmus does, by pull and by push: the consumer's blocks and staging at once, then the producer's."""
    return Request(plan=(consumer(consumer_name, blocks), producer(producer_name, prompt)), tenant=tenant)


def opposite(consumer_name: str, producer_name: str) -> Request:
    return Request(plan=(producer(producer_name, 1), consumer(consumer_name, 2)))


def in_halves(consumer_name: str, producer_name: str) -> Request:
    """The prompt's blocks now, those for growth when they are needed."""
    return Request(plan=(consumer(consumer_name, 1), consumer(consumer_name, 1), producer(producer_name, 1)))


CROSSED = [("c0", "p0"), ("c0", "p1"), ("c1", "p0"), ("c1", "p1")]
BOTH = [("w0", "w1"), ("w1", "w0"), ("w0", "w1"), ("w1", "w0")]
ITSELF = [("w0", "w0"), ("w0", "w0"), ("w0", "w1"), ("w1", "w0")]


def four_workers() -> dict[str, Admission]:
    return {"c0": worker(3), "c1": worker(3), "p0": worker(1, staging_bytes=0), "p1": worker(1, staging_bytes=0)}


def two_workers(producer_blocks: int) -> dict[str, Admission]:
    return {name: worker(3, producer_blocks=producer_blocks) for name in ("w0", "w1")}


def shared_by_tenants(producer_blocks: int) -> dict[str, Admission]:
    quotas = {A: Quota(blocks_max=3), B: Quota(blocks_min=2, weight=2.0)}
    return {name: worker(6, producer_blocks=producer_blocks, quotas=quotas) for name in ("w0", "w1")}


def two_tenants() -> list[Request]:
    return [
        pull("w0", "w1", blocks=3),
        pull("w1", "w0", blocks=2),
        pull("w0", "w1", blocks=4, tenant=B),
        pull("w1", "w0", blocks=2, tenant=B),
    ]


@pytest.mark.parametrize(
    ("workers", "requests"),
    [
        pytest.param(four_workers, lambda: [pull(*pair) for pair in CROSSED], id="two-producers-two-consumers"),
        pytest.param(lambda: two_workers(1), lambda: [pull(*pair) for pair in BOTH], id="both-roles-crossed"),
        pytest.param(lambda: two_workers(1), lambda: [pull(*pair) for pair in ITSELF], id="a-worker-with-itself"),
        pytest.param(lambda: shared_by_tenants(1), two_tenants, id="two-tenants-with-quotas"),
    ],
)
def test_every_reachable_state_can_reach_the_end_without_any_deadline(
    workers: Callable[[], dict[str, Admission]], requests: Callable[[], list[Request]]
) -> None:
    states, stuck = search(State(workers(), requests()))
    assert not stuck, [[request.plan for request in state.requests if not request.done] for state in stuck[:1]]
    assert states > 400, f"{states} states: the search saw next to nothing"


PAIRS = st.tuples(st.sampled_from("uvw"), st.sampled_from("uvw"), st.integers(1, 4), st.integers(1, 2), st.booleans())


@settings(max_examples=20, deadline=None)
@given(st.lists(PAIRS, min_size=3, max_size=3))
def test_no_three_requests_between_three_workers_with_both_roles_can_get_stuck(
    pairs: list[tuple[str, str, int, int, bool]],
) -> None:
    quotas = {A: Quota(blocks_max=4), B: Quota(blocks_min=1)}
    workers = {name: worker(7, staging_bytes=10, producer_blocks=2, quotas=quotas) for name in "uvw"}
    requests = [
        pull(here, there, blocks=blocks, prompt=prompt, tenant=A if first else B)
        for here, there, blocks, prompt, first in pairs
    ]
    _, stuck = search(State(workers, requests))
    assert not stuck


def no_part() -> State:
    """Both roles out of one budget: whoever waits for a producer's blocks may hold all of them."""
    return State(two_workers(0), [pull(*pair) for pair in BOTH])


def one_queue() -> State:
    """A producer's part, but one line for both: its want waits behind a consumer's that does not fit."""
    workers = two_workers(1)
    for admission in workers.values():
        admission._queues = admission._queues[:1]
    return State(workers, [pull(*pair) for pair in BOTH])


def mixed_order() -> State:
    """One mode reserves the producer's blocks first, the other the consumer's."""
    return State(four_workers(), [pull(*CROSSED[0]), opposite(*CROSSED[0]), opposite(*CROSSED[1]), pull(*CROSSED[3])])


def half_reservations() -> State:
    return State({"c0": worker(2), "p0": worker(2, staging_bytes=0)}, [in_halves("c0", "p0"), in_halves("c0", "p0")])


@pytest.mark.parametrize("mutant", [no_part, one_queue, mixed_order, half_reservations])
def test_the_search_finds_the_deadlock_of_a_mutant(mutant: Callable[[], State]) -> None:
    _, stuck = search(mutant())
    assert stuck


def test_a_deadlock_is_two_requests_that_hold_what_the_other_waits_for() -> None:
    _, stuck = search(no_part())
    waiting = [request for request in stuck[0].requests if request.waits]
    held_in = {request.plan[number].worker for request in waiting for number in request.held}
    wanted_in = {request.plan[len(request.held)].worker for request in waiting}
    assert held_in == wanted_in == {"w0", "w1"}
