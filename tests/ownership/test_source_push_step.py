"""`source.step` where the producer writes (push, and send): every event in every state, against tables for a person."""

import pytest
from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import (
    BeginUse,
    CloseGrant,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    OpenGrant,
    StopCompute,
    StopSend,
)
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Complete,
    Confirm,
    Drained,
    Expire,
    Fence,
    PeerLost,
    PeerReincarnated,
    Publish,
    ReadSeen,
    Register,
    Renew,
    ReserveSource,
    Sent,
    SourceEvent,
)
from isthmus.ownership.protocol.source import step
from isthmus.ownership.protocol.states import LogicalOutcome, SourceHandoff, SourcePhase, TriggerMode
from tests.ownership.tables import actual, cells

LEASE = Duration.of_seconds(2)
START = Instant(1_000)
DURING = Instant(START + 5)
LATE = after(START, LEASE)
HOLDER, LIFE, REBORN = WorkerId("decode-0"), Incarnation("b" * 32), Incarnation("e" * 32)
GRANT, EPOCH = GrantId("c" * 32), Epoch(7)
TARGET, TARGET_EPOCH = GrantId("f" * 32), Epoch(3)
BLOCKS = (BlockId(3), BlockId(5))

# A `_t` has something registered to write into. dr_yes: confirmed before our own transfer said that it has ended.
GRID = """
event           none  comp   comp_t held   held_t pub       sent    dr_comp dr_send dr_yes done   failed canc
reserve         comp  Bug    Bug    Bug    Bug    Bug       Bug     Bug     Bug     Bug    Bug    Bug    Bug
register        =/unk comp   =      held   =      =         =       =/end   =/end   =      =      =/end  =/end
register_other  =/unk comp   =/auth held   =/auth =/auth    =/auth  =/end   =/auth  =/auth =/auth =/auth =/end
register_reborn =/unk =/auth =/auth =/auth =/auth =/auth    =/auth  =/auth  =/auth  =/auth =/auth =/auth =/auth
complete        Bug   held   held   Bug    Bug    Bug       Bug     rel/end =/end   Bug    Bug    =/end  =/end
publish         Bug   Bug    Bug    Bug    pub    Bug       Bug     =/end   Bug     Bug    Bug    Bug    =/end
sent            Bug   Bug    Bug    Bug    Bug    pub       Bug     Bug     rel     rel    Bug    =      Bug
sent_bad        Bug   Bug    Bug    Bug    Bug    rel       Bug     Bug     rel     rel    Bug    =      Bug
confirm         =/unk =/unk  =/unk  =/unk  =/unk  drain/yes rel/yes =/unk   =/old   =/yes  =/yes  =/old  =/unk
confirm_forged  =/unk =/unk  =/unk  =/unk  =/unk  =/unk     =/unk   =/unk   =/unk   =/unk  =/unk  =/unk  =/unk
confirm_stale   =/unk =/unk  =/unk  =/unk  =/unk  =/old     =/old   =/unk   =/old   =/old  =/old  =/old  =/unk
confirm_reborn  =/unk =/unk  =/unk  =/unk  =/unk  =/auth    =/auth  =/unk   =/auth  =/auth =/auth =/auth =/unk
renew           =/unk =/unk  =/unk  =/unk  =/unk  pub       pub     =/unk   =/old   =/old  =/old  =/old  =/unk
renew_late      =/unk =/unk  =/unk  =/unk  =/unk  drain/old rel/old =/unk   =/old   =/old  =/old  =/old  =/unk
read            =/unk =/auth =/auth =/auth =/auth =/auth    =/auth  =/auth  =/auth  =/auth =/auth =/auth =/auth
abandon         =/unk drain  drain  rel    rel    drain     rel     =       =       =      =      =      =
abandon_reborn  =/unk =/auth =/auth =/auth =/auth =/auth    =/auth  =/auth  =/auth  =/auth =/auth =/auth =/auth
expire_early    Bug   Bug    Bug    Bug    Bug    Bug       Bug     Bug     Bug     Bug    Bug    Bug    Bug
expire          Bug   Bug    Bug    Bug    Bug    drain     rel     Bug     Bug     Bug    Bug    Bug    Bug
abort           Bug   drain  drain  rel    rel    drain     rel     =       =       =      =      =      =
fence           Bug   drain  drain  rel    rel    drain     rel     =       =       =      =      =      =
drained_engine  Bug   Bug    Bug    Bug    Bug    Bug       Bug     rel     =       =      =      =      =
drained_sends   Bug   Bug    Bug    Bug    Bug    Bug       Bug     =       rel     rel    =      =      =
drained_mute    Bug   Bug    Bug    Bug    Bug    Bug       Bug     =       =       =      =      =      =
lost            Bug   drain  drain  rel    rel    drain     rel     =       =       =      =      =      =
lost_silent     Bug   =      =      =      =      =         =       =       =       =      =      =      =
lost_reborn     Bug   =      =      =      =      =         =       =       =       =      =      =      =
reborn          Bug   drain  drain  rel    rel    drain     rel     =       =       =      =      =      =
reborn_same     Bug   =      =      =      =      =         =       =       =       =      =      =      =
"""

# Send alone: writing begins while the engine computes, so that either may end first. *_left: this one still runs.
SEND_GRID = """
event           comp_t early     dr_both   send_left comp_left
reserve         Bug    Bug       Bug       Bug       Bug
register        =      =         =/end     =/end     =/end
register_other  =/auth =/auth    =/auth    =/auth    =/auth
register_reborn =/auth =/auth    =/auth    =/auth    =/auth
complete        held   pub       drain/end =/end     rel/end
publish         comp   Bug       Bug       Bug       Bug
sent            Bug    Bug       drain     rel       =
sent_bad        Bug    drain     drain     rel       =
confirm         =/unk  =/auth    =/old     =/old     =/old
confirm_forged  =/unk  =/unk     =/unk     =/unk     =/unk
confirm_stale   =/unk  =/old     =/old     =/old     =/old
confirm_reborn  =/unk  =/auth    =/auth    =/auth    =/auth
renew           =/unk  comp      =/old     =/old     =/old
renew_late      =/unk  drain/old =/old     =/old     =/old
read            =/auth =/auth    =/auth    =/auth    =/auth
abandon         drain  drain     =         =         =
abandon_reborn  =/auth =/auth    =/auth    =/auth    =/auth
expire_early    Bug    Bug       Bug       Bug       Bug
expire          Bug    drain     Bug       Bug       Bug
abort           drain  drain     =         =         =
fence           drain  drain     =         =         =
drained_engine  Bug    Bug       drain     =         rel
drained_sends   Bug    Bug       drain     rel       =
drained_mute    Bug    Bug       =         =         =
lost            drain  drain     =         =         =
lost_silent     =      =         =         =         =
lost_reborn     =      =         =         =         =
reborn          drain  drain     =         =         =
reborn_same     =      =         =         =         =
"""


def reserve(mode: TriggerMode = TriggerMode.PUSH) -> ReserveSource:
    return ReserveSource(
        handoff=HandoffId("a" * 32),
        holder=HOLDER,
        holder_incarnation=LIFE,
        tenant=TenantId("t"),
        transport=TransportKind.TCP,
        sole_tenant=True,
        blocks=BLOCKS,
        epoch=EPOCH,
        mode=mode,
    )


REGISTER = Register(grant=TARGET, epoch=TARGET_EPOCH, holder=HOLDER, holder_incarnation=LIFE)
PUBLISH = Publish(now=START, grant=GRANT, lease=LEASE)
CONFIRM = Confirm(now=DURING, grant=GRANT, epoch=EPOCH, holder=HOLDER, holder_incarnation=LIFE)
RENEW = Renew(now=DURING, grant=GRANT, epoch=EPOCH, holder=HOLDER, holder_incarnation=LIFE, lease=LEASE)
ABANDON = Abandon(holder=HOLDER, holder_incarnation=LIFE)
LOST = PeerLost(worker=HOLDER, incarnation=LIFE, evidence=Evidence.FENCED_AND_CLOSED)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)
ENGINE_ENDED, SEND_ENDED = Drained(evidence=Evidence.OWN_WORK_ENDED), Drained(evidence=Evidence.OWN_TRANSFER_ENDED)

EVENTS: dict[str, SourceEvent] = {
    "reserve": reserve(),
    "register": REGISTER,
    "register_other": replace(REGISTER, grant=GrantId("d" * 32)),
    "register_reborn": replace(REGISTER, holder_incarnation=REBORN),
    "complete": Complete(),
    "publish": PUBLISH,
    "sent": Sent(ok=True),
    "sent_bad": Sent(ok=False),
    "confirm": CONFIRM,
    "confirm_forged": replace(CONFIRM, grant=GrantId("d" * 32)),
    "confirm_stale": replace(CONFIRM, epoch=Epoch(6)),
    "confirm_reborn": replace(CONFIRM, holder_incarnation=REBORN),
    "renew": RENEW,
    "renew_late": replace(RENEW, now=LATE),
    "read": ReadSeen(now=DURING, grant=GRANT, epoch=EPOCH, reader=HOLDER),
    "abandon": ABANDON,
    "abandon_reborn": replace(ABANDON, holder_incarnation=REBORN),
    "expire_early": Expire(now=DURING),
    "expire": Expire(now=LATE),
    "abort": ABORT,
    "fence": Fence(),
    "drained_engine": ENGINE_ENDED,
    "drained_sends": SEND_ENDED,
    "drained_mute": Drained(evidence=Evidence.SILENCE),
    "lost": LOST,
    "lost_silent": replace(LOST, evidence=Evidence.SILENCE),
    "lost_reborn": replace(LOST, incarnation=REBORN),
    "reborn": PeerReincarnated(worker=HOLDER, incarnation=REBORN),
    "reborn_same": PeerReincarnated(worker=HOLDER, incarnation=LIFE),
}


def run(*events: SourceEvent, mode: TriggerMode = TriggerMode.PUSH) -> SourceHandoff:
    state, _ = step(None, reserve(mode))
    for event in events:
        state, _ = step(state, event)
    assert state is not None
    return state


WRITING = (REGISTER, Complete(), PUBLISH)


def states(mode: TriggerMode) -> dict[str, SourceHandoff | None]:
    return {
        "none": None,
        "comp": run(mode=mode),
        "comp_t": run(REGISTER, mode=mode),
        "held": run(Complete(), mode=mode),
        "held_t": run(REGISTER, Complete(), mode=mode),
        "pub": run(*WRITING, mode=mode),
        "sent": run(*WRITING, Sent(ok=True), mode=mode),
        "dr_comp": run(ABORT, mode=mode),
        "dr_send": run(*WRITING, ABORT, mode=mode),
        "dr_yes": run(*WRITING, CONFIRM, mode=mode),
        "done": run(*WRITING, Sent(ok=True), CONFIRM, mode=mode),
        "failed": run(*WRITING, Sent(ok=False), mode=mode),
        "canc": run(Complete(), ABORT, mode=mode),
    }


def send_states() -> dict[str, SourceHandoff]:
    early = (REGISTER, PUBLISH)
    return {
        "comp_t": run(REGISTER, mode=TriggerMode.SEND),
        "early": run(*early, mode=TriggerMode.SEND),
        "dr_both": run(*early, ABORT, mode=TriggerMode.SEND),
        "send_left": run(*early, ABORT, ENGINE_ENDED, mode=TriggerMode.SEND),
        "comp_left": run(*early, ABORT, Sent(ok=False), mode=TriggerMode.SEND),
    }


STATES, SEND_STATES = states(TriggerMode.PUSH), send_states()
EVERYWHERE = {**STATES, **SEND_STATES}


@pytest.mark.parametrize(("event", "state", "expected"), list(cells(GRID)))
def test_source_step_does_under_push_what_the_table_says(event: str, state: str, expected: str) -> None:
    assert actual(step, STATES[state], EVENTS[event]) == expected


@pytest.mark.parametrize(("event", "state", "expected"), list(cells(SEND_GRID)))
def test_source_step_does_under_send_what_the_table_says(event: str, state: str, expected: str) -> None:
    assert actual(step, SEND_STATES[state], EVENTS[event]) == expected


def test_send_is_push_that_may_begin_before_all_is_filled_and_nothing_else() -> None:
    sending = states(TriggerMode.SEND)
    different = {
        (event, state)
        for event, state, expected in cells(GRID)
        if actual(step, sending[state], EVENTS[event]) != expected
    }
    assert different == {("publish", "comp_t")}


def test_the_tables_have_every_state_and_every_event() -> None:
    assert {(event, state) for event, state, _ in cells(GRID)} == {(e, s) for e in EVENTS for s in STATES}
    assert {(event, state) for event, state, _ in cells(SEND_GRID)} == {(e, s) for e in EVENTS for s in SEND_STATES}
    reached = {state.phase for state in STATES.values() if state is not None}
    # Nobody reads a source that is written from: it is exposed to nobody, and nobody's access to it can be in doubt.
    assert reached == set(SourcePhase) - {SourcePhase.EXPOSED, SourcePhase.EXPIRED, SourcePhase.IN_DOUBT}


@pytest.mark.parametrize("state", [name for name in EVERYWHERE if name != "none"])
def test_a_source_that_is_written_from_is_freed_only_once_neither_engine_nor_transfer_touches_it(state: str) -> None:
    for name, event in EVENTS.items():
        if actual(step, EVERYWHERE[state], event) != "Bug":
            after_, effects = step(EVERYWHERE[state], event)
            assert after_ is not None
            freed = any(isinstance(effect, FreeBlocks) for effect in effects)
            assert not (freed and (after_.computing or after_.sending)), name
            assert after_.ended == (after_.blocks == ()), name


@pytest.mark.parametrize("state", [name for name in EVERYWHERE if name != "none"])
def test_I4_no_grant_is_ever_on_the_blocks_of_a_source_that_is_written_from(state: str) -> None:
    for event in EVENTS.values():
        if actual(step, EVERYWHERE[state], event) != "Bug":
            assert not any(isinstance(e, OpenGrant | CloseGrant) for e in step(EVERYWHERE[state], event)[1])


COURSES: dict[str, tuple[SourceEvent, ...]] = {
    "all goes well": (REGISTER, Complete(), PUBLISH, Sent(ok=True), CONFIRM),
    "confirmed before the transfer says that it has ended": (REGISTER, Complete(), PUBLISH, CONFIRM, Sent(ok=True)),
    "sent while it is computed": (REGISTER, PUBLISH, Complete(), Sent(ok=True), CONFIRM),
    "given up in both, engine ends first": (REGISTER, PUBLISH, ABORT, Complete(), Sent(ok=True)),
    "given up in both, transfer ends first": (REGISTER, PUBLISH, LOST, Sent(ok=False), ENGINE_ENDED),
    "the transfer fails while it is computed": (REGISTER, PUBLISH, Sent(ok=False), ENGINE_ENDED, Complete()),
    "lease over while sending": (REGISTER, Complete(), PUBLISH, Expire(now=LATE), SEND_ENDED, Sent(ok=False)),
    "never registered": (Complete(), ABANDON),
}


@pytest.mark.parametrize("course", COURSES)
def test_each_use_of_the_blocks_begins_and_ends_once(course: str) -> None:
    state, effects = step(None, reserve(TriggerMode.SEND))
    seen = list(effects)
    for event in COURSES[course]:
        state, effects = step(state, event)
        seen += effects
    assert state is not None
    assert state.ended
    begun = sum(isinstance(effect, MarkFilling | BeginUse) for effect in seen)
    ended = sum(
        isinstance(effect, EndUse) or (isinstance(effect, MarkResident) and not effect.in_use) for effect in seen
    )
    assert begun == ended
    assert sum(isinstance(effect, FreeBlocks) for effect in seen) == 1


def test_giving_up_asks_whoever_works_to_stop_and_nobody_else() -> None:
    wanted = {
        "comp_t": {StopCompute},
        "pub": {StopSend},
        "early": {StopCompute, StopSend},
        "sent": set(),
        "held": set(),
    }
    for state, stops in wanted.items():
        _, effects = step(EVERYWHERE[state], ABORT)
        assert {type(effect) for effect in effects if isinstance(effect, StopCompute | StopSend)} == stops


def test_I6_a_renewal_never_shortens_a_lease_and_keeps_a_long_write_alive() -> None:
    state = STATES["pub"]
    assert state is not None
    short, _ = step(state, replace(RENEW, lease=Duration(1)))
    long, _ = step(state, RENEW)
    assert short is not None
    assert long is not None
    assert short.lease_ends == state.lease_ends
    assert long.lease_ends == after(DURING, LEASE)
    with pytest.raises(Bug):
        step(long, Expire(now=LATE))


def test_sending_what_is_not_registered_is_a_bug_that_says_so() -> None:
    with pytest.raises(Bug, match="nothing is registered"):
        step(STATES["held"], PUBLISH)
