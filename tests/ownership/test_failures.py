"""What can be had after a failure frees, or keeps, as the table of failures says: by running the protocol."""

import pytest

from isthmus.core.clock import Instant, after
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol import destination, source
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Complete,
    Drained,
    Expire,
    Expose,
    PeerLost,
    Publish,
    ReadSeen,
    ReserveDestination,
    ReserveSource,
    Submit,
    WriteSeen,
)
from isthmus.ownership.protocol.failures import MEANWHILE, OBTAINABLE, Access, Failure, settles
from isthmus.ownership.protocol.states import DestinationHandoff, LogicalOutcome, SourceHandoff, TriggerMode

PEER, LIFE, TENANT = WorkerId("peer"), Incarnation("b" * 32), TenantId("t")
GRANT, EPOCH, BLOCKS = GrantId("c" * 64), Epoch(7), (BlockId(0),)
START, LEASE = Instant(1_000), Duration.of_seconds(2)
LATE = after(START, LEASE)
ABORT = Abort(outcome=LogicalOutcome.FAILED)
FROM_PEERS = (Evidence.CONNECTION_CLOSED, Evidence.FENCED_AND_CLOSED, Evidence.PROCESS_EXITED, Evidence.SILENCE)

CASES = [
    (access, failure, transport, evidence)
    for access, of_failure in OBTAINABLE.items()
    for failure, of_transport in of_failure.items()
    for transport, had in of_transport.items()
    for evidence in had
    if (access, evidence) != (Access.OWN, Evidence.OWN_WORK_ENDED)  # an engine's end: each side's own table has it
]


def read_source(transport: TransportKind, *, sole_tenant: bool) -> SourceHandoff:
    """A source that the consumer reads, given up under it."""
    reserve = ReserveSource(
        handoff=HandoffId("a" * 32),
        holder=PEER,
        holder_incarnation=LIFE,
        tenant=TENANT,
        transport=transport,
        sole_tenant=sole_tenant,
        blocks=BLOCKS,
        epoch=EPOCH,
    )
    state, _ = source.step(None, reserve)
    publish = Publish(now=START, grant=GRANT, lease=LEASE)
    for event in (Complete(), publish, ReadSeen(now=START, grant=GRANT, epoch=EPOCH, reader=PEER), ABORT):
        state, _ = source.step(state, event)
    assert state is not None
    return state


def reserved(transport: TransportKind, mode: TriggerMode) -> DestinationHandoff:
    reserve = ReserveDestination(
        handoff=HandoffId("a" * 32),
        producer=PEER,
        producer_incarnation=LIFE,
        tenant=TENANT,
        transport=transport,
        blocks=BLOCKS,
        staging_bytes=1,
        epoch=EPOCH,
        mode=mode,
    )
    return destination.step(None, reserve)[0]


def written_destination(transport: TransportKind) -> DestinationHandoff:
    """A destination that the producer writes, given up under it."""
    state = reserved(transport, TriggerMode.PUSH)
    write = WriteSeen(now=START, grant=GRANT, epoch=EPOCH, writer=PEER, lease=LEASE)
    for event in (Expose(now=START, grants=(GRANT,), lease=LEASE), write, ABORT):
        state, _ = destination.step(state, event)
    return state


def freed_source(state: SourceHandoff, evidence: Evidence) -> bool:
    if evidence is Evidence.ACKNOWLEDGED:
        after_, _ = source.step(state, Abandon(holder=PEER, holder_incarnation=LIFE))
    elif evidence in (Evidence.LEASE_EXPIRED_ONE_TENANT, Evidence.LEASE_EXPIRED_MANY_TENANTS):
        after_, _ = source.step(state, Expire(now=LATE))
    elif evidence in FROM_PEERS:
        after_, _ = source.step(state, PeerLost(worker=PEER, incarnation=LIFE, evidence=evidence))
    else:
        after_, _ = source.step(state, Drained(evidence=evidence))
    assert after_ is not None
    return after_.ended


def freed_destination(state: DestinationHandoff, evidence: Evidence) -> bool:
    lost = PeerLost(worker=PEER, incarnation=LIFE, evidence=evidence)
    after_, _ = destination.step(state, lost if evidence in FROM_PEERS else Drained(evidence=evidence))
    return after_.ended


@pytest.mark.parametrize(("access", "failure", "transport", "evidence"), CASES)
def test_what_can_be_had_frees_where_the_table_says_so_and_keeps_elsewhere(
    access: Access, failure: Failure, transport: TransportKind, evidence: Evidence
) -> None:
    match access:
        case Access.READ_BY_PEER:
            one = evidence is not Evidence.LEASE_EXPIRED_MANY_TENANTS
            freed = freed_source(read_source(transport, sole_tenant=one), evidence)
        case Access.WRITTEN_BY_PEER:
            freed = freed_destination(written_destination(transport), evidence)
        case Access.OWN:
            state = reserved(transport, TriggerMode.PULL)
            for event in (Submit(tenant=TENANT, grant=GRANT, epoch=EPOCH), ABORT):
                state, _ = destination.step(state, event)
            freed = freed_destination(state, evidence)
    assert freed == settles(access, transport, evidence), failure


def test_every_failure_has_an_answer_and_says_what_happens_meanwhile() -> None:
    for access in Access:
        assert set(OBTAINABLE[access]) == set(MEANWHILE[access]) == set(Failure)
        for failure, of_transport in OBTAINABLE[access].items():
            assert set(of_transport) >= {TransportKind.SHM, TransportKind.TCP}
            assert all(of_transport.values()), failure


def test_only_a_stopped_writer_on_shared_memory_keeps_blocks_for_as_long_as_it_stays_stopped() -> None:
    stuck = {
        (access, failure, transport)
        for access, of_failure in OBTAINABLE.items()
        for failure, of_transport in of_failure.items()
        for transport, had in of_transport.items()
        if not any(settles(access, transport, evidence) for evidence in had)
    }
    assert stuck == {(Access.WRITTEN_BY_PEER, Failure.SIGSTOP, TransportKind.SHM)}
