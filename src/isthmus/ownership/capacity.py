"""Admission to one worker's ledger: first come, first served, in a bounded queue, each wait with a deadline.

Order is strict, so that a large request at the head is not starved by small ones behind it. A waiter ends in exactly
one of: its reservation, `CapacityExceeded`, or its own cancellation, which leaves no reservation behind (I5, I8).
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from isthmus.core.clock import Clock
from isthmus.core.errors import CapacityExceeded
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.limits import REQUESTS_IN_FLIGHT_MAX
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence

__all__ = ["RETRY_AFTER", "Capacity"]

RETRY_AFTER = Duration.of_seconds(1)
"""When a request that found no room may ask again, unless configured otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter:
    """One request in the queue."""

    handoff: HandoffId
    tenant: TenantId
    blocks: int
    staging_bytes: int
    answer: "asyncio.Future[Assignment]"


class Capacity:
    """The queue in front of a ledger. A worker has one, whatever its roles."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        waiting_max: int = REQUESTS_IN_FLIGHT_MAX,
        retry_after: Duration = RETRY_AFTER,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._waiting_max = waiting_max
        self._retry_after = retry_after
        self._waiting: deque[_Waiter] = deque()
        ledger.when_room(self._admit)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    async def acquire(
        self, handoff: HandoffId, *, tenant: TenantId, blocks: int, staging_bytes: int, deadline: Duration
    ) -> Assignment:
        """Reserve, waiting `deadline` from now at most. Whoever gets an assignment must see it freed."""
        self._refuse_what_never_fits(blocks, staging_bytes)
        if not self._waiting:
            assignment = self._ledger.try_reserve(handoff, tenant=tenant, blocks=blocks, staging_bytes=staging_bytes)
            if assignment is not None:
                return assignment
        if len(self._waiting) >= self._waiting_max:
            raise CapacityExceeded(
                f"{len(self._waiting)} requests wait for blocks already, wanted below {self._waiting_max}",
                field="waiting",
                retry_after=self._retry_after,
            )
        waiter = _Waiter(
            handoff=handoff,
            tenant=tenant,
            blocks=blocks,
            staging_bytes=staging_bytes,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(waiter)
        return await self._wait(waiter, deadline)

    def give_back(self, assignment: Assignment, *, staging_bytes: int) -> None:
        """Undo a reservation that nobody has begun to use."""
        if staging_bytes:
            self._ledger.release_staging(assignment.epoch)
        self._ledger.free(assignment.blocks, assignment.epoch, Evidence.NEVER_EXPOSED)

    async def _wait(self, waiter: _Waiter, deadline: Duration) -> Assignment:
        alarm: asyncio.Future[None] = asyncio.ensure_future(self._clock.sleep(deadline))
        either: set[asyncio.Future[Assignment] | asyncio.Future[None]] = {waiter.answer, alarm}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if waiter.answer.done():  # admitted in the same turn in which it was cancelled
                self.give_back(waiter.answer.result(), staging_bytes=waiter.staging_bytes)
            raise
        finally:
            alarm.cancel()
            if not waiter.answer.done():
                self._leave(waiter)
        if waiter.answer.done():
            return waiter.answer.result()
        room = self._ledger.available()
        raise CapacityExceeded(  # I5: waiting ends in an answer
            f"no room for {waiter.blocks} blocks and {waiter.staging_bytes} staging bytes within {deadline}: "
            f"{room.blocks} of {self._ledger.num_blocks} blocks and {room.staging_bytes} bytes are free",
            field="blocks",
            retry_after=self._retry_after,
        )

    def _leave(self, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        self._admit()  # those behind a head that has left may fit now

    def _admit(self) -> None:
        """Serve the head of the queue for as long as it fits."""
        while self._waiting:
            head = self._waiting[0]
            assignment = self._ledger.try_reserve(
                head.handoff, tenant=head.tenant, blocks=head.blocks, staging_bytes=head.staging_bytes
            )
            if assignment is None:
                return
            self._waiting.popleft()
            head.answer.set_result(assignment)

    def _refuse_what_never_fits(self, blocks: int, staging_bytes: int) -> None:
        ledger = self._ledger
        if blocks > ledger.num_blocks:
            raise CapacityExceeded(
                f"wants {blocks} blocks of {ledger.block_bytes} bytes; the whole pool has {ledger.num_blocks}",
                field="blocks",
            )
        if staging_bytes > ledger.staging_bytes:
            raise CapacityExceeded(
                f"wants {staging_bytes} staging bytes; the whole budget is {ledger.staging_bytes}",
                field="staging_bytes",
            )
