"""Both owners and both ledgers under random interleavings of everything that can go wrong with pull under a lease."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from isthmus.core.ids import HandoffId
from isthmus.ownership import SourcePhase, TransportKind
from tests.ownership.cluster import Cluster, Message
from tests.ownership.worlds import LEASE, OTHER_TENANT, TENANT


class Interleavings(RuleBasedStateMachine):
    """One step is one thing that happens to one of the two workers, or to the network between them."""

    @initialize(transport=st.sampled_from([TransportKind.TCP, TransportKind.SHM]), one_tenant=st.booleans())
    def start(self, transport: TransportKind, one_tenant: bool) -> None:
        self.one_tenant = one_tenant
        self.cluster = Cluster(transport=transport, sole_tenant=TENANT if one_tenant else None)

    def pick(self, data: st.DataObject, handoffs: list[HandoffId]) -> HandoffId:
        return data.draw(st.sampled_from(handoffs))

    def message(self, data: st.DataObject) -> Message:
        index = data.draw(st.integers(0, len(self.cluster.wire) - 1))
        return self.cluster.wire.pop(index)

    # the ordinary course, several steps at a time, so that most hand-offs come far enough to be hurt

    @rule(other=st.booleans())
    def begin(self, other: bool) -> None:
        self.cluster.spawn(self.cluster.begin(OTHER_TENANT if other and not self.one_tenant else TENANT))

    @rule(choices=st.lists(st.integers(0, 11), min_size=4, max_size=20))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            possible = self.cluster.ordinary()
            if possible:
                possible[choice % len(possible)]()
                self.cluster.check()

    # what goes wrong

    @precondition(lambda self: self.cluster.wire)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        message = self.message(data)
        self.cluster.wire.append(message)
        self.cluster.deliver(message)

    @precondition(lambda self: self.cluster.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.message(data)

    @rule(quarters=st.integers(1, 5))
    def time_passes(self, quarters: int) -> None:
        self.cluster.advance(LEASE * (quarters / 4))

    @precondition(lambda self: self.cluster.world.destination.snapshot())
    @rule(data=st.data())
    def consumer_gives_up(self, data: st.DataObject) -> None:
        rows = self.cluster.world.destination.snapshot()
        self.cluster.give_up(self.pick(data, [HandoffId(str(row["handoff"])) for row in rows]))

    @precondition(lambda self: self.cluster.world.source.snapshot())
    @rule(data=st.data())
    def producer_gives_up(self, data: st.DataObject) -> None:
        rows = self.cluster.world.source.snapshot()
        self.cluster.world.source.abort(self.pick(data, [HandoffId(str(row["handoff"])) for row in rows]))

    @precondition(lambda self: self.cluster.phases(SourcePhase.DRAINING))
    @rule(data=st.data())
    def engine_stops(self, data: st.DataObject) -> None:
        self.cluster.engine_stops(self.pick(data, self.cluster.phases(SourcePhase.DRAINING)))

    @rule()
    def consumer_dies(self) -> None:
        self.cluster.kill_consumer()

    @precondition(lambda self: self.cluster.dead)
    @rule()
    def registry_establishes_a_death(self) -> None:
        self.cluster.establish_death(self.cluster.dead.pop())

    # what must hold

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.check()

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for life in self.cluster.dead:
            self.cluster.establish_death(life)
        self.cluster.drain()
        assert self.cluster.world.holds_nothing(), "I8: a drained system holds something"
        self.cluster.close()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(stateful_step_count=50)
