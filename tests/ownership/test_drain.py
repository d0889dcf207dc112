"""The table of drain evidence is total, and says what DESIGN.md says."""

import pytest

from isthmus.ownership.protocol.drain import (
    DEATH_PROVEN,
    DRAIN_TABLE,
    Evidence,
    TransportKind,
    drains_destination,
    drains_source,
)


def test_every_transport_and_every_evidence_has_a_row_with_a_reason() -> None:
    assert set(DRAIN_TABLE) == {(transport, evidence) for transport in TransportKind for evidence in Evidence}
    for (transport, evidence), row in DRAIN_TABLE.items():
        assert (row.transport, row.evidence) == (transport, evidence)
        assert len(row.reason) > 20


@pytest.mark.parametrize("transport", TransportKind)
@pytest.mark.parametrize(
    "evidence", [Evidence.SILENCE, Evidence.CONNECTION_CLOSED, Evidence.LEASE_EXPIRED_MANY_TENANTS]
)
def test_what_proves_nothing_frees_nothing_on_any_transport(transport: TransportKind, evidence: Evidence) -> None:
    assert not drains_source(transport, evidence)
    assert not drains_destination(transport, evidence)


@pytest.mark.parametrize("transport", TransportKind)
def test_an_expired_lease_frees_what_is_read_within_one_tenant_but_never_what_is_written(
    transport: TransportKind,
) -> None:
    assert drains_source(transport, Evidence.LEASE_EXPIRED_ONE_TENANT)
    assert not drains_destination(transport, Evidence.LEASE_EXPIRED_ONE_TENANT)


@pytest.mark.parametrize("transport", TransportKind)
def test_a_process_that_has_exited_touches_nothing(transport: TransportKind) -> None:
    assert drains_source(transport, Evidence.PROCESS_EXITED)
    assert drains_destination(transport, Evidence.PROCESS_EXITED)
    assert Evidence.PROCESS_EXITED in DEATH_PROVEN


@pytest.mark.parametrize("transport", TransportKind)
def test_a_peer_whose_access_the_system_has_ended_touches_nothing_and_may_well_be_alive(
    transport: TransportKind,
) -> None:
    assert drains_source(transport, Evidence.REVOKED)
    assert drains_destination(transport, Evidence.REVOKED)
    assert Evidence.REVOKED not in DEATH_PROVEN


def test_fencing_a_peer_does_not_take_shared_memory_from_it() -> None:
    assert drains_source(TransportKind.TCP, Evidence.FENCED_AND_CLOSED)
    assert not drains_source(TransportKind.SHM, Evidence.FENCED_AND_CLOSED)
    assert not drains_destination(TransportKind.SHM, Evidence.FENCED_AND_CLOSED)
