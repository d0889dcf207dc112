"""Waiting for room in one worker's ledger: fair between tenants, bounded, each wait with a deadline.

`admission` decides who may have blocks; here they wait for it. A waiter ends in exactly one of: its reservation,
`CapacityExceeded` (which says when to ask again), or its own cancellation, which leaves no reservation behind (I5, I8).

Why no two workers wait for each other's space is argued in docs/capacity.md, and checked over every reachable state in
tests/ownership/test_no_deadlock.py.
"""

import asyncio

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, CapacityExceeded, QuotaExceeded
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.limits import REQUESTS_IN_FLIGHT_MAX
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.admission import Admission, Obstacle, Reclaim
from isthmus.ownership.fair_queue import Want
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.quotas import Quotas
from isthmus.ownership.release_rate import ReleaseRate
from isthmus.ownership.side import Side

__all__ = ["RETRY_AFTER", "Capacity"]

RETRY_AFTER = Duration.of_seconds(1)
"""When a request that found no room may ask again, at the earliest, unless configured otherwise."""

RETRY_AFTER_MAX = Duration.of_seconds(60)


class Capacity:
    """The queue in front of a ledger. A worker has one, whatever its roles.

    `reclaim` frees retained blocks, as many as are missing; whoever makes more of them reclaimable without a release
    calls `look_again`. `producer_blocks` is for a worker with both roles (`admission`).
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        quotas: Quotas | None = None,
        reclaim: Reclaim | None = None,
        quarantine_blocks_max: int | None = None,
        producer_blocks: int = 0,
        waiting_max: int = REQUESTS_IN_FLIGHT_MAX,
        waiting_per_tenant_max: int | None = None,
        retry_after: Duration = RETRY_AFTER,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._admission = Admission(
            ledger=ledger,
            quotas=quotas or Quotas(num_blocks=ledger.num_blocks),
            reclaim=reclaim,
            quarantine_blocks_max=quarantine_blocks_max,
            producer_blocks=producer_blocks,
        )
        self._waiting_max = waiting_max
        self._waiting_per_tenant_max = waiting_per_tenant_max
        self._retry_after = retry_after
        self._rate = ReleaseRate(clock)
        self._answers: dict[Want, asyncio.Future[Assignment]] = {}
        self._admitting = False
        self._free_before = ledger.free_blocks
        ledger.when_room(self.look_again)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._admission)

    @property
    def unhealthy(self) -> str | None:
        """Why this worker takes nothing new, if so. Proof that quarantined blocks are touched no more ends it, or a
        restart: the memory that was in doubt ends with the process.
        """
        if not self._admission.quarantined_too_much:
            return None
        return (
            f"quarantine: {self._ledger.held().quarantined} of {self._ledger.num_blocks} blocks may still be touched "
            f"by somebody, wanted at most {self._admission.quarantine_blocks_max}"
        )

    async def acquire(
        self,
        handoff: HandoffId,
        *,
        tenant: TenantId,
        blocks: int,
        staging_bytes: int,
        deadline: Duration,
        side: Side = Side.CONSUMER,
    ) -> Assignment:
        """Reserve, waiting `deadline` from now at most. Whoever gets an assignment must see it freed.

        Raises:
            CapacityExceeded: no room; without `retry_after` where there never will be.
            QuotaExceeded: no room for this tenant.
        """
        want = Want(handoff=handoff, tenant=tenant, side=side, blocks=blocks, staging_bytes=staging_bytes)
        assignment = self.at_once(want)
        return await self.wait_for(want, deadline) if assignment is None else assignment

    def at_once(self, want: Want) -> Assignment | None:
        """What is wanted, where there is room now and nobody waits. Raises as `acquire` where there never will be."""
        if want.blocks < 1 or want.staging_bytes < 0:
            raise Bug(f"a reservation of {want.blocks} blocks and {want.staging_bytes} staging bytes", field="blocks")
        assignment = self._admission.at_once(want)
        if assignment is None:
            self._refuse_what_never_fits(want)  # before any cache gives way to it
            assignment = self._admission.after_reclaim(want)
        if assignment is not None:
            self._free_before = self._ledger.free_blocks
        return assignment

    async def wait_for(self, want: Want, deadline: Duration) -> Assignment:
        """What could not be had at once. Raises as `acquire`."""
        answer = self._answers[want] = asyncio.get_running_loop().create_future()
        self._admission.add(want)
        self.look_again()
        if not answer.done():
            self._bound_queue(want)
        return answer.result() if answer.done() else await self._wait(want, answer, deadline)

    def give_back(self, assignment: Assignment, *, staging_bytes: int) -> None:
        """Undo a reservation that nobody has begun to use."""
        if staging_bytes:
            self._ledger.release_staging(assignment.epoch)
        self._ledger.free(assignment.blocks, assignment.epoch, Evidence.NEVER_EXPOSED)

    def look_again(self) -> None:
        """Something may have changed: admit whoever can be; and let nobody wait for a worker that takes nothing new."""
        if self._admitting:
            return  # a release by `reclaim`, within: whoever called it looks again by itself
        free = self._ledger.free_blocks
        if free > self._free_before:
            self._rate.observe(free - self._free_before)
        self._free_before = free
        if not self._answers:
            return  # nobody waits
        self._admitting = True
        try:
            for want, assignment in self._admission.admit():
                self._answers.pop(want).set_result(assignment)
        finally:
            self._admitting = False
        if (reason := self.unhealthy) is not None:
            for want in list(self._answers):
                self._refuse(want, CapacityExceeded(reason, field="quarantine", retry_after=RETRY_AFTER_MAX))
        self._free_before = self._ledger.free_blocks

    # inside

    async def _wait(self, want: Want, answer: "asyncio.Future[Assignment]", deadline: Duration) -> Assignment:
        alarm: asyncio.Future[None] = asyncio.ensure_future(self._clock.sleep(deadline))
        either: set[asyncio.Future[Assignment] | asyncio.Future[None]] = {answer, alarm}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not answer.done():
                self._leave(want)
            elif answer.exception() is None:  # admitted in the same turn in which it was cancelled
                self.give_back(answer.result(), staging_bytes=want.staging_bytes)
            raise
        finally:
            alarm.cancel()
        if not answer.done():
            error = self._too_late(want, deadline)
            self._leave(want)
            raise error
        return answer.result()

    def _leave(self, want: Want) -> None:
        del self._answers[want]
        self._admission.leave(want)
        self.look_again()  # those behind a head that has left may fit now

    def _refuse(self, want: Want, error: CapacityExceeded) -> None:
        self._admission.leave(want)
        self._answers.pop(want).set_exception(error)

    def _bound_queue(self, want: Want) -> None:
        """One too many waits: it is this one, or the last of the tenant that fills the queue."""
        queue = self._admission.queue(want.side)
        own, own_max = queue.of_tenant(want.tenant), self._waiting_per_tenant_max
        if own_max is not None and own > own_max:
            says = f"{own - 1} requests of tenant {want.tenant!r} wait for blocks already, wanted below {own_max}"
            again = self._ask_again(want)
            self._refuse(want, QuotaExceeded(says, field="waiting", retry_after=again))
        elif len(queue) > self._waiting_max:
            last = queue.newest_of_longest()
            victim = last if queue.of_tenant(last.tenant) > own else want
            says = f"{len(queue) - 1} requests wait for blocks already, wanted below {self._waiting_max}"
            again = self._ask_again(victim)
            self._refuse(victim, CapacityExceeded(says, field="waiting", retry_after=again))

    def _too_late(self, want: Want, deadline: Duration) -> CapacityExceeded:
        """I5: waiting ends in an answer."""
        again = self._ask_again(want)
        if self._admission.obstacle(want) is Obstacle.QUOTA:
            return QuotaExceeded(
                f"tenant {want.tenant!r} holds {self._ledger.held_by(want.tenant)} blocks and wants {want.blocks} "
                f"more; its quota had no room within {deadline}",
                field="tenant",
                retry_after=again,
            )
        room = self._ledger.available()
        return CapacityExceeded(
            f"no room for {want.blocks} blocks and {want.staging_bytes} staging bytes within {deadline}: "
            f"{room.blocks} of {self._ledger.num_blocks} blocks and {room.staging_bytes} bytes are free",
            field="blocks",
            retry_after=again,
        )

    def _ask_again(self, want: Want) -> Duration:
        """When all that waits, and this, may have been served, at the rate at which blocks come free."""
        wanted = self._admission.queue(want.side).blocks - self._ledger.available().blocks
        return self._rate.until(max(wanted, want.blocks), least=self._retry_after, most=RETRY_AFTER_MAX)

    def _refuse_what_never_fits(self, want: Want) -> None:
        ledger, most = self._ledger, self._admission.blocks_max(want.side, want.tenant)
        if want.blocks > ledger.num_blocks:
            raise CapacityExceeded(
                f"wants {want.blocks} blocks of {ledger.block_bytes} bytes; the whole pool has {ledger.num_blocks}",
                field="blocks",
            )
        if want.blocks > most:
            raise QuotaExceeded(
                f"wants {want.blocks} blocks of {ledger.block_bytes} bytes; of {ledger.num_blocks}, tenant "
                f"{want.tenant!r} may have {most}",
                field="blocks",
            )
        if want.staging_bytes > ledger.staging_bytes:
            raise CapacityExceeded(
                f"wants {want.staging_bytes} staging bytes; the whole budget is {ledger.staging_bytes}",
                field="staging_bytes",
            )
