"""Identity: what must be the same on both sides, because no transformation could make it so."""

import math
from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import HEAD_SIZE_MAX, NAME_CHARS_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.state.structs import WireStruct, refuse, require

__all__ = ["UNVERIFIED", "Identity", "ModelLineage", "RopeState", "TokenRange", "WeightsRecord"]

Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
Known = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
"""A name that must be there: what is unknown on both sides is not thereby the same."""
HexDigest = Annotated[str, Meta(pattern=r"^([0-9a-f]{16,64})?\Z")]


class ModelLineage(WireStruct, frozen=True, kw_only=True):
    """Which model this is, whatever the precision of its weights: base model and revision."""

    base_model: Known
    revision: Known


UNVERIFIED = "unverified"
"""The revision of a model that nobody vouches for: a folder's name says nothing. Equal weights still speak."""


class WeightsRecord(WireStruct, frozen=True, kw_only=True):
    """The weights loaded. `digest` is over names, shapes and bytes, in `dtype` (a precision, not a wish).

    Where nobody has read them yet, `digest` is '' and `published` names them, as `repository@revision`: a launch line
    says no more. A worker always has a digest.
    """

    dtype: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{1,31}\Z")]
    digest: HexDigest
    published: Name = ""


class RopeState(WireStruct, frozen=True, kw_only=True):
    """How positions were put into K. `scaling_digest` is over the whole scaling record, '' where there is none."""

    applied: bool
    theta: float
    rope_dim: int
    style: Annotated[str, Meta(pattern=r"^(neox|interleaved)\Z")]
    scaling_digest: HexDigest = ""
    position_origin: int = 0

    def __post_init__(self) -> None:
        # A NaN is not equal to itself, but its text is: the gate must never see one.
        require(math.isfinite(self.theta) and self.theta > 0, "theta", self.theta, "a positive number")
        require(0 <= self.rope_dim <= HEAD_SIZE_MAX, "rope_dim", self.rope_dim, f"0 to {HEAD_SIZE_MAX}")
        require(
            0 <= self.position_origin <= TOKENS_PER_REQUEST_MAX,
            "position_origin",
            self.position_origin,
            f"0 to {TOKENS_PER_REQUEST_MAX}",
        )


class TokenRange(WireStruct, frozen=True, kw_only=True):
    """Tokens [start, stop) of a request, counted from 0."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= TOKENS_PER_REQUEST_MAX:
            refuse("start, stop", (self.start, self.stop), f"0 <= start < stop <= {TOKENS_PER_REQUEST_MAX}")

    def __len__(self) -> int:
        return self.stop - self.start


class Identity(WireStruct, frozen=True, kw_only=True):
    """What a worker's KV means, whatever its form. The gate compares these, and each request's tokens.

    `architecture_digest` is over the settings that change what is computed with the same weights (norm's epsilon, the
    activation, the context that a RoPE scaling starts from, and the like).
    """

    lineage: ModelLineage
    weights: WeightsRecord
    rope: RopeState
    architecture_digest: HexDigest = ""
    adapter: Name = ""
    multimodal_digest: HexDigest = ""
