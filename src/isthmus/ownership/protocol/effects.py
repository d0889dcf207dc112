"""What a step asks of its shell, as data. A shell executes effects in order, after it has stored the new state.

Effects on blocks name the blocks and the epoch of their assignment, so that the ledger can refuse a stale one (I2).
"""

import enum

import msgspec

from isthmus.core.ids import BlockId, Epoch
from isthmus.ownership.protocol.drain import Evidence

__all__ = [
    "BeginUse",
    "CloseGrant",
    "Effect",
    "EndUse",
    "FreeBlocks",
    "MarkFilling",
    "MarkResident",
    "OpenGrant",
    "QuarantineBlocks",
    "Refusal",
    "ReleaseStaging",
    "RememberTombstone",
    "ReplyConfirmed",
    "ReplyRefused",
    "StopCompute",
    "StopDecode",
    "StopRead",
    "StopSend",
]


class Refusal(enum.StrEnum):
    """Why a peer, or our own code that came too late, is refused."""

    GRANT_UNKNOWN = "grant_unknown"
    STALE_EPOCH = "stale_epoch"
    NOT_AUTHORISED = "not_authorised"
    ENDED = "ended"


class _Effect(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of effects."""


class MarkFilling(_Effect, frozen=True, kw_only=True, gc=False):
    """reserved → filling; whoever fills is an active user."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class MarkResident(_Effect, frozen=True, kw_only=True, gc=False):
    """filling → resident. The filler's use ends, unless it becomes decode's (`in_use`)."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch
    in_use: bool


class BeginUse(_Effect, frozen=True, kw_only=True, gc=False):
    """One active user more touches the blocks: our own transfer reads them."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class EndUse(_Effect, frozen=True, kw_only=True, gc=False):
    """The active user touches the blocks no more."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class OpenGrant(_Effect, frozen=True, kw_only=True, gc=False):
    """One grant more is on the blocks."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class CloseGrant(_Effect, frozen=True, kw_only=True, gc=False):
    """The grant on the blocks has ended logically. Each OpenGrant has exactly one (I4)."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class FreeBlocks(_Effect, frozen=True, kw_only=True, gc=False):
    """Back to the free list, on `evidence`."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch
    evidence: Evidence


class QuarantineBlocks(_Effect, frozen=True, kw_only=True, gc=False):
    """Kept from everybody until evidence comes."""

    blocks: tuple[BlockId, ...]
    epoch: Epoch


class ReleaseStaging(_Effect, frozen=True, kw_only=True, gc=False):
    """The staging bytes reserved with the blocks are free again."""

    epoch: Epoch


class RememberTombstone(_Effect, frozen=True, kw_only=True, gc=False):
    """The hand-off has ended: keep its last state, bounded, to answer repeated messages."""


class StopCompute(_Effect, frozen=True, kw_only=True, gc=False):
    """Ask the engine to stop filling; it answers with Drained or Complete."""


class StopRead(_Effect, frozen=True, kw_only=True, gc=False):
    """Ask our own transfer, conversion or check to stop; it answers with Drained or its own end."""


class StopSend(_Effect, frozen=True, kw_only=True, gc=False):
    """Ask our own transfer to stop writing; it answers with Sent."""


class StopDecode(_Effect, frozen=True, kw_only=True, gc=False):
    """Ask the engine to stop decoding; it answers with Drained or Finish."""


class ReplyConfirmed(_Effect, frozen=True, kw_only=True, gc=False):
    """Yes: the owner held the blocks, unchanged, at `epoch` until the reader's last byte had arrived."""

    epoch: Epoch


class ReplyRefused(_Effect, frozen=True, kw_only=True, gc=False):
    """No."""

    reason: Refusal


Effect = (
    MarkFilling
    | MarkResident
    | BeginUse
    | EndUse
    | OpenGrant
    | CloseGrant
    | FreeBlocks
    | QuarantineBlocks
    | ReleaseStaging
    | RememberTombstone
    | StopCompute
    | StopRead
    | StopSend
    | StopDecode
    | ReplyConfirmed
    | ReplyRefused
)
