"""`destination.step` is total: every event in every state, against a table that a person can check."""

import pytest
from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.destination import step
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import EndUse, FreeBlocks, MarkResident, ReleaseStaging
from isthmus.ownership.protocol.events import (
    Abort,
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Doubt,
    Drained,
    Expire,
    Expose,
    Fence,
    Finish,
    Install,
    PeerLost,
    PeerReincarnated,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, LogicalOutcome
from tests.ownership.tables import actual, cells

PRODUCER, LIFE = WorkerId("prefill-0"), Incarnation("b" * 32)
GRANT, EPOCH, GRANT_EPOCH = GrantId("c" * 32), Epoch(7), Epoch(41)
BLOCKS = (BlockId(3), BlockId(5))
NOW, LEASE = Instant(5), Duration.of_seconds(2)

GRID = """
event          none  rsvd    recv   conv   verif  sure     inst   abort    doubt  drain  done   failed
reserve        rsvd  Bug     Bug    Bug    Bug    Bug      Bug    Bug      Bug    Bug    Bug    Bug
submit         Bug   recv    Bug    Bug    Bug    Bug      Bug    =/end    =/end  Bug    Bug    =/end
submit_tenant  Bug   =/auth  Bug    Bug    Bug    Bug      Bug    =/end    =/end  Bug    Bug    =/end
arrived        Bug   Bug     conv   Bug    Bug    Bug      Bug    rel/end  rel/end Bug    Bug    =/end
convert_done   Bug   Bug     Bug    verif  Bug    Bug      Bug    rel/end  rel/end Bug    Bug    =/end
verify_ok      Bug   Bug     Bug    Bug    verif  Bug      Bug    rel/end  rel/end Bug    Bug    =/end
verify_bad     Bug   Bug     Bug    Bug    rel    Bug      Bug    rel/end  rel/end Bug    Bug    =/end
confirmed      Bug   Bug     Bug    Bug    Bug    inst     =      =/end    =/end  =/end  =/end  =/end
confirmed_old  Bug   Bug     Bug    Bug    Bug    rel/old  =/end  =/end    =/end  =/end  =/end  =/end
refused        Bug   Bug     Bug    abort  abort  rel      =      =        =      =      =      =
finish         Bug   Bug     Bug    Bug    Bug    Bug      rel    Bug      Bug    rel    =      Bug
abort          Bug   rel     abort  abort  abort  rel      drain  =        =      =      =      =
fence          Bug   rel     abort  abort  abort  rel      drain  =        =      =      =      =
drained        Bug   Bug     Bug    Bug    Bug    Bug      Bug    rel      rel    Bug    =      =
drained_engine Bug   Bug     Bug    Bug    Bug    Bug      Bug    Bug      rel    rel    =      =
drained_mute   Bug   Bug     Bug    Bug    Bug    Bug      Bug    Bug      Bug    Bug    =      =
doubt          Bug   Bug     Bug    Bug    Bug    Bug      Bug    doubt    Bug    Bug    Bug    Bug
lost           Bug   rel     abort  abort  abort  rel      =      =        rel    =      =      =
lost_silent    Bug   =       =      =      =      =        =      =        =      =      =      =
lost_reborn    Bug   =       =      =      =      =        =      =        =      =      =      =
reborn         Bug   rel     abort  abort  abort  rel      =      =        =      =      =      =
reborn_same    Bug   =       =      =      =      =        =      =        =      =      =      =
write          Bug   =/auth  =/auth =/auth =/auth =/auth   =/auth =/auth   =/auth =/auth =/auth =/auth
written        Bug   =/auth  =/auth =/auth =/auth =/auth   =/auth =/auth   =/auth =/auth =/auth =/auth
expose         Bug   Bug     Bug    Bug    Bug    Bug      Bug    Bug      Bug    Bug    Bug    Bug
install        Bug   Bug     Bug    Bug    Bug    Bug      Bug    Bug      Bug    Bug    Bug    Bug
expire         Bug   Bug     Bug    Bug    Bug    Bug      Bug    Bug      Bug    Bug    Bug    Bug
"""

RESERVE = ReserveDestination(
    handoff=HandoffId("a" * 32),
    producer=PRODUCER,
    producer_incarnation=LIFE,
    tenant=TenantId("t"),
    transport=TransportKind.TCP,
    blocks=BLOCKS,
    staging_bytes=9,
    epoch=EPOCH,
)
SUBMIT = Submit(tenant=TenantId("t"), grant=GRANT, epoch=GRANT_EPOCH)
YES = Confirmed(epoch=GRANT_EPOCH)
LOST = PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.FENCED_AND_CLOSED)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)

EVENTS: dict[str, DestinationEvent] = {
    "reserve": RESERVE,
    "submit": SUBMIT,
    "submit_tenant": replace(SUBMIT, tenant=TenantId("other")),
    "arrived": Arrived(),
    "convert_done": ConvertDone(),
    "verify_ok": VerifyOk(),
    "verify_bad": VerifyBad(),
    "confirmed": YES,
    "confirmed_old": Confirmed(epoch=Epoch(40)),
    "refused": ConfirmRefused(),
    "finish": Finish(),
    "abort": ABORT,
    "fence": Fence(),
    "drained": Drained(evidence=Evidence.OWN_TRANSFER_ENDED),
    "drained_engine": Drained(evidence=Evidence.OWN_WORK_ENDED),
    "drained_mute": Drained(evidence=Evidence.SILENCE),
    "doubt": Doubt(),
    "lost": LOST,
    "lost_silent": replace(LOST, evidence=Evidence.SILENCE),
    "lost_reborn": replace(LOST, incarnation=Incarnation("e" * 32)),
    "reborn": PeerReincarnated(worker=PRODUCER, incarnation=Incarnation("e" * 32)),
    "reborn_same": PeerReincarnated(worker=PRODUCER, incarnation=LIFE),
    "write": WriteSeen(now=NOW, grant=GRANT, epoch=EPOCH, writer=PRODUCER, lease=LEASE),
    "written": Written(
        now=NOW,
        grant=GRANT,
        epoch=EPOCH,
        writer=PRODUCER,
        writer_incarnation=LIFE,
        tenant=TenantId("t"),
        evidence=Evidence.OWN_TRANSFER_ENDED,
    ),
    "expose": Expose(now=NOW, grants=(GRANT,), lease=LEASE),
    "install": Install(),
    "expire": Expire(now=NOW),
}


def run(*events: DestinationEvent) -> DestinationHandoff:
    state, _ = step(None, RESERVE)
    for event in events:
        state, _ = step(state, event)
    return state


VERIFIED = (SUBMIT, Arrived(), ConvertDone(), VerifyOk())

STATES: dict[str, DestinationHandoff | None] = {
    "none": None,
    "rsvd": run(),
    "recv": run(SUBMIT),
    "conv": run(SUBMIT, Arrived()),
    "verif": run(SUBMIT, Arrived(), ConvertDone()),
    "sure": run(*VERIFIED),
    "inst": run(*VERIFIED, YES),
    "abort": run(SUBMIT, ABORT),
    "doubt": run(SUBMIT, ABORT, Doubt()),
    "drain": run(*VERIFIED, YES, ABORT),
    "done": run(*VERIFIED, YES, Finish()),
    "failed": run(SUBMIT, ABORT, Drained(evidence=Evidence.OWN_TRANSFER_ENDED)),
}


@pytest.mark.parametrize(("event", "state", "expected"), list(cells(GRID)))
def test_destination_step_does_what_the_table_says(event: str, state: str, expected: str) -> None:
    assert actual(step, STATES[state], EVENTS[event]) == expected


def test_the_table_of_the_destination_has_every_state_and_every_event() -> None:
    assert {(event, state) for event, state, _ in cells(GRID)} == {(e, s) for e in EVENTS for s in STATES}
    reached = {state.phase for state in STATES.values() if state is not None}
    assert reached == set(DestinationPhase) - {DestinationPhase.EXPOSED}  # under pull it is the source that is exposed


def test_I9_only_a_confirmation_of_verified_bytes_reaches_installed() -> None:
    installing = {
        (event, state)
        for event in EVENTS
        for state in STATES
        if state != "inst" and actual(step, STATES[state], EVENTS[event]).startswith("inst")
    }
    assert installing == {("confirmed", "sure")}


def test_I9_installing_unverified_bytes_is_a_bug() -> None:
    with pytest.raises(Bug, match="before its bytes were verified"):
        step(STATES["verif"], YES)


def test_I1_a_confirmation_of_another_epoch_frees_instead_of_installing() -> None:
    state, effects = step(STATES["sure"], EVENTS["confirmed_old"])
    assert (state.phase, state.outcome) == (DestinationPhase.RELEASED, LogicalOutcome.FAILED)
    assert not any(isinstance(effect, MarkResident) for effect in effects)


@pytest.mark.parametrize("last", ["drained", "arrived", "verify_bad"])
def test_an_aborted_read_is_freed_when_our_own_transfer_has_ended_however_it_ends(last: str) -> None:
    state, effects = step(STATES["abort"], EVENTS[last])
    assert state.phase is DestinationPhase.RELEASED
    free = FreeBlocks(blocks=BLOCKS, epoch=EPOCH, evidence=Evidence.OWN_TRANSFER_ENDED)
    assert effects[:3] == (EndUse(blocks=BLOCKS, epoch=EPOCH), free, ReleaseStaging(epoch=EPOCH))


@pytest.mark.parametrize("start", [name for name in STATES if name not in ("none", "done", "failed")])
def test_staging_is_released_once_on_every_way_to_the_end(start: str) -> None:
    state, released = STATES[start], 0
    assert state is not None
    after_commit = start in ("inst", "drain")
    evidence = Evidence.OWN_WORK_ENDED if after_commit else Evidence.OWN_TRANSFER_ENDED
    for event in (ABORT, Drained(evidence=evidence)):
        if not state.ended:
            state, effects = step(state, event)
            released += sum(isinstance(effect, ReleaseStaging) for effect in effects)
    assert state.ended
    assert released == (0 if after_commit else 1)


def test_what_succeeded_stays_succeeded_when_decode_is_stopped() -> None:
    drain = STATES["drain"]
    assert drain is not None
    assert drain.outcome is LogicalOutcome.SUCCEEDED


@pytest.mark.parametrize("stages", [(Arrived(),), (Arrived(), ConvertDone())])
def test_a_conversion_or_a_check_of_ours_is_never_in_doubt(stages: tuple[DestinationEvent, ...]) -> None:
    """A producer's death would then free what we still write."""
    with pytest.raises(Bug, match="doubt"):
        step(run(SUBMIT, *stages, ABORT), Doubt())
