"""What can go wrong with a peer, and which evidence of the end of its access can then be had, as data.

Whether that evidence settles the matter is the drain table's to say (`drain.py`); what does not stays in quarantine.
Our own death needs no row: the ledger dies with the memory that it accounts for. Refuses to know how evidence is
gathered. Part of I8: every failure has something that ends it, or says that nothing does but the peer's end.
"""

import enum
from typing import Final

from isthmus.ownership.protocol.drain import DRAIN_TABLE, Evidence, TransportKind

__all__ = ["MEANWHILE", "OBTAINABLE", "Access", "Failure", "settles"]


class Failure(enum.StrEnum):
    """What has happened to the peer, or between us."""

    SIGKILL = "SIGKILL"
    SIGSTOP = "SIGSTOP"
    PARTITION = "partition"
    RESTART = "restart"
    ABORT = "abort"


class Access(enum.StrEnum):
    """Who touches the blocks, besides their owner."""

    READ_BY_PEER = "source that the consumer reads (pull)"
    WRITTEN_BY_PEER = "destination that the producer writes (push, send)"
    OWN = "source that we write from (push, send), destination that we read into (pull)"


_LEASE = (Evidence.LEASE_EXPIRED_ONE_TENANT, Evidence.LEASE_EXPIRED_MANY_TENANTS)
_FENCED = (Evidence.SILENCE, Evidence.FENCED_AND_CLOSED)
_GONE = (Evidence.CONNECTION_CLOSED, Evidence.PROCESS_EXITED)
_GONE_SOMEWHERE = (Evidence.CONNECTION_CLOSED, Evidence.FENCED_AND_CLOSED, Evidence.PROCESS_EXITED)
_OURS = (Evidence.OWN_TRANSFER_ENDED,)
_SAID = (Evidence.ACKNOWLEDGED,)

_Row = dict[TransportKind, tuple[Evidence, ...]]

_READ: dict[Failure, _Row] = {
    Failure.SIGKILL: {TransportKind.SHM: (*_GONE, *_LEASE), TransportKind.TCP: (*_GONE_SOMEWHERE, *_LEASE)},
    Failure.SIGSTOP: {TransportKind.SHM: (*_FENCED, *_LEASE), TransportKind.TCP: (*_FENCED, *_LEASE)},
    Failure.PARTITION: {TransportKind.SHM: (*_FENCED, *_LEASE), TransportKind.TCP: (*_FENCED, *_LEASE)},
    Failure.RESTART: {TransportKind.SHM: (*_GONE, *_LEASE), TransportKind.TCP: (*_GONE_SOMEWHERE, *_LEASE)},
    Failure.ABORT: dict.fromkeys(TransportKind, _SAID),
}
_WRITTEN: dict[Failure, _Row] = {
    Failure.SIGKILL: {TransportKind.SHM: (*_GONE, Evidence.REVOKED), TransportKind.TCP: (*_OURS, *_GONE_SOMEWHERE)},
    Failure.SIGSTOP: {TransportKind.SHM: _FENCED, TransportKind.TCP: (*_OURS, *_FENCED)},
    Failure.PARTITION: {TransportKind.SHM: (*_FENCED, Evidence.REVOKED), TransportKind.TCP: (*_OURS, *_FENCED)},
    Failure.RESTART: {TransportKind.SHM: (*_GONE, Evidence.REVOKED), TransportKind.TCP: (*_OURS, *_GONE_SOMEWHERE)},
    Failure.ABORT: {
        TransportKind.MEMORY: (*_OURS, *_SAID),
        TransportKind.SHM: (*_SAID, Evidence.REVOKED),
        TransportKind.TCP: (*_SAID, *_OURS),
    },
}
_OWN: dict[Failure, _Row] = {
    failure: {
        transport: (*_OURS, Evidence.OWN_WORK_ENDED)
        for transport in TransportKind
        if transport is not TransportKind.MEMORY or failure is Failure.ABORT
    }
    for failure in Failure
}

OBTAINABLE: Final[dict[Access, dict[Failure, _Row]]] = {
    Access.READ_BY_PEER: _READ,
    Access.WRITTEN_BY_PEER: _WRITTEN,
    Access.OWN: _OWN,
}
"""The evidence that can be had, in the order in which it usually comes. Memory: both sides are one process, so that
there only a hand-off can fail and not a peer.
"""

MEANWHILE: Final[dict[Access, dict[Failure, str]]] = {
    Access.READ_BY_PEER: {
        Failure.SIGKILL: "renewals cease; the grant stands until the death is known or the lease is over",
        Failure.SIGSTOP: "renewals cease; a read may go on when it is continued, and is refused its confirmation",
        Failure.PARTITION: "renewals cease; the reader cannot confirm, so it installs nothing",
        Failure.RESTART: "the new life's messages are refused; the old one's grant is closed at once",
        Failure.ABORT: "nothing: the message that gives up also says that nothing more is read",
    },
    Access.WRITTEN_BY_PEER: {
        Failure.SIGKILL: "no write extends the lease any more; the blocks stay whole until the writer's end is known",
        Failure.SIGSTOP: "quarantine from the end of the lease on; over shm until it goes on, or its process has ended",
        Failure.PARTITION: "quarantine from the end of the lease on, unless a withdrawal ends the access before",
        Failure.RESTART: "the grant is closed at once; what the old life may still write to waits for its end",
        Failure.ABORT: "the image is withdrawn; where that proves nothing, it is tried again",
    },
    Access.OWN: {
        Failure.SIGKILL: "our transfer ends in an error or by its deadline; our engine is asked to stop",
        Failure.SIGSTOP: "our transfer ends by its deadline, or is asked to stop when the lease is over",
        Failure.PARTITION: "our transfer ends by its deadline, or is asked to stop when the lease is over",
        Failure.RESTART: "our transfer and our engine are asked to stop",
        Failure.ABORT: "our transfer and our engine are asked to stop",
    },
}
"""What happens until the evidence comes."""


def settles(access: Access, transport: TransportKind, evidence: Evidence) -> bool:
    """Whether blocks that are touched so may be freed on `evidence`."""
    row = DRAIN_TABLE[transport, evidence]
    match access:
        case Access.READ_BY_PEER:
            return row.source
        case Access.WRITTEN_BY_PEER:
            return row.pushed
        case Access.OWN:
            return row.destination
