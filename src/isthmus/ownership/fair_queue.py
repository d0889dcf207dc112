"""Who is next: start-time fair queueing by blocks between tenants, first come first served within one.

Each tenant that waits has a lane with a *start tag*, in blocks per weight. The lane with the least tag is next; to be
admitted moves its tag on by blocks / weight, and virtual time up to the tag it had. A lane that begins (again) starts
at virtual time: whoever was idle is neither paid nor punished for it. When nobody waits, all is forgotten.

The bound: while a request waits at the head of its lane with tag S, another tenant is served before it only while
that one's tag is <= S, and each service moves that tag on. So a tenant that was idle is overtaken by at most one
request of each other tenant, whatever their sizes; and in any busy period two tenants' service differs by at most one
largest request of each, in blocks / weight (Goyal, Vin and Cheng, SIGCOMM 1996). Size does not enter the order, so a
large request waits no longer for its turn than a small one; how its turn then waits for room is `admission`'s to say.

Refuses to know what fits.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import msgspec

from isthmus.core.errors import Bug
from isthmus.core.ids import HandoffId, TenantId
from isthmus.core.limits import TENANTS_REMEMBERED_MAX
from isthmus.ownership.side import Side

__all__ = ["FairQueue", "Want"]


class Want(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One hand-off that wants blocks and staging bytes at once. Two wants are never equal."""

    handoff: HandoffId
    tenant: TenantId
    side: Side
    blocks: int
    staging_bytes: int


@dataclass(slots=True, kw_only=True)
class _Lane:
    """One tenant's wants in order of arrival. `since`: when it began, for ties."""

    weight: float
    start: float
    since: int
    wants: deque[Want] = field(default_factory=deque)


class FairQueue:
    """Wants in lanes by tenant."""

    def __init__(self) -> None:
        self._lanes: dict[TenantId, _Lane] = {}
        self._ended: OrderedDict[TenantId, float] = OrderedDict()
        self._virtual = 0.0
        self._began = 0
        self.size = 0

    def __len__(self) -> int:
        return self.size

    @property
    def blocks(self) -> int:
        """The sum of what waits."""
        return sum(want.blocks for lane in self._lanes.values() for want in lane.wants)

    def of_tenant(self, tenant: TenantId) -> int:
        """How many of the tenant's wants wait."""
        lane = self._lanes.get(tenant)
        return 0 if lane is None else len(lane.wants)

    def add(self, want: Want, *, weight: float) -> None:
        """To the end of its tenant's lane."""
        lane = self._lanes.get(want.tenant)
        if lane is None:
            self._began += 1
            start = max(self._virtual, self._ended.pop(want.tenant, 0.0))
            lane = self._lanes[want.tenant] = _Lane(weight=weight, start=start, since=self._began)
        lane.wants.append(want)
        self.size += 1

    def heads(self) -> list[Want]:
        """The first of each lane, the next to be served first."""
        lanes = sorted(self._lanes.values(), key=lambda lane: (lane.start, lane.since))
        return [lane.wants[0] for lane in lanes]

    def admitted(self, want: Want, *, in_turn: bool) -> None:
        """A head has got what it wants: its tenant pays, and virtual time moves on if it was that head's turn."""
        lane = self._lanes[want.tenant]
        if lane.wants[0] is not want:
            raise Bug(f"hand-off {want.handoff} was admitted before another of its tenant", field="handoff")
        # A lane that could not go on for its own quota earns no credit by that: it starts from now.
        served = max(lane.start, self._virtual)
        lane.start = served + want.blocks / lane.weight
        if in_turn:
            self._virtual = served
        self._remove(want)

    def leave(self, want: Want) -> None:
        """It waits no longer, and pays nothing."""
        self._remove(want)

    def newest_of_longest(self) -> Want:
        """Who goes where one too many waits: the last of the lane that fills the queue."""
        longest = max(self._lanes.values(), key=lambda lane: (len(lane.wants), lane.since))
        return longest.wants[-1]

    def _remove(self, want: Want) -> None:
        lane = self._lanes[want.tenant]
        if lane.wants[0] is want:
            lane.wants.popleft()
        else:
            lane.wants.remove(want)
        self.size -= 1
        if lane.wants:
            return
        del self._lanes[want.tenant]
        self._ended[want.tenant] = lane.start
        if len(self._ended) > TENANTS_REMEMBERED_MAX:
            self._ended.popitem(last=False)  # its tenant is ahead by one request at most
        if not self._lanes:
            self._ended.clear()
            self._virtual = 0.0
