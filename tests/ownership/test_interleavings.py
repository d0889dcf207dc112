"""Both owners and both ledgers under random interleavings of everything that can go wrong with pull under a lease."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from isthmus.ownership import TransportKind
from tests.ownership.cluster import Cluster
from tests.ownership.worlds import LEASE, OTHER_TENANT, TENANT


class Interleavings(RuleBasedStateMachine):
    """One step: a request comes, the ordinary course goes on, time passes, or something goes wrong.

    The ordinary course goes several steps at a time, so that most hand-offs come far enough to be hurt.
    """

    @initialize(transport=st.sampled_from([TransportKind.TCP, TransportKind.SHM]), one_tenant=st.booleans())
    def start(self, transport: TransportKind, one_tenant: bool) -> None:
        self.one_tenant = one_tenant
        self.cluster = Cluster(transport=transport, sole_tenant=TENANT if one_tenant else None)

    @rule(other=st.booleans(), choices=st.lists(st.integers(0, 11), max_size=6))
    def begin(self, other: bool, choices: list[int]) -> None:
        self.cluster.spawn(self.cluster.begin(OTHER_TENANT if other and not self.one_tenant else TENANT))
        self.go_on(choices)

    @rule(choices=st.lists(st.integers(0, 11), min_size=1, max_size=12))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            self.one_of(self.cluster.ordinary(), choice)

    @rule(quarters=st.integers(1, 4))
    def time_passes(self, quarters: int) -> None:
        self.cluster.advance(LEASE * (quarters / 4))

    @rule(choice=st.integers(0, 59))
    def something_goes_wrong(self, choice: int) -> None:
        self.one_of(self.cluster.faults(), choice)

    def one_of(self, possible: list, choice: int) -> None:
        if possible:
            possible[choice % len(possible)]()
            self.cluster.check()

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.check()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.drain()
            assert self.cluster.world.holds_nothing(), "I8: a drained system holds something"
            self.cluster.close()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(stateful_step_count=40)
