"""Capacity under random tenants, sizes, cancellations, releases, deadlines and quarantine."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from isthmus.core.clock import ManualClock
from isthmus.core.errors import CapacityExceeded
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.quotas import Quota, Quotas

NUM_BLOCKS, STAGING_BYTES, WAITING_MAX, PER_TENANT_MAX = 12, 10, 8, 4
SECOND, DEADLINE = Duration.of_seconds(1), Duration.of_seconds(3)
A, B, C = TenantId("a"), TenantId("b"), TenantId("c")
QUOTAS = {A: Quota(blocks_min=3, blocks_max=6), B: Quota(blocks_max=8, weight=2.0)}
BLOCKS_MAX = {A: 6, B: 8, C: 9}


class Asked:
    """One request, and what it asked for."""

    def __init__(self, tenant: TenantId, blocks: int, staging_bytes: int) -> None:
        self.tenant, self.blocks, self.staging_bytes = tenant, blocks, staging_bytes
        self.task: asyncio.Task[Assignment]


class AdmissionMachine(RuleBasedStateMachine):
    """The oracle knows sums only: who holds what, in which order each tenant asked, and what would fit."""

    @initialize(quarantine=st.booleans())
    def start(self, quarantine: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.ledger = Ledger(num_blocks=NUM_BLOCKS, block_bytes=1, staging_bytes=STAGING_BYTES)
        self.capacity = Capacity(
            ledger=self.ledger,
            clock=self.clock,
            quotas=Quotas(num_blocks=NUM_BLOCKS, tenants=QUOTAS),
            quarantine_blocks_max=4 if quarantine else None,
            waiting_max=WAITING_MAX,
            waiting_per_tenant_max=PER_TENANT_MAX,
        )
        self.open: list[Asked] = []
        self.held: list[tuple[Asked, Assignment]] = []
        self.staged: set[int] = set()
        self.doubtful: list[tuple[Asked, Assignment]] = []

    # what happens

    @rule(tenant=st.sampled_from([A, B, C]), blocks=st.integers(1, 10), staging_bytes=st.sampled_from([0, 0, 1, 4, 10]))
    def ask(self, tenant: TenantId, blocks: int, staging_bytes: int) -> None:
        asked = Asked(tenant, blocks, staging_bytes)
        asked.task = self.loop.create_task(self._acquire(asked))
        self.open.append(asked)
        self.turn()
        if blocks > BLOCKS_MAX[tenant]:
            assert asked.task.done(), "what never fits was not refused at once"
        self.collect()

    @rule(which=st.integers(0, 30))
    def release(self, which: int) -> None:
        if self.held:
            self._free(*self.held.pop(which % len(self.held)), Evidence.OWN_WORK_ENDED)
            self.turn()

    @rule(which=st.integers(0, 30))
    def release_staging(self, which: int) -> None:
        staged = [assignment for _, assignment in self.held if assignment.epoch in self.staged]
        if staged:
            self._unstage(staged[which % len(staged)])
            self.turn()

    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        if self.open:
            self.open[which % len(self.open)].task.cancel()
            self.turn()

    @rule(which=st.integers(0, 30), victim=st.integers(0, 30))
    def release_and_cancel_in_one_turn(self, which: int, victim: int) -> None:
        if self.held and self.open:
            self._free(*self.held.pop(which % len(self.held)), Evidence.OWN_WORK_ENDED)
            self.open[victim % len(self.open)].task.cancel()
            self.turn()

    @rule(which=st.integers(0, 30))
    def doubt(self, which: int) -> None:
        if self.held:
            asked, assignment = self.held.pop(which % len(self.held))
            self.ledger.quarantine(assignment.blocks, assignment.epoch)
            self.doubtful.append((asked, assignment))
            self.capacity.look_again()  # as every pulse does
            self.turn()

    @rule()
    def prove(self) -> None:
        while self.doubtful:
            self._free(*self.doubtful.pop(), Evidence.PROCESS_EXITED)
        self.turn()

    @rule()
    def time_passes(self) -> None:
        self.clock.advance(SECOND)
        self.turn()

    # what must hold

    @invariant()
    def sums_and_quotas_hold(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.ledger.check_in_full()
        have = dict.fromkeys((A, B, C), 0)
        for asked, assignment in (*self.held, *self.doubtful):
            have[asked.tenant] += len(assignment.blocks)
        assert self.ledger.held().blocks == sum(have.values()), "a reservation leaked"
        assert all(self.ledger.held_by(tenant) == blocks <= BLOCKS_MAX[tenant] for tenant, blocks in have.items())
        assert sum(have.values()) + max(0, 3 - have[A]) <= NUM_BLOCKS, "what is guaranteed to A was lent"
        assert self.capacity.waiting == len(self.open) <= WAITING_MAX
        assert all(len([1 for asked in self.open if asked.tenant == t]) <= PER_TENANT_MAX for t in have)

    @invariant()
    def whoever_fits_and_waits_for_nobody_is_admitted(self) -> None:
        if not hasattr(self, "loop"):
            return
        if self.capacity.unhealthy is not None:
            assert not self.open, "somebody waits for a worker that takes nothing new"
        heads = {asked.tenant: asked for asked in reversed(self.open)}
        if heads:
            # Some head is next in turn: if all of them fit by themselves, that one does, and was not woken.
            assert not all(self._fits(asked) for asked in heads.values()), "a wake-up was lost"
        if (first := heads.get(A)) is not None and self.ledger.held_by(A) + first.blocks <= 3:
            assert first.staging_bytes, "A waits for what is guaranteed to it"

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        while self.held or self.doubtful:  # everybody who waits is served as others end: no deadline fires
            self.prove()
            if self.held:
                self.release(0)
        assert not self.open, "a waiter was never answered"
        held = self.ledger.held()
        assert (held.blocks, held.staging_bytes, self.capacity.waiting) == (0, 0, 0)
        self.loop.close()

    # inside

    async def _acquire(self, asked: Asked) -> Assignment:
        return await self.capacity.acquire(
            HandoffId(self.clock.token()),
            tenant=asked.tenant,
            blocks=asked.blocks,
            staging_bytes=asked.staging_bytes,
            deadline=DEADLINE,
        )

    def turn(self) -> None:
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))
        self.collect()

    def collect(self) -> None:
        """Sort those that were answered: with a reservation, a refusal that says when to come again, or cancelled."""
        for asked in [asked for asked in self.open if asked.task.done()]:
            self.open.remove(asked)
            if asked.task.cancelled():
                continue
            error = asked.task.exception()
            if error is None:
                assignment = asked.task.result()
                assert len(assignment.blocks) == asked.blocks
                self.held.append((asked, assignment))
                if asked.staging_bytes:
                    self.staged.add(assignment.epoch)
                continue
            assert isinstance(error, CapacityExceeded)
            assert (error.retry_after is None) == (asked.blocks > BLOCKS_MAX[asked.tenant])

    def _fits(self, asked: Asked) -> bool:
        room, held = self.ledger.available(), self.ledger.held_by(asked.tenant)
        kept = 0 if asked.tenant == A else max(0, 3 - self.ledger.held_by(A))
        if self.capacity.unhealthy is not None or held + asked.blocks > BLOCKS_MAX[asked.tenant]:
            return False
        return asked.blocks + kept <= room.blocks and asked.staging_bytes <= room.staging_bytes

    def _free(self, asked: Asked, assignment: Assignment, evidence: Evidence) -> None:
        self._unstage(assignment)
        self.ledger.free(assignment.blocks, assignment.epoch, evidence)

    def _unstage(self, assignment: Assignment) -> None:
        if assignment.epoch in self.staged:
            self.staged.remove(assignment.epoch)
            self.ledger.release_staging(assignment.epoch)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(stateful_step_count=40, max_examples=150, deadline=None)
