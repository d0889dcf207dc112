"""A plan as compiled kernels take it: numbers and names only. `lowering` makes it of a `TransformPlan`.

A `Move` is one component of one part: rows of one field (and of its scales, where these lie in the pool) from a
producer's shard to a consumer's. Its addresses stay sums of digits, so a lowered plan is as small as the plan, does not
know how large pools are, and can be written down as JSON. Needs neither torch nor msgspec: a bench of kernels runs from
a bare checkout.
"""

import dataclasses
import enum
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bound",
    "Codec",
    "Digit",
    "Field",
    "Index",
    "Lowered",
    "Move",
    "Order",
    "Region",
    "Scales",
    "Shard",
    "Step",
    "from_builtins",
]

Index = NDArray[np.int64]
Order = Literal["", "model", "rope_pairs"]


class Step(enum.StrEnum):
    """What happens to elements between gather and scatter."""

    COPY = "copy"  # nothing: their bytes stay as they are, perhaps in another order
    SWAP_NIBBLES = "swap_nibbles"
    REBIAS = "rebias"  # the same codes under another exponent bias, and stored scales times 2**exponent
    RECODE = "recode"  # decoded to f32, perhaps reordered, encoded


class Scales(enum.StrEnum):
    """Where the scales of elements lie."""

    NONE = "none"
    STATIC = "static"  # on the layer: an operand
    STORED = "stored"  # in the pool, in a field of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Digit:
    """As `state.digits.Digit`: index // divisor % extent, times so many bytes; extent 0 means no end."""

    axis: str
    divisor: int
    extent: int
    fixed: int
    per_block: int

    def of(self, index: Index, num_blocks: int) -> Index:
        """The bytes that it adds at each index."""
        place = index // self.divisor
        return (place % self.extent if self.extent else place) * (self.fixed + self.per_block * num_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Rows of one field on one side: `units` units of `unit_bytes`, from local head `head` on, in a shard's region."""

    name: str
    number: int
    rank: int
    region: int
    head: int
    units: int
    unit_bytes: int
    offset: tuple[int, int]
    digits: tuple[Digit, ...]

    @property
    def row_bytes(self) -> int:
        return self.units * self.unit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How a row's elements are stored. `block`: how many neighbours share a stored scale, 0 for the whole row.

    `tensor_scale`: stored scales are multiplied by one more, which is an operand. `ones`: static scales are all 1.
    """

    dtype: str
    bits: int
    count: int
    scales: Scales
    scale_dtype: str = "f32"
    block: int = 0
    tensor_scale: bool = False
    ones: bool = False
    high_first: bool = False

    @property
    def static(self) -> bool:
        """Whether an operand is needed."""
        return (self.scales is Scales.STATIC or self.tensor_scale) and not self.ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """As `state.plan.LossBound`: |converted - original| is at most the sum of these terms."""

    relative: float = 0.0
    absolute: float = 0.0
    per_row_max: float = 0.0
    per_scale: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One component of one part. `layers` are the model's numbers, `positions` those in the plan's own layers.

    `reorder`: `model` turns halves to neighbouring pairs, `rope_pairs` turns them back, '' leaves elements in order.
    """

    component: str
    step: Step
    exponent: int
    reorder: Order
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    producer_layers: tuple[int, ...]
    consumer_layers: tuple[int, ...]
    producer_dcp_rank: int
    consumer_dcp_rank: int
    head_start: int
    num_heads: int
    source: Field
    target: Field
    source_scales: Field | None
    target_scales: Field | None
    decode: Codec
    encode: Codec
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A dense region: `outer` slices of `num_blocks` blocks of `block_bytes`."""

    outer: int
    block_bytes: int

    def size_bytes(self, num_blocks: int) -> int:
        return self.outer * num_blocks * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's regions."""

    rank: int
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A whole plan."""

    fingerprint: str
    producer_shards: tuple[Shard, ...]
    consumer_shards: tuple[Shard, ...]
    producer_block_size: int
    consumer_block_size: int
    moves: tuple[Move, ...]

    @property
    def converts(self) -> bool:
        """Whether any element changes: then what arrived and what is written have digests of their own."""
        return any(move.step is not Step.COPY or move.reorder for move in self.moves)


def from_builtins(kind: Any, value: Any) -> Any:
    """A dataclass of this module again, from what `dataclasses.asdict` and JSON made of it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_builtins(hints[name], each) for name, each in value.items()})
    origin = typing.get_origin(kind)
    if origin is tuple:
        (first, *_), many = typing.get_args(kind), ... in typing.get_args(kind)
        kinds = [first] * len(value) if many else typing.get_args(kind)
        return tuple(from_builtins(each, item) for each, item in zip(kinds, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return from_builtins(next(each for each in typing.get_args(kind) if each is not type(None)), value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    return value
