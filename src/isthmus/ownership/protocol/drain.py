"""What proves that nobody touches a block any more: drain evidence, per transport, as data.

A block goes back to the free list on one of these rows or not at all. The question differs by side: a *source being
read* is harmed by a reader only if what it reads is used or seen by a stranger; a *destination being written* is
harmed by any write. Rows say which evidence settles which question, and why. Anything not settled is quarantined.

Refuses to know how evidence is gathered: transports, engines and the registry report it as events.
"""

import enum
from typing import Final

import msgspec

__all__ = [
    "DEATH_PROVEN",
    "DRAIN_TABLE",
    "DrainRow",
    "Evidence",
    "TransportKind",
    "drains_destination",
    "drains_pushed",
    "drains_source",
]


class TransportKind(enum.StrEnum):
    """How bytes cross; decides who is physically able to touch the blocks."""

    MEMORY = "memory"
    SHM = "shm"
    TCP = "tcp"


class Evidence(enum.StrEnum):
    """What was established about access to a hand-off's blocks."""

    NEVER_EXPOSED = "never_exposed"
    OWN_WORK_ENDED = "own_work_ended"
    ACKNOWLEDGED = "acknowledged"
    OWN_TRANSFER_ENDED = "own_transfer_ended"
    CONNECTION_CLOSED = "connection_closed"
    FENCED_AND_CLOSED = "fenced_and_closed"
    PROCESS_EXITED = "process_exited"
    REVOKED = "revoked"
    LEASE_EXPIRED_ONE_TENANT = "lease_expired_one_tenant"
    LEASE_EXPIRED_MANY_TENANTS = "lease_expired_many_tenants"
    SILENCE = "silence"


DEATH_PROVEN: Final = frozenset({Evidence.FENCED_AND_CLOSED, Evidence.PROCESS_EXITED})
"""What ends a peer's hand-offs logically. Whether it also frees their blocks is the table's to say."""


class DrainRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table: does `evidence` over `transport` settle the matter, and why.

    `source`: for blocks that the peer reads. `destination`: for blocks that our own transfer writes (pull); `pushed`:
    for blocks that the peer writes (push and send).
    """

    transport: TransportKind
    evidence: Evidence
    source: bool
    destination: bool
    pushed: bool
    reason: str


_Answer = tuple[bool, bool, str]
"""Source, destination, why."""

_OF_US_ALONE = frozenset({(TransportKind.SHM, Evidence.OWN_TRANSFER_ENDED)}) | {
    (transport, Evidence.OWN_WORK_ENDED) for transport in TransportKind
}
"""What settles a destination that we write, and says nothing of a peer that writes it."""

_ANY_TRANSPORT: dict[Evidence, _Answer] = {
    Evidence.NEVER_EXPOSED: (True, True, "no grant was made and no work begun, so only the ledger knows the blocks"),
    Evidence.OWN_WORK_ENDED: (
        True,
        True,
        "counts only where no peer was given access: our own engine was the only one to touch the blocks",
    ),
    Evidence.REVOKED: (
        True,
        True,
        "the system has ended the peer's access and lets none come back: memory sealed against writing, say",
    ),
    Evidence.LEASE_EXPIRED_ONE_TENANT: (
        True,
        False,
        "a late read gives bytes that are never installed, because the reader asks the owner after the last byte; "
        "a late write would hit the block's next owner",
    ),
    Evidence.LEASE_EXPIRED_MANY_TENANTS: (
        False,
        False,
        "the end of a lease stops nobody, and a late read would show one tenant's bytes to another's reader",
    ),
    Evidence.CONNECTION_CLOSED: (False, False, "an incarnation that is not fenced may reconnect and go on"),
    Evidence.SILENCE: (False, False, "a peer that does not answer may be paused, and a paused peer wakes up"),
}

_PER_TRANSPORT: dict[TransportKind, dict[Evidence, _Answer]] = {
    TransportKind.MEMORY: {
        Evidence.ACKNOWLEDGED: (True, True, "the copier says that it has ended; its copy is a completed call"),
        Evidence.OWN_TRANSFER_ENDED: (True, True, "whoever copies in this process has returned from the copy"),
        Evidence.FENCED_AND_CLOSED: (True, True, "within one process closing an endpoint awaits the end of its copies"),
        Evidence.PROCESS_EXITED: (True, True, "the memory ended with the process"),
    },
    TransportKind.SHM: {
        Evidence.ACKNOWLEDGED: (True, True, "the peer copies by itself and says that its last copy has returned"),
        Evidence.OWN_TRANSFER_ENDED: (
            False,
            True,
            "a source is read by the peer's process, of which we see nothing; a pulled destination is written by ours",
        ),
        Evidence.FENCED_AND_CLOSED: (
            False,
            False,
            "a stopped process keeps its mapping and, once continued, its copy; closing a socket ends neither",
        ),
        Evidence.PROCESS_EXITED: (True, True, "the mapping ended with the process"),
    },
    TransportKind.TCP: {
        Evidence.ACKNOWLEDGED: (
            True,
            False,
            "the reader wants no more bytes; but a writer's last bytes may still wait in our own receive buffer",
        ),
        Evidence.OWN_TRANSFER_ENDED: (True, True, "only our own loops touch our memory: peers send and ask"),
        Evidence.FENCED_AND_CLOSED: (True, True, "our loops end with the connection, and a fenced peer gets no other"),
        Evidence.PROCESS_EXITED: (True, True, "the kernel has closed its sockets; our loops end with them"),
    },
}


def _table() -> dict[tuple[TransportKind, Evidence], DrainRow]:
    rows: dict[tuple[TransportKind, Evidence], DrainRow] = {}
    for transport, own in _PER_TRANSPORT.items():
        for evidence, (source, destination, reason) in (_ANY_TRANSPORT | own).items():
            rows[transport, evidence] = DrainRow(
                transport=transport,
                evidence=evidence,
                source=source,
                destination=destination,
                pushed=destination and (transport, evidence) not in _OF_US_ALONE,
                reason=reason,
            )
    return rows


DRAIN_TABLE: Final = _table()
"""Every (transport, evidence) pair; the table is total, so that a lookup never guesses."""


def drains_source(transport: TransportKind, evidence: Evidence) -> bool:
    """Whether a source whose grant has ended may be freed on `evidence`."""
    return DRAIN_TABLE[transport, evidence].source


def drains_destination(transport: TransportKind, evidence: Evidence) -> bool:
    """Whether a destination that our own transfer writes may be freed on `evidence`."""
    return DRAIN_TABLE[transport, evidence].destination


def drains_pushed(transport: TransportKind, evidence: Evidence) -> bool:
    """Whether a destination that the peer writes may be freed on `evidence`."""
    return DRAIN_TABLE[transport, evidence].pushed
