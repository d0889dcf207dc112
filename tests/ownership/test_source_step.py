"""`source.step` is total: every event in every state, against a table that a person can check."""

import pytest
from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import CloseGrant, FreeBlocks, OpenGrant, QuarantineBlocks
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
from isthmus.ownership.protocol.states import LogicalOutcome, SourceHandoff, SourcePhase
from tests.ownership.tables import actual, cells

LEASE = Duration.of_seconds(2)
START = Instant(1_000)
DURING = Instant(START + 5)
LATE = after(START, LEASE)
HOLDER, LIFE = WorkerId("decode-0"), Incarnation("b" * 32)
GRANT, EPOCH = GrantId("c" * 32), Epoch(7)
BLOCKS = (BlockId(3), BlockId(5))

GRID = """
event           none   comp    held    pub       seen      dr_comp  dr_read  done    canc    expd    doubt
reserve         comp   Bug     Bug     Bug       Bug       Bug      Bug      Bug     Bug     Bug     Bug
complete        Bug    held    Bug     Bug       Bug       rel/end  Bug      Bug     =/end   Bug     Bug
publish         Bug    Bug     pub     Bug       Bug       Bug      Bug      Bug     =/end   Bug     Bug
read            =/unk  =/unk   =/unk   seen      =         =/unk    =/old    =/old   =/unk   =/old   =/old
read_late       =/unk  =/unk   =/unk   expd/old  expd/old  =/unk    =/old    =/old   =/unk   =/old   =/old
read_forged     =/unk  =/unk   =/unk   =/unk     =/unk     =/unk    =/unk    =/unk   =/unk   =/unk   =/unk
read_stranger   =/unk  =/unk   =/unk   =/auth    =/auth    =/unk    =/auth   =/auth  =/unk   =/auth  =/auth
read_stale      =/unk  =/unk   =/unk   =/old     =/old     =/unk    =/old    =/old   =/unk   =/old   =/old
renew           =/unk  =/unk   =/unk   pub       seen      =/unk    =/old    =/old   =/unk   =/old   =/old
renew_late      =/unk  =/unk   =/unk   expd/old  expd/old  =/unk    =/old    =/old   =/unk   =/old   =/old
confirm         =/unk  =/unk   =/unk   rel/yes   rel/yes   =/unk    rel/old  =/yes   =/unk   =/old   rel/old
confirm_late    =/unk  =/unk   =/unk   rel/old   rel/old   =/unk    rel/old  =/yes   =/unk   =/old   rel/old
confirm_forged  =/unk  =/unk   =/unk   =/unk     =/unk     =/unk    =/unk    =/unk   =/unk   =/unk   =/unk
confirm_stale   =/unk  =/unk   =/unk   =/old     =/old     =/unk    =/old    =/old   =/unk   =/old   =/old
confirm_reborn  =/unk  =/unk   =/unk   =/auth    =/auth    =/unk    =/auth   =/auth  =/unk   =/auth  =/auth
abandon         =/unk  drain   rel     rel       rel       =        rel      =       =       =       rel
abandon_reborn  =/unk  =/auth  =/auth  =/auth    =/auth    =/auth   =/auth   =/auth  =/auth  =/auth  =/auth
expire_early    Bug    Bug     Bug     Bug       Bug       Bug      Bug      Bug     Bug     Bug     Bug
expire          Bug    Bug     Bug     expd      expd      Bug      expd     Bug     Bug     Bug     Bug
abort           Bug    drain   rel     drain     drain     =        =        =       =       =       =
fence           Bug    drain   rel     drain     drain     =        =        =       =       =       =
drained_engine  Bug    Bug     Bug     Bug       Bug       rel      =        =       =       =       =
drained_sends   Bug    Bug     Bug     Bug       Bug       =        rel      =       =       =       rel
drained_closed  Bug    Bug     Bug     Bug       Bug       =        =        =       =       =       =
lost            Bug    drain   rel     rel       rel       =        rel      =       =       =       rel
lost_silent     Bug    =       =       =         =         =        =        =       =       =       =
lost_reborn     Bug    =       =       =         =         =        =        =       =       =       =
reborn          Bug    drain   rel     drain     drain     =        =        =       =       =       =
reborn_same     Bug    =       =       =         =         =        =        =       =       =       =
register        =/unk  =/auth  =/auth  =/auth    =/auth    =/auth   =/auth   =/auth  =/auth  =/auth  =/auth
sent            Bug    Bug     Bug     Bug       Bug       Bug      Bug      Bug     Bug     Bug     Bug
"""


def reserve(*, sole_tenant: bool = True, transport: TransportKind = TransportKind.TCP) -> ReserveSource:
    return ReserveSource(
        handoff=HandoffId("a" * 32),
        holder=HOLDER,
        holder_incarnation=LIFE,
        tenant=TenantId("t"),
        transport=transport,
        sole_tenant=sole_tenant,
        blocks=BLOCKS,
        epoch=EPOCH,
    )


PUBLISH = Publish(now=START, grant=GRANT, lease=LEASE)
READ = ReadSeen(now=DURING, grant=GRANT, epoch=EPOCH, reader=HOLDER)
CONFIRM = Confirm(now=DURING, grant=GRANT, epoch=EPOCH, holder=HOLDER, holder_incarnation=LIFE)
RENEW = Renew(now=DURING, grant=GRANT, epoch=EPOCH, holder=HOLDER, holder_incarnation=LIFE, lease=LEASE)
ABANDON = Abandon(holder=HOLDER, holder_incarnation=LIFE)
LOST = PeerLost(worker=HOLDER, incarnation=LIFE, evidence=Evidence.FENCED_AND_CLOSED)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)

EVENTS: dict[str, SourceEvent] = {
    "reserve": reserve(),
    "complete": Complete(),
    "publish": PUBLISH,
    "read": READ,
    "read_late": replace(READ, now=LATE),
    "read_forged": replace(READ, grant=GrantId("d" * 32)),
    "read_stranger": replace(READ, reader=WorkerId("decode-1")),
    "read_stale": replace(READ, epoch=Epoch(6)),
    "renew": RENEW,
    "renew_late": replace(RENEW, now=LATE),
    "confirm": CONFIRM,
    "confirm_late": replace(CONFIRM, now=LATE),
    "confirm_forged": replace(CONFIRM, grant=GrantId("d" * 32)),
    "confirm_stale": replace(CONFIRM, epoch=Epoch(6)),
    "confirm_reborn": replace(CONFIRM, holder_incarnation=Incarnation("e" * 32)),
    "abandon": ABANDON,
    "abandon_reborn": replace(ABANDON, holder_incarnation=Incarnation("e" * 32)),
    "expire_early": Expire(now=DURING),
    "expire": Expire(now=LATE),
    "abort": ABORT,
    "fence": Fence(),
    "drained_engine": Drained(evidence=Evidence.OWN_WORK_ENDED),
    "drained_sends": Drained(evidence=Evidence.OWN_TRANSFER_ENDED),
    "drained_closed": Drained(evidence=Evidence.CONNECTION_CLOSED),
    "lost": LOST,
    "lost_silent": replace(LOST, evidence=Evidence.SILENCE),
    "lost_reborn": replace(LOST, incarnation=Incarnation("e" * 32)),
    "reborn": PeerReincarnated(worker=HOLDER, incarnation=Incarnation("e" * 32)),
    "reborn_same": PeerReincarnated(worker=HOLDER, incarnation=LIFE),
    "register": Register(grant=GRANT, epoch=Epoch(1), holder=HOLDER, holder_incarnation=LIFE),
    "sent": Sent(ok=True),
}


def run(*events: SourceEvent) -> SourceHandoff:
    state: SourceHandoff | None = None
    for event in events:
        state, _ = step(state, event)
    assert state is not None
    return state


def many(*events: SourceEvent) -> SourceHandoff:
    return run(reserve(sole_tenant=False), Complete(), PUBLISH, *events)


STATES: dict[str, SourceHandoff | None] = {
    "none": None,
    "comp": run(reserve()),
    "held": run(reserve(), Complete()),
    "pub": run(reserve(), Complete(), PUBLISH),
    "seen": run(reserve(), Complete(), PUBLISH, READ),
    "dr_comp": run(reserve(), ABORT),
    "dr_read": run(reserve(), Complete(), PUBLISH, READ, ABORT),
    "done": run(reserve(), Complete(), PUBLISH, READ, CONFIRM),
    "canc": run(reserve(), Complete(), ABORT),
    "expd": run(reserve(), Complete(), PUBLISH, Expire(now=LATE)),
    "doubt": many(Expire(now=LATE)),
}


@pytest.mark.parametrize(("event", "state", "expected"), list(cells(GRID)))
def test_source_step_does_what_the_table_says(event: str, state: str, expected: str) -> None:
    assert actual(step, STATES[state], EVENTS[event]) == expected


def test_the_table_of_the_source_has_every_state_and_every_event() -> None:
    assert {(event, state) for event, state, _ in cells(GRID)} == {(e, s) for e in EVENTS for s in STATES}
    reached = {state.phase for state in STATES.values() if state is not None}
    assert reached == set(SourcePhase)


def test_expiry_within_one_tenant_frees_and_across_tenants_quarantines() -> None:
    _, one = step(run(reserve(), Complete(), PUBLISH), Expire(now=LATE))
    _, several = step(many(), Expire(now=LATE))
    assert FreeBlocks(blocks=BLOCKS, epoch=EPOCH, evidence=Evidence.LEASE_EXPIRED_ONE_TENANT) in one
    assert QuarantineBlocks(blocks=BLOCKS, epoch=EPOCH) in several
    assert not any(isinstance(effect, FreeBlocks) for effect in several)


@pytest.mark.parametrize("start", [PUBLISH, READ])
def test_a_fenced_peer_on_shared_memory_may_still_read_so_only_its_exit_frees(start: SourceEvent) -> None:
    before = (reserve(transport=TransportKind.SHM), Complete(), PUBLISH)
    published = run(*before, start) if start is READ else run(*before)
    fenced, effects = step(published, LOST)
    assert fenced is not None
    assert fenced.phase is SourcePhase.DRAINING
    assert not any(isinstance(effect, FreeBlocks) for effect in effects)
    exited, _ = step(fenced, replace(LOST, evidence=Evidence.PROCESS_EXITED))
    assert exited is not None
    assert exited.phase is SourcePhase.RELEASED


@pytest.mark.parametrize("ending", ["confirm", "confirm_late", "abandon", "expire", "abort", "lost", "read_late"])
@pytest.mark.parametrize("state", ["pub", "seen"])
def test_I4_every_way_out_of_an_open_grant_closes_it_once(state: str, ending: str) -> None:
    first = STATES[state]
    second, effects = step(first, EVENTS[ending])
    closed = sum(isinstance(effect, CloseGrant) for effect in effects)
    for event in EVENTS.values():  # whatever comes next closes nothing any more
        if actual(step, second, event) != "Bug":
            closed += sum(isinstance(effect, CloseGrant) for effect in step(second, event)[1])
    assert closed == 1


@pytest.mark.parametrize("state", ["comp", "held"])
def test_I4_a_grant_opens_only_on_publication(state: str) -> None:
    for name, event in EVENTS.items():
        if actual(step, STATES[state], event) != "Bug":
            opened = any(isinstance(effect, OpenGrant) for effect in step(STATES[state], event)[1])
            assert opened == (name == "publish")


def test_I6_a_renewal_never_shortens_a_lease() -> None:
    state = run(reserve(), Complete(), PUBLISH)
    short, _ = step(state, replace(RENEW, lease=Duration(1)))
    assert short is not None
    assert short.lease_ends == state.lease_ends
    long, _ = step(state, replace(RENEW, lease=Duration.of_seconds(9)))
    assert long is not None
    assert long.lease_ends == after(DURING, Duration.of_seconds(9))


def test_a_released_source_keeps_no_blocks_in_its_tombstone() -> None:
    done = STATES["done"]
    assert done is not None
    assert (done.blocks, done.num_blocks, done.evidence) == ((), 2, Evidence.ACKNOWLEDGED)
