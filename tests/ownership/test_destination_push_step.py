"""`destination.step` where the producer writes: every event in every state, against a table that a person can check.

Push and send are the same here: when the producer begins is its own affair.
"""

import pytest
from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.destination import step
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import CloseGrant, FreeBlocks, OpenGrant, QuarantineBlocks, ReleaseStaging
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
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, LogicalOutcome, TriggerMode
from tests.ownership.tables import actual, cells

PRODUCER, LIFE, REBORN = WorkerId("prefill-0"), Incarnation("b" * 32), Incarnation("e" * 32)
GRANT, FORGED, EPOCH, STALE = GrantId("c" * 32), GrantId("d" * 32), Epoch(7), Epoch(6)
BLOCKS = (BlockId(3), BlockId(5))
LEASE = Duration.of_seconds(2)
START, DURING = Instant(1_000), Instant(1_005)
LATE = after(DURING, LEASE)

# seen: exposed. ab_peer: given up while the producer may write. ab_own: while we convert. canc: before it was exposed.
GRID = """
event        rsvd  seen      recv      conv   verif  sure   inst   ab_peer ab_own  doubt   drain  done   failed canc
reserve      Bug   Bug       Bug       Bug    Bug    Bug    Bug    Bug     Bug     Bug     Bug    Bug    Bug    Bug
expose       seen  Bug       Bug       Bug    Bug    Bug    Bug    =/end   =/end   =/end   Bug    Bug    =/end  =/end
write        =/unk recv      =         =/old  =/old  =/old  =/old  =/old   =/old   =/old   =/old  =/old  =/old  =/unk
write_late   =/unk doubt/old doubt/old =/old  =/old  =/old  =/old  =/old   =/old   =/old   =/old  =/old  =/old  =/unk
write_forged =/unk =/unk     =/unk     =/unk  =/unk  =/unk  =/unk  =/unk   =/unk   =/unk   =/unk  =/unk  =/unk  =/unk
write_stale  =/unk =/old     =/old     =/old  =/old  =/old  =/old  =/old   =/old   =/old   =/old  =/old  =/old  =/unk
write_alien  =/unk =/auth    =/auth    =/auth =/auth =/auth =/auth =/auth  =/auth  =/auth  =/auth =/auth =/auth =/unk
said         =/unk conv      conv      =      =      =      =      rel/end =/end   rel/end =      =      =/end  =/unk
said_late    =/unk rel/old   rel/old   =      =      =      =      rel/end =/end   rel/end =      =      =/end  =/unk
said_tenant  =/unk rel/auth  rel/auth  =      =      =      =      rel/end =/end   rel/end =      =      =/end  =/unk
said_forged  =/unk =/unk     =/unk     =/unk  =/unk  =/unk  =/unk  =/unk   =/unk   =/unk   =/unk  =/unk  =/unk  =/unk
said_stale   =/unk =/old     =/old     =/old  =/old  =/old  =/old  =/old   =/old   =/old   =/old  =/old  =/old  =/unk
said_reborn  =/unk =/auth    =/auth    =/auth =/auth =/auth =/auth =/auth  =/auth  =/auth  =/auth =/auth =/auth =/unk
convert_done Bug   Bug       Bug       verif  Bug    Bug    Bug    =/end   rel/end =/end   Bug    Bug    =/end  =/end
verify_ok    Bug   Bug       Bug       Bug    verif  Bug    Bug    =/end   rel/end =/end   Bug    Bug    =/end  =/end
verify_bad   Bug   Bug       Bug       Bug    rel    Bug    Bug    =/end   rel/end =/end   Bug    Bug    =/end  =/end
install      Bug   Bug       Bug       Bug    Bug    inst   =      =/end   =/end   =/end   =      =      =/end  =/end
finish       Bug   Bug       Bug       Bug    Bug    Bug    rel    Bug     Bug     Bug     rel    =      Bug    Bug
abort        rel   abort     abort     abort  abort  rel    drain  =       =       =       =      =      =      =
fence        rel   abort     abort     abort  abort  rel    drain  =       =       =       =      =      =      =
expire_early Bug   Bug       Bug       Bug    Bug    Bug    Bug    Bug     Bug     Bug     Bug    Bug    Bug    Bug
expire       Bug   doubt     doubt     Bug    Bug    Bug    Bug    doubt   Bug     Bug     Bug    Bug    Bug    Bug
doubt        Bug   Bug       Bug       Bug    Bug    Bug    Bug    doubt   abort   Bug     Bug    Bug    Bug    Bug
drained_own  Bug   Bug       Bug       Bug    Bug    Bug    Bug    =       rel     =       rel    =      =      =
drained_peer Bug   Bug       Bug       Bug    Bug    Bug    Bug    rel     =       rel     Bug    =      =      =
drained_mute Bug   Bug       Bug       Bug    Bug    Bug    Bug    =       =       =       Bug    =      =      =
lost         rel   rel       rel       =      =      =      =      rel     =       rel     =      =      =      =
lost_silent  =     =         =         =      =      =      =      =       =       =       =      =      =      =
lost_reborn  =     =         =         =      =      =      =      =       =       =       =      =      =      =
reborn       rel   abort     abort     =      =      =      =      =       =       =       =      =      =      =
reborn_same  =     =         =         =      =      =      =      =       =       =       =      =      =      =
"""


def reserve(mode: TriggerMode = TriggerMode.PUSH, transport: TransportKind = TransportKind.TCP) -> ReserveDestination:
    return ReserveDestination(
        handoff=HandoffId("a" * 32),
        producer=PRODUCER,
        producer_incarnation=LIFE,
        tenant=TenantId("t"),
        transport=transport,
        blocks=BLOCKS,
        staging_bytes=9,
        epoch=EPOCH,
        mode=mode,
    )


EXPOSE = Expose(now=START, grants=(GRANT,), lease=LEASE)
WRITE = WriteSeen(now=DURING, grant=GRANT, epoch=EPOCH, writer=PRODUCER, lease=LEASE)
WRITTEN = Written(
    now=DURING,
    grant=GRANT,
    epoch=EPOCH,
    writer=PRODUCER,
    writer_incarnation=LIFE,
    tenant=TenantId("t"),
    evidence=Evidence.OWN_TRANSFER_ENDED,
)
LOST = PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.FENCED_AND_CLOSED)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)
OWN_ENDED, PEER_ENDED = Drained(evidence=Evidence.OWN_WORK_ENDED), Drained(evidence=Evidence.OWN_TRANSFER_ENDED)

EVENTS: dict[str, DestinationEvent] = {
    "reserve": reserve(),
    "expose": EXPOSE,
    "write": WRITE,
    "write_late": replace(WRITE, now=LATE),
    "write_forged": replace(WRITE, grant=FORGED),
    "write_stale": replace(WRITE, epoch=STALE),
    "write_alien": replace(WRITE, writer=WorkerId("prefill-1")),
    "said": WRITTEN,
    "said_late": replace(WRITTEN, now=LATE),
    "said_tenant": replace(WRITTEN, tenant=TenantId("other")),
    "said_forged": replace(WRITTEN, grant=FORGED),
    "said_stale": replace(WRITTEN, epoch=STALE),
    "said_reborn": replace(WRITTEN, writer_incarnation=REBORN),
    "convert_done": ConvertDone(),
    "verify_ok": VerifyOk(),
    "verify_bad": VerifyBad(),
    "install": Install(),
    "finish": Finish(),
    "abort": ABORT,
    "fence": Fence(),
    "expire_early": Expire(now=DURING),
    "expire": Expire(now=LATE),
    "doubt": Doubt(),
    "drained_own": OWN_ENDED,
    "drained_peer": PEER_ENDED,
    "drained_mute": Drained(evidence=Evidence.SILENCE),
    "lost": LOST,
    "lost_silent": replace(LOST, evidence=Evidence.SILENCE),
    "lost_reborn": replace(LOST, incarnation=REBORN),
    "reborn": PeerReincarnated(worker=PRODUCER, incarnation=REBORN),
    "reborn_same": PeerReincarnated(worker=PRODUCER, incarnation=LIFE),
}
OF_PULL_OURS = (Submit(tenant=TenantId("t"), grant=GRANT, epoch=Epoch(41)), Arrived())
OF_PULL_PEERS = (Confirmed(epoch=EPOCH), ConfirmRefused())


def run(
    *events: DestinationEvent, mode: TriggerMode = TriggerMode.PUSH, transport: TransportKind = TransportKind.TCP
) -> DestinationHandoff:
    state, _ = step(None, reserve(mode, transport))
    for event in events:
        state, _ = step(state, event)
    return state


VERIFIED = (EXPOSE, WRITE, WRITTEN, ConvertDone(), VerifyOk())
WAYS: dict[str, tuple[DestinationEvent, ...]] = {
    "rsvd": (),
    "seen": (EXPOSE,),
    "recv": (EXPOSE, WRITE),
    "conv": (EXPOSE, WRITE, WRITTEN),
    "verif": (EXPOSE, WRITE, WRITTEN, ConvertDone()),
    "sure": VERIFIED,
    "inst": (*VERIFIED, Install()),
    "ab_peer": (EXPOSE, WRITE, ABORT),
    "ab_own": (EXPOSE, WRITE, WRITTEN, ABORT),
    "doubt": (EXPOSE, WRITE, Expire(now=LATE)),
    "drain": (*VERIFIED, Install(), ABORT),
    "done": (*VERIFIED, Install(), Finish()),
    "failed": (EXPOSE, WRITE, ABORT, PEER_ENDED),
    "canc": (ABORT,),
}


def states(mode: TriggerMode = TriggerMode.PUSH) -> dict[str, DestinationHandoff]:
    return {name: run(*way, mode=mode) for name, way in WAYS.items()}


STATES = states()


@pytest.mark.parametrize(("event", "state", "expected"), list(cells(GRID)))
def test_destination_step_does_under_push_what_the_table_says(event: str, state: str, expected: str) -> None:
    assert actual(step, STATES[state], EVENTS[event]) == expected


def test_destination_step_does_the_same_under_send() -> None:
    sent = states(TriggerMode.SEND)
    assert not [cell for cell in cells(GRID) if actual(step, sent[cell[1]], EVENTS[cell[0]]) != cell[2]]


def test_the_table_has_every_state_and_every_event() -> None:
    assert {(event, state) for event, state, _ in cells(GRID)} == {(e, s) for e in EVENTS for s in STATES}
    assert {state.phase for state in STATES.values()} == set(DestinationPhase)


@pytest.mark.parametrize("state", WAYS)
def test_what_is_of_pull_alone_is_a_bug_of_ours_and_refused_to_a_peer(state: str) -> None:
    assert [actual(step, STATES[state], event) for event in OF_PULL_OURS] == ["Bug", "Bug"]
    assert [actual(step, STATES[state], event) for event in OF_PULL_PEERS] == ["=/auth", "=/auth"]


def test_nothing_happens_to_a_hand_off_that_was_never_reserved() -> None:
    possible = {name for name, event in EVENTS.items() if actual(step, None, event) != "Bug"}
    assert possible == {"reserve"}


def test_I9_only_an_install_of_verified_bytes_reaches_installed() -> None:
    reaching = {cell[:2] for cell in cells(GRID) if cell[2].startswith("inst")}
    assert reaching == {("install", "sure")}
    with pytest.raises(Bug, match="before its bytes were verified"):
        step(STATES["verif"], Install())


@pytest.mark.parametrize("start", ["seen", "recv"])
def test_I4_every_way_out_of_an_open_grant_closes_it_once(start: str) -> None:
    for ending in (
        "said",
        "said_late",
        "said_tenant",
        "write_late",
        "expire",
        "abort",
        "fence",
        "lost",
        "reborn",
    ):
        second, effects = step(STATES[start], EVENTS[ending])
        assert not second.grant_open
        closed = sum(isinstance(effect, CloseGrant) for effect in effects)
        for event in EVENTS.values():  # whatever comes next closes nothing any more
            if actual(step, second, event) != "Bug":
                closed += sum(isinstance(effect, CloseGrant) for effect in step(second, event)[1])
        assert closed == 1, ending


def test_I4_a_grant_opens_only_on_exposure() -> None:
    for name, state in STATES.items():
        for event_name, event in EVENTS.items():
            if actual(step, state, event) != "Bug":
                opened = any(isinstance(effect, OpenGrant) for effect in step(state, event)[1])
                assert opened == ((name, event_name) == ("rsvd", "expose"))


def test_I2_what_was_exposed_is_not_free_before_its_writer_is_shown_to_have_stopped() -> None:
    proofs = {"said", "said_late", "said_tenant", "drained_peer", "lost"}
    for state in ("seen", "recv", "ab_peer", "doubt"):
        freeing = {
            name
            for name, event in EVENTS.items()
            if actual(step, STATES[state], event) != "Bug"
            and any(isinstance(effect, FreeBlocks) for effect in step(STATES[state], event)[1])
        }
        assert freeing <= proofs, state


@pytest.mark.parametrize("state", ["ab_peer", "doubt"])
def test_over_shared_memory_our_own_transfer_s_end_says_nothing_of_the_writer(state: str) -> None:
    shared = run(*WAYS[state], transport=TransportKind.SHM)
    assert actual(step, shared, PEER_ENDED) == "="
    assert actual(step, shared, LOST) == "="  # a fenced process keeps its mapping
    assert actual(step, shared, Drained(evidence=Evidence.ACKNOWLEDGED)) == "rel"
    assert actual(step, shared, replace(LOST, evidence=Evidence.PROCESS_EXITED)) == "rel"


def test_a_word_without_the_transport_s_evidence_is_a_bug_of_whoever_passed_it_on() -> None:
    with pytest.raises(Bug, match="does not end a write"):
        step(STATES["recv"], replace(WRITTEN, evidence=Evidence.ACKNOWLEDGED))  # bytes may wait in a receive buffer
    shared = run(EXPOSE, WRITE, transport=TransportKind.SHM)
    with pytest.raises(Bug, match="does not end a write"):
        step(shared, WRITTEN)


def test_I6_a_write_lengthens_the_lease_and_never_shortens_it() -> None:
    longer, _ = step(STATES["seen"], WRITE)
    assert longer.lease_ends == after(DURING, LEASE)
    same, _ = step(STATES["seen"], replace(WRITE, lease=Duration(1)))
    assert same.lease_ends == after(START, LEASE)


@pytest.mark.parametrize("start", [name for name in WAYS if name not in ("done", "failed", "canc")])
def test_staging_is_released_once_on_every_way_to_the_end(start: str) -> None:
    state, released = STATES[start], 0
    for event in (ABORT, Drained(evidence=Evidence.OWN_WORK_ENDED), LOST):
        if not state.ended:
            state, effects = step(state, event)
            released += sum(isinstance(effect, ReleaseStaging) for effect in effects)
    assert state.ended
    assert released == (0 if start in ("inst", "drain") else 1)


def test_a_lease_that_runs_out_under_our_own_conversion_quarantines_once_that_has_ended() -> None:
    two = replace(reserve(), num_parts=2)
    state, _ = step(None, two)
    other = GrantId("f" * 32)
    for event in (replace(EXPOSE, grants=(GRANT, other)), WRITTEN, Expire(now=LATE)):
        state, effects = step(state, event)
    assert state.phase is DestinationPhase.ABORTING
    assert not any(isinstance(effect, QuarantineBlocks) for effect in effects)
    state, effects = step(state, OWN_ENDED)
    assert state.phase is DestinationPhase.IN_DOUBT
    assert any(isinstance(effect, QuarantineBlocks) for effect in effects)
