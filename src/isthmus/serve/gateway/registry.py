"""Who is a member, in which life, and who is fenced. The one authority on a worker's death.

A life (`incarnation`) that was dropped is fenced: it is told to all workers, and never admitted again. Producers free
what a fenced life held; so a worker that was only stopped, and wakes up, finds itself shut out rather than trusted.
"""

from collections import deque

import structlog

from isthmus.core.errors import CapacityExceeded, IncarnationFenced, PeerLost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.limits import TOMBSTONES_MAX, WORKERS_MAX
from isthmus.core.units import Duration
from isthmus.placement.routing import Candidate
from isthmus.portability.gate import gate, refuse_unless_passed
from isthmus.portability.verdict import Verdict, judge
from isthmus.serve.channel import Channel
from isthmus.serve.messages import Fenced, Member, Members
from isthmus.serve.processes import has_exited
from isthmus.transport.base import transport_name

__all__ = ["Registry", "Seat"]

NAME_RETRY_AFTER = Duration.of_ms(500)

log = structlog.get_logger(__name__)


class Seat:
    """One member, its channel, and what the gateway has asked of it."""

    def __init__(self, member: Member, channel: Channel) -> None:
        self.member = member
        self.channel = channel
        self.blocks: dict[str, int] = {}
        self.unhealthy: str | None = None
        self.outstanding_tokens = 0
        self.assigned = 0

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.member.worker)

    def candidate(self) -> Candidate:
        return Candidate(worker=self.worker, outstanding_tokens=self.outstanding_tokens, assigned=self.assigned)


class Registry:
    """Members by name. Of one event loop."""

    def __init__(self) -> None:
        self._seats: dict[WorkerId, Seat] = {}
        self._fenced: deque[Incarnation] = deque(maxlen=TOMBSTONES_MAX)
        self._verdicts: dict[tuple[Incarnation, Incarnation], Verdict] = {}

    def admit(self, member: Member, channel: Channel) -> Seat:
        """A worker joins.

        Raises:
            IncarnationFenced: this life was declared over.
            CapacityExceeded: too many workers; or the name is taken, by a worker that lives as far as we know. It is
                worth asking again: a life that ended badly holds its name until its silence is long enough.
            GateRefused: it serves another model than the workers already here.
        """
        worker = WorkerId(member.worker)
        if member.incarnation in self._fenced:
            raise IncarnationFenced(f"{worker}: this incarnation was declared dead; start anew", field="incarnation")
        seated = self._seats.get(worker)
        if seated is not None and seated.member.incarnation == member.incarnation:
            # It has lost its connection before we have: what we asked of it by that one, it has given up.
            self.drop(seated, "it connected a second time")
            raise IncarnationFenced(
                f"{worker}: this incarnation had a connection and lost it; start anew", field="worker"
            )
        if seated is not None and has_exited(seated.member.process):
            self.drop(seated, "its process has ended")
            seated = None
        if seated is not None:
            raise CapacityExceeded(
                f"worker: the name {worker!r} is taken by a living worker", field="worker", retry_after=NAME_RETRY_AFTER
            )
        if len(self._seats) >= WORKERS_MAX:
            raise CapacityExceeded(f"workers: {WORKERS_MAX} are here already", field="workers")
        for other in self._seats.values():
            refuse_unless_passed(gate(other.member.identity, member.identity))
        seat = Seat(member, channel)
        self._seats[worker] = seat
        log.info("worker_joined", worker=worker, role=member.role, num_blocks=member.num_blocks)
        self._announce()
        return seat

    def drop(self, seat: Seat, reason: str) -> None:
        """A worker is gone, or is declared so: fence its life, tell everybody, close its channel. Idempotent."""
        if self._seats.get(seat.worker) is not seat:
            return
        del self._seats[seat.worker]
        self._fenced.append(Incarnation(seat.member.incarnation))
        seat.channel.close(reason)
        log.warning("worker_lost", worker=seat.worker, reason=reason)
        for other in self._seats.values():
            _post(other, Fenced(worker=seat.worker, incarnation=seat.member.incarnation))
        self._announce()

    def seat(self, worker: WorkerId) -> Seat:
        """A member. Raises PeerLost where there is none of that name."""
        seat = self._seats.get(worker)
        if seat is None:
            raise PeerLost(f"{worker}: not a member now", field="worker")
        return seat

    def seats(self, role: str = "") -> list[Seat]:
        """All members, or those of a role."""
        return [seat for seat in self._seats.values() if role in ("", seat.member.role)]

    def verdict(self, producer: WorkerId, consumer: WorkerId) -> Verdict:
        """May KV of one be read by the other? Remembered for both lives."""
        ours, theirs = self._seats[producer].member, self._seats[consumer].member
        key = (Incarnation(ours.incarnation), Incarnation(theirs.incarnation))
        if key not in self._verdicts:
            if len(self._verdicts) >= WORKERS_MAX * WORKERS_MAX:
                self._verdicts.clear()
            self._verdicts[key] = judge((ours.identity, ours.representation), (theirs.identity, theirs.representation))
        return self._verdicts[key]

    def compatible(self, producer: WorkerId, consumer: WorkerId) -> bool:
        """Whether KV of one may be read by the other, and they share a transport to read it by."""
        offered = {transport_name(endpoint) for endpoint in self._seats[producer].member.endpoints}
        shared = offered.intersection(self._seats[consumer].member.transports)
        return bool(shared) and bool(self.verdict(producer, consumer).plans)

    def _announce(self) -> None:
        members = Members(members=tuple(seat.member for seat in self._seats.values()))
        for seat in self.seats():
            _post(seat, members)


def _post(seat: Seat, message: Fenced | Members) -> None:
    """A channel that closes meanwhile is noticed by its own reader."""
    try:
        seat.channel.post(message)
    except PeerLost:
        log.info("post_failed", worker=seat.worker)
