"""The plan that rewrites one representation as another: types only. `portability` compiles it, `kernels` runs it.

A plan is small and affine, and does not grow with tokens: for each part (a producer shard and a consumer shard that
share heads, layers and tokens) gather runs, then element operations, then scatter runs. Binding it to two block tables
gives addresses.
"""

import enum

from isthmus.state.encoding import Encoding, Granularity, StorageDtype
from isthmus.state.fields import FieldAddress, ShardAddressing
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupRepresentation
from isthmus.state.structs import WireStruct

__all__ = [
    "Cast",
    "Conversion",
    "Dequantise",
    "ElementOp",
    "LossBound",
    "Outcome",
    "PlanPart",
    "Quantise",
    "Rebias",
    "Reorder",
    "Runs",
    "TransformPlan",
]


class Outcome(enum.StrEnum):
    """The paper's outcomes, and `unknown`, which is refused."""

    DIRECT = "direct"
    REDISTRIBUTE = "redistribute"
    CONVERT = "convert"
    REDISTRIBUTE_CONVERT = "redistribute+convert"
    REJECT = "reject"
    UNKNOWN = "unknown"


class Cast(WireStruct, frozen=True, kw_only=True, tag="cast"):
    """Each element to the nearest value of `target` (ties to even); beyond its range, to its largest, and counted."""

    source: StorageDtype
    target: StorageDtype


class Dequantise(WireStruct, frozen=True, kw_only=True, tag="dequantise"):
    """value = code * scale * tensor scale, in f32. A static scale comes from the layer, by binding."""

    source: StorageDtype
    granularity: Granularity
    static: bool = False


class Quantise(WireStruct, frozen=True, kw_only=True, tag="quantise"):
    """code = value / scale, to the nearest, ties to even. Where the scale is not static it is found on the way:
    max|what shares it| / the largest code, in f32, rounded up to `scale_dtype`, at least that one's smallest.
    """

    target: StorageDtype
    granularity: Granularity
    scale_dtype: StorageDtype
    static: bool = False


class Rebias(WireStruct, frozen=True, kw_only=True, tag="rebias"):
    """The same codes under another exponent bias, and the scale times 2**exponent. Exact; -0 becomes 0."""

    source: StorageDtype
    target: StorageDtype
    exponent: int


class Reorder(WireStruct, frozen=True, kw_only=True, tag="reorder"):
    """Elements from one order to the other: `model` (halves) or `rope_pairs` (neighbours)."""

    source: str
    target: str


ElementOp = Cast | Dequantise | Quantise | Rebias | Reorder


class LossBound(WireStruct, frozen=True, kw_only=True):
    """For each element: |converted - original| <= relative*|original| + absolute + per_row_max*max|row|
    + per_scale*scale, where what shares a scale is the row, and scale is the consumer's (or 1).
    """

    relative: float = 0.0
    absolute: float = 0.0
    per_row_max: float = 0.0
    per_scale: float = 0.0

    @property
    def lossless(self) -> bool:
        return self.relative == self.absolute == self.per_row_max == self.per_scale == 0.0


class Conversion(WireStruct, frozen=True, kw_only=True):
    """What happens to one component between gather and scatter. No ops: its bytes stay as they are.

    `range_shrinks` says that finite values of the source lie beyond the target's largest: such are counted.
    """

    component: str
    source: Encoding
    target: Encoding
    ops: tuple[ElementOp, ...]
    loss: LossBound
    range_shrinks: bool = False

    @property
    def lossless(self) -> bool:
        return self.loss.lossless and not self.range_shrinks


class Runs(WireStruct, frozen=True, kw_only=True):
    """One field on one side of a part: its address, from local head `head` (the model's `head_start`) on."""

    field: FieldAddress
    head: int
    num_heads: int
    head_start: int


class PlanPart(WireStruct, frozen=True, kw_only=True):
    """What one producer shard hands to one consumer shard: the layers `layers` of the model, which are
    `producer_layers` and `consumer_layers` in the two shards' own counting, and some heads of each field.
    """

    producer_rank: int
    consumer_rank: int
    producer_dcp_rank: int
    consumer_dcp_rank: int
    layers: tuple[int, ...]
    producer_layers: tuple[int, ...]
    consumer_layers: tuple[int, ...]
    gather: tuple[Runs, ...]
    scatter: tuple[Runs, ...]


class TransformPlan(WireStruct, frozen=True, kw_only=True):
    """How the layers that a producer's group and a consumer's share are rewritten.

    `fingerprint` is over everything else here.
    """

    outcome: Outcome
    producer_group: int
    consumer_group: int
    producer: GroupRepresentation
    consumer: GroupRepresentation
    producer_partition: Partition
    consumer_partition: Partition
    producer_shards: tuple[ShardAddressing, ...]
    consumer_shards: tuple[ShardAddressing, ...]
    parts: tuple[PlanPart, ...]
    conversions: tuple[Conversion, ...]
    fingerprint: str = ""

    @property
    def lossless(self) -> bool:
        return all(conversion.lossless for conversion in self.conversions)

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's layers that the plan moves, ascending."""
        return tuple(sorted({layer for part in self.parts for layer in part.layers}))

    @property
    def converts(self) -> bool:
        return any(conversion.ops for conversion in self.conversions)

    def conversion(self, component: str) -> Conversion:
        """The conversion of a component. Raises KeyError."""
        for conversion in self.conversions:
            if conversion.component == component:
                return conversion
        raise KeyError(component)
