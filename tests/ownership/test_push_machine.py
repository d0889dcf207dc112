"""Random events on either side, in every mode and over every transport, against what really goes on (`sides.py`).

No legal sequence is a Bug, the ledger's sums hold, nothing is freed under anybody, tombstones only answer, and what is
drained holds nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace

from isthmus.core.clock import after
from isthmus.core.errors import Bug
from isthmus.ownership.protocol import destination_ends, destination_push, source_push
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.events import Abort, Doubt, Drained, Expire
from isthmus.ownership.protocol.states import (
    DestinationPhase,
    LogicalOutcome,
    PartStage,
    SourceHandoff,
    SourcePhase,
    TriggerMode,
)
from tests.ownership.destination_side import Destination
from tests.ownership.sides import LEASE, PEERS
from tests.ownership.source_side import Source

# The ordinary course goes several steps at a time, so that most hand-offs come far enough to be hurt.
PROGRESS = st.lists(st.integers(0, 11), min_size=1, max_size=16)


class Machine(RuleBasedStateMachine):
    """One hand-off's two sides; each is driven alone, by whatever its peer might say."""

    @initialize(mode=st.sampled_from(TriggerMode), transport=st.sampled_from(TransportKind), sole_tenant=st.booleans())
    def start(self, mode: TriggerMode, transport: TransportKind, sole_tenant: bool) -> None:
        self.new_source = partial(Source, mode, transport, sole_tenant=sole_tenant)
        self.new_destination = partial(Destination, mode, transport)
        self.source, self.destination = self.new_source(), self.new_destination()

    @rule(choices=PROGRESS)
    def the_producer_goes_on(self, choices: list[int]) -> None:
        if self.source.state.ended:
            self.hold_nothing(self.source)
            self.source = self.new_source()
        for choice in choices:
            self.one_of(self.source, self.source.ordinary(), choice)

    @rule(choices=PROGRESS)
    def the_consumer_goes_on(self, choices: list[int]) -> None:
        if self.destination.state.ended:
            self.hold_nothing(self.destination)
            self.destination = self.new_destination()
        for choice in choices:
            self.one_of(self.destination, self.destination.ordinary(), choice)

    @rule(choice=st.integers(0, 40), at_source=st.booleans())
    def anything_happens(self, choice: int, at_source: bool) -> None:
        side: Any = self.source if at_source else self.destination
        self.one_of(side, list(side.possible()), choice)

    @rule(quarters=st.integers(1, 5), reaps=st.booleans())
    def time_passes(self, quarters: int, reaps: bool) -> None:
        """The reaper may be late: then a message under a lease that has run out comes first."""
        for side in (self.source, self.destination):
            side.now = after(side.now, LEASE * (quarters / 4))
            if reaps:
                self.one_of(side, [event for event in side.possible() if isinstance(event, Expire)], 0)

    @rule(choice=st.integers(0, 11), at_source=st.booleans())
    def an_end_comes(self, choice: int, at_source: bool) -> None:
        side: Any = self.source if at_source else self.destination
        self.one_of(side, [event for event in side.possible() if isinstance(event, (Abort, Doubt, Drained))], choice)

    @rule(choice=st.integers(0, 20), at_source=st.booleans())
    def a_peer_says_the_same_twice(self, choice: int, at_source: bool) -> None:
        side: Any = self.source if at_source else self.destination
        said = [event for event in side.possible() if isinstance(event, PEERS)]
        event = said[choice % len(said)]
        side.happen(event)
        if not side.state.ended:
            side.happen(event)

    def one_of(self, side: Any, possible: list[Any], choice: int) -> None:
        if possible:
            side.happen(possible[choice % len(possible)])

    def hold_nothing(self, side: Source | Destination) -> None:
        held = side.ledger.held()
        assert held.blocks == held.staging_bytes == held.grants == held.active == 0, "I8: it holds something"

    def teardown(self) -> None:
        if hasattr(self, "source"):
            for side in (self.source, self.destination):
                side.end()
                assert side.state.ended, "I8: a drained system still has a hand-off"
                self.hold_nothing(side)


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=30)


# the machine is worth what it finds: without a guard it must go red

Patch = pytest.MonkeyPatch


def free_exposed_memory_at_once(patch: Patch) -> None:
    """The lease's end is taken for the writer's."""

    def settle(state: Any, evidence: Evidence, real: Any = destination_ends.settle) -> Any:
        return real(destination_ends.end_parts(state, own=False, peer=state.lease_ends is None), evidence)

    patch.setattr(destination_push, "settle", settle)
    patch.setattr(destination_ends, "settle", settle)


def free_under_our_own_transfer(patch: Patch) -> None:
    """Giving up does not wait for what we are sending."""

    def give_up(state: SourceHandoff, outcome: LogicalOutcome, real: Any = source_push._give_up) -> Any:
        return real(replace(state, sending=False), outcome)

    patch.setattr(source_push, "_give_up", give_up)


def believe_our_own_transfer_of_their_writes(patch: Patch) -> None:
    patch.setattr(destination_ends, "drains_pushed", lambda transport, evidence: True)


def never_close_a_grant(patch: Patch) -> None:
    patch.setattr(destination_push, "closing", lambda before, stepped: stepped)


def let_writes_go_on(patch: Patch) -> None:
    """A part that has been said to be complete may be written again."""
    patch.setattr(destination_push, "peer_active", lambda state, part: part.stage < PartStage.VERIFIED)


GUARDS: list[Callable[[Patch], None]] = [
    free_exposed_memory_at_once,
    free_under_our_own_transfer,
    believe_our_own_transfer_of_their_writes,
    never_close_a_grant,
    let_writes_go_on,
]


@pytest.mark.parametrize("remove_guard", GUARDS)
def test_random_events_find_a_missing_guard(remove_guard: Callable[[Patch], None], monkeypatch: Patch) -> None:
    remove_guard(monkeypatch)
    search = settings(
        max_examples=400,
        stateful_step_count=30,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        database=None,
        derandomize=True,
    )
    with pytest.raises((AssertionError, Bug)):
        run_state_machine_as_test(Machine, settings=search)


def test_the_machine_comes_to_every_phase_of_either_side_in_every_mode() -> None:
    """Else what it does not find says nothing."""
    seen: dict[TriggerMode, set[str]] = {mode: set() for mode in TriggerMode}

    class Watched(Machine):
        def one_of(self, side: Any, possible: list[Any], choice: int) -> None:
            super().one_of(side, possible, choice)
            seen[side.mode].add(f"{type(side).__name__} {side.state.phase}")

    search = settings(
        max_examples=1500, stateful_step_count=30, phases=[Phase.generate], database=None, derandomize=True
    )
    run_state_machine_as_test(Watched, settings=search)
    every = {f"Source {phase}" for phase in SourcePhase} | {f"Destination {phase}" for phase in DestinationPhase}
    assert seen[TriggerMode.PULL] == every - {"Destination exposed"}
    of_a_reader = {"Source exposed", "Source expired", "Source in_doubt"}
    assert seen[TriggerMode.PUSH] == seen[TriggerMode.SEND] == every - of_a_reader
