"""What a check covers: how many of everything, which faults, and how the bytes cross."""

from dataclasses import dataclass, field

from isthmus.core.errors import Bug
from isthmus.ownership.protocol.drain import TransportKind
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["Faults", "Scope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may go wrong. Messages are always late, lost and repeated, and leases always run out: see `pull`.

    `crashes` and `pauses` are budgets of each worker. `fences`: the registry may declare a paused consumer dead.
    """

    crashes: int = 0
    pauses: int = 0
    fences: bool = False
    gives_up: bool = True  # a consumer, at any moment
    source_gives_up: bool = False
    doubts: bool = False  # a stopped transfer cannot be shown to have stopped
    flips: bool = False  # the network changes bytes
    forges: bool = False  # somebody who has seen half of a grant, or an old one, speaks
    renews: bool = False
    sees_reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Guards that live outside `step`, each of which a mutant takes away."""

    confirm_before_copy: bool = False
    reuse_in_doubt: bool = False
    abandon_before_stop: bool = False
    admit_without_staging: bool = False
    admit_the_dead: bool = False
    evict_while_used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """One finite world. `staging` is how many requests a consumer stages at once; None: as many as it has blocks.

    `prefix`: one source block of each producer is retained at first, and holds the first chunk of every request.
    `depth_max` bounds the search; None is exhaustive. `reduced`: states that differ by a renaming are one.
    """

    name: str
    about: str
    requests: int
    producers: int = 1
    consumers: int = 1
    source_slots: int = 2
    destination_slots: int = 2
    staging: int | None = None
    mode: TriggerMode = TriggerMode.PULL
    parts: int = 1
    transport: TransportKind = TransportKind.SHM
    tenants: tuple[int, ...] = ()
    faults: Faults = field(default_factory=Faults)
    switches: Switches = field(default_factory=Switches)
    depth_max: int | None = None
    reduced: bool = True
    prefix: bool = False

    def __post_init__(self) -> None:
        if self.tenants and (len(self.tenants) != self.requests or list(self.tenants) != sorted(self.tenants)):
            raise Bug(f"{self.name}: tenants {self.tenants}, wanted one a request, in order", field="tenants")
        if self.parts > 1 and self.mode is not TriggerMode.PULL:
            raise Bug(f"{self.name}: {self.parts} parts are checked under pull only", field="parts")

    @property
    def sole_tenant(self) -> bool:
        return not self.tenants

    @property
    def claims(self) -> int:
        """How many claims there are; a claim on a prefix is numbered after them all."""
        return self.requests * self.parts

    def tenant(self, request: int) -> int:
        """The tenant that a request is of."""
        return self.tenants[request] if self.tenants else 0
