"""What an execution of a plan reports. Without torch, so that `handoff` can name it."""

from dataclasses import dataclass

from isthmus.core.ids import Digest

__all__ = ["Verified"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What an execution found: the digests before and after the element operations, the largest error seen,
    and how many rows (layer, token, head, K or V) were checked.
    """

    producer_digest: Digest
    consumer_digest: Digest
    error_max: float
    rows: int
