"""Typed ids. A `BlockId` is not an `Epoch`, and mypy says so.

Ids that must not be guessed are 128-bit random hex, minted by `core.clock.Clock.token`; a `GrantId` is one of them and
the tag that binds it to what it grants (`ownership.capability`).
"""

from typing import NewType

__all__ = [
    "BlockId",
    "Digest",
    "Epoch",
    "GrantId",
    "HandoffId",
    "Incarnation",
    "RegionId",
    "RequestId",
    "TenantId",
    "WorkerId",
]

WorkerId = NewType("WorkerId", str)
"""A worker's configured name, stable over restarts: `decode-0`."""

Incarnation = NewType("Incarnation", str)
"""One life of a worker: random hex, new at every start. A name with another incarnation is another peer."""

RequestId = NewType("RequestId", str)
HandoffId = NewType("HandoffId", str)
GrantId = NewType("GrantId", str)
TenantId = NewType("TenantId", str)

Epoch = NewType("Epoch", int)
"""Fencing number of a grant, unique and rising within one incarnation of its owner; first is 1."""

BlockId = NewType("BlockId", int)
"""Index of a block (a page of `block_size` tokens) in one worker's pool."""

RegionId = NewType("RegionId", str)
"""Name of one contiguous span of memory that a worker exports: `tp0`, `tp1.value`."""

Digest = NewType("Digest", int)
"""A logical digest: 64 bits, the sum modulo 2**64 of one keyed hash per (layer, token, head, field)."""
