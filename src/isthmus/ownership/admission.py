"""Who may have blocks now. The decision alone: no waiting, no clock; so that a model check can drive it.

A want is admitted if it is next in the fair queue and all of this holds, at once or not at all:

    its tenant   held + wanted <= its maximum                            else others may go on: only its own can help
    the pool     free - wanted >= what other tenants are guaranteed      else nobody takes what it waits for
    staging      free staging >= wanted                                  else likewise

Nobody takes what the next in line waits for, so releases add up until it fits, however large it is: it waits for
those admitted before it, and for nobody after. Two exceptions take nothing from it: a tenant within its guaranteed
minimum (those blocks were kept from the waiting one anyway), and a tenant at its own maximum, which is passed over.

Retained cache gives way: where blocks are missing, `reclaim(missing)` is asked before anybody has to wait. Which of it
goes is the cache's to say; hand-offs are never taken back.

A worker with both roles keeps a part for its producer's side, with a queue of its own: a producer's want never waits
behind or for a consumer's (docs/capacity.md has the argument why it would not be free of deadlock otherwise).

Owns the order of admission, and I10 for each tenant. Refuses to know who waits for the answer.
"""

import enum
from collections.abc import Callable, Iterator

from isthmus.core.errors import Bug, ConfigInvalid
from isthmus.core.ids import TenantId
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.fair_queue import FairQueue, Want
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.producer_part import ProducerPart
from isthmus.ownership.quotas import Quotas
from isthmus.ownership.side import Side

__all__ = ["Admission", "Obstacle", "Reclaim"]

Reclaim = Callable[[int], int]
"""Free that many retained blocks, if there are so many; returns how many it freed."""


class Obstacle(enum.Enum):
    """What a want lacks."""

    QUOTA = "quota"
    BLOCKS = "blocks"
    STAGING = "staging"


class Admission:
    """The wants of one worker, and which of them its ledger admits.

    Raises:
        ConfigInvalid: quotas and `producer_blocks` do not fit the pool together.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        quotas: Quotas,
        reclaim: Reclaim | None = None,
        quarantine_blocks_max: int | None = None,
        producer_blocks: int = 0,
    ) -> None:
        self._ledger = ledger
        self._quotas = quotas
        self._reclaim = reclaim
        self.quarantine_blocks_max = quarantine_blocks_max
        self._part = ProducerPart(ledger, producer_blocks)
        if quotas.guaranteed + producer_blocks > ledger.num_blocks:
            raise ConfigInvalid(
                f"quotas: the minimums add up to {quotas.guaranteed} blocks and producer_blocks is {producer_blocks}, "
                f"wanted at most num_blocks = {ledger.num_blocks} together",
                field="quotas",
            )
        # In the order in which they are served; a worker of one role has one.
        self._queues = (FairQueue(), FairQueue()) if producer_blocks else (FairQueue(),)

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def queue(self, side: Side) -> FairQueue:
        """Where wants of this side wait."""
        return self._queues[0 if side is Side.PRODUCER else -1]

    def at_once(self, want: Want) -> Assignment | None:
        """What it wants, if nobody waits: there is nothing to be fair about then, and nothing to remember."""
        if self.queue(want.side).size or self.quarantined_too_much or self.obstacle(want) is not None:
            return None
        return self._take(want)

    def after_reclaim(self, want: Want) -> Assignment | None:
        """As `at_once`, where retained cache has to give way first."""
        if self.queue(want.side).size or self.quarantined_too_much or self._obstacle_after_reclaim(want) is not None:
            return None
        return self._take(want)

    def add(self, want: Want) -> None:
        self.queue(want.side).add(want, weight=self._quotas.of(want.tenant).weight)

    def leave(self, want: Want) -> None:
        self.queue(want.side).leave(want)

    def admit(self) -> Iterator[tuple[Want, Assignment]]:
        """Serve whoever is next, for as long as anybody can be. Nobody is, while too much is in quarantine."""
        for queue in self._queues:
            while not self.quarantined_too_much and (found := self._next(queue)) is not None:
                want, in_turn = found
                assignment = self._take(want)
                queue.admitted(want, in_turn=in_turn)
                yield want, assignment

    @property
    def quarantined_too_much(self) -> bool:
        """Blocks that nobody may touch are more than this worker can do without: it takes nothing new."""
        most = self.quarantine_blocks_max
        return most is not None and self._ledger.held().quarantined > most

    def blocks_max(self, side: Side, tenant: TenantId) -> int:
        """The largest want that can ever be admitted."""
        if not self._part.size:
            return self._quotas.blocks_max(tenant)
        if self._apart(side):
            return self._part.size
        return min(self._quotas.blocks_max(tenant), self._quotas.unguaranteed_to(tenant) - self._part.size)

    def obstacle(self, want: Want) -> Obstacle | None:
        """What this want lacks now, by itself and not for those before it."""
        most = self._quotas.of(want.tenant).blocks_max
        if most is not None and not self._apart(want.side) and self._held_by(want.tenant) + want.blocks > most:
            return Obstacle.QUOTA
        if self._missing(want) > 0:
            return Obstacle.BLOCKS
        if want.staging_bytes > self._ledger.free_staging_bytes:
            return Obstacle.STAGING
        return None

    # inside

    def _next(self, queue: FairQueue) -> tuple[Want, bool] | None:
        """The first that may be admitted, and whether it was its turn.

        Those whose turn it is keep what they wait for from those behind.
        """
        blocks_wanted = staging_wanted = False
        for want in queue.heads():
            guaranteed = self._guaranteed(want)
            if (blocks_wanted and not guaranteed) or (staging_wanted and want.staging_bytes):
                continue
            obstacle = self._obstacle_after_reclaim(want)
            if obstacle is None:
                return want, not blocks_wanted
            if obstacle is Obstacle.BLOCKS and guaranteed:
                return None  # cache in use lies in what is guaranteed: nobody may make it worse
            blocks_wanted |= obstacle is not Obstacle.QUOTA
            staging_wanted |= obstacle is Obstacle.STAGING
        return None

    def _obstacle_after_reclaim(self, want: Want) -> Obstacle | None:
        obstacle = self.obstacle(want)
        if obstacle is Obstacle.BLOCKS and self._reclaim is not None and self._reclaim(self._missing(want)):
            return self.obstacle(want)
        return obstacle

    def _take(self, want: Want) -> Assignment:
        assignment = self._ledger.try_reserve(
            want.handoff, tenant=want.tenant, blocks=want.blocks, staging_bytes=want.staging_bytes
        )
        if assignment is None:
            raise Bug(f"hand-off {want.handoff}: the ledger has no room where admission found some", field="blocks")
        if self._part.size and self._apart(want.side):
            self._part.take(want.tenant, assignment)
        return assignment

    def _apart(self, side: Side) -> bool:
        """Whether this side lives on the producer's own part. Its hand-offs passed a consumer's quota before."""
        return side is Side.PRODUCER and self._part.size > 0

    def _held_by(self, tenant: TenantId) -> int:
        return self._ledger.held_by(tenant) - self._part.held_by(tenant)

    def _guaranteed(self, want: Want) -> bool:
        least = self._quotas.of(want.tenant).blocks_min
        return least > 0 and not self._apart(want.side) and self._held_by(want.tenant) + want.blocks <= least

    def _missing(self, want: Want) -> int:
        """How many blocks more would have to be free."""
        free = self._ledger.free_blocks
        if not self._part.size:
            return want.blocks + self._quotas.kept_from(want.tenant, self._held_by) - free
        if self._apart(want.side):
            return want.blocks - min(free, self._part.unheld())
        return want.blocks + self._quotas.kept_from(want.tenant, self._held_by) + self._part.unheld() - free
