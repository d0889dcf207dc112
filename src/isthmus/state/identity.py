"""Identity: what must be the same on both sides, because no transformation could make it so."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import NAME_CHARS_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.state.structs import WireStruct, require

__all__ = ["Identity", "ModelLineage", "RopeState", "TokenRange", "WeightsRecord"]

Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
HexDigest = Annotated[str, Meta(pattern="^([0-9a-f]{16,64})?$")]


class ModelLineage(WireStruct, frozen=True, kw_only=True):
    """Which model this is, whatever the precision of its weights: base model and revision."""

    base_model: Name
    revision: Name


class WeightsRecord(WireStruct, frozen=True, kw_only=True):
    """The weights actually loaded. `digest` is over names, shapes and bytes, in `dtype` (a precision, not a wish)."""

    dtype: Name
    digest: HexDigest


class RopeState(WireStruct, frozen=True, kw_only=True):
    """How positions were put into K. `scaling_digest` is over the whole scaling record, '' where there is none."""

    applied: bool
    theta: float
    rope_dim: int
    style: Annotated[str, Meta(pattern="^(neox|interleaved)$")]
    scaling_digest: HexDigest = ""
    position_origin: int = 0


class TokenRange(WireStruct, frozen=True, kw_only=True):
    """Tokens [start, stop) of a request, counted from 0."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        require(
            0 <= self.start < self.stop <= TOKENS_PER_REQUEST_MAX,
            "token_range",
            (self.start, self.stop),
            f"0 <= start < stop <= {TOKENS_PER_REQUEST_MAX}",
        )

    def __len__(self) -> int:
        return self.stop - self.start


class Identity(WireStruct, frozen=True, kw_only=True):
    """What a worker's KV means, whatever its form. The gate compares these, and each request's tokens."""

    lineage: ModelLineage
    weights: WeightsRecord
    rope: RopeState
    adapter: Name = ""
    multimodal_digest: HexDigest = ""
