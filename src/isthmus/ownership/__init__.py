"""Decision 3: who owns this KV, at every moment and through every failure.

    protocol     pure: states, events, effects, `step` for either side, the table of drain evidence
    ledger       the only authority over one worker's blocks and staging
    admission    who may have them next: quotas, fair turns, retained cache gives way
    capacity     waiting for that, bounded and with deadlines
    producer     SourceOwner: a prefill worker's hand-offs
    consumer     DestinationOwner: a decode worker's hand-offs
    retention    is it worth keeping? the order in which retained things are given up
    residency    where does it lie? which tier of memory
    prefix_cache blocks that outlive their hand-offs, by the names of `prefix_hash`
    index        what outlives the process: payloads in files
    leases       renewal and the reaper
    rows         what people see

Refuses to know what the bytes mean and how they move. Never installs on doubt, never frees without evidence.
"""

from isthmus.ownership.capacity import Capacity
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.leases import reap_forever, renewal_interval
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    PhysicalAccess,
    SourceHandoff,
    SourcePhase,
)

__all__ = [
    "Capacity",
    "DestinationHandoff",
    "DestinationOwner",
    "DestinationPhase",
    "Evidence",
    "Ledger",
    "LogicalOutcome",
    "PhysicalAccess",
    "SourceHandoff",
    "SourceOwner",
    "SourcePhase",
    "TransportKind",
    "reap_forever",
    "renewal_interval",
]
