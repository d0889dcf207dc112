"""The plan that rewrites one representation as another: types only. `portability` compiles it, `kernels` runs it.

A plan is small and affine, and does not grow with tokens: for each part (a producer shard and a consumer shard that
share heads) gather runs, then element operations, then scatter runs. Binding it to two block tables gives addresses.
"""

import enum

from isthmus.state.addressing import FieldAddress, ShardAddressing
from isthmus.state.encoding import StorageDtype
from isthmus.state.representation import GroupRepresentation, Partition
from isthmus.state.structs import WireStruct

__all__ = [
    "Cast",
    "Dequantise",
    "ElementOp",
    "LossBound",
    "Outcome",
    "PlanPart",
    "Quantise",
    "RunAt",
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


class RunAt(enum.StrEnum):
    """Where a transformation runs."""

    PRODUCER = "producer"
    TRANSPORT = "transport"
    CONSUMER = "consumer"


class Cast(WireStruct, frozen=True, kw_only=True, tag="cast"):
    """Each element to the nearest value of `target` (ties to even); beyond its range, to its largest."""

    source: StorageDtype
    target: StorageDtype


class Dequantise(WireStruct, frozen=True, kw_only=True, tag="dequantise"):
    """value = code * scale, in f32."""

    source: StorageDtype
    granularity: str


class Quantise(WireStruct, frozen=True, kw_only=True, tag="quantise"):
    """scale = max|row| / 127 in f32, at least `SCALE_MIN`; code = value / scale, rounded to even."""

    target: StorageDtype
    granularity: str


ElementOp = Cast | Dequantise | Quantise


class Runs(WireStruct, frozen=True, kw_only=True):
    """One field on one side of a part: its address, from local head `head` on, for `num_heads` heads."""

    field: FieldAddress
    head: int
    num_heads: int


class PlanPart(WireStruct, frozen=True, kw_only=True):
    """The heads [head_start, head_stop) of the model that one producer shard hands to one consumer shard."""

    producer_rank: int
    consumer_rank: int
    head_start: int
    head_stop: int
    gather: tuple[Runs, ...]
    scatter: tuple[Runs, ...]


class LossBound(WireStruct, frozen=True, kw_only=True):
    """For each element: |converted - original| <= relative*|original| + absolute + per_row_max*max|row|."""

    relative: float = 0.0
    absolute: float = 0.0
    per_row_max: float = 0.0

    @property
    def lossless(self) -> bool:
        return self.relative == self.absolute == self.per_row_max == 0.0


class TransformPlan(WireStruct, frozen=True, kw_only=True):
    """How one layer group is rewritten. `fingerprint` is over everything else here."""

    outcome: Outcome
    producer: GroupRepresentation
    consumer: GroupRepresentation
    producer_partition: Partition
    consumer_partition: Partition
    producer_shards: tuple[ShardAddressing, ...]
    consumer_shards: tuple[ShardAddressing, ...]
    parts: tuple[PlanPart, ...]
    ops: tuple[ElementOp, ...]
    loss: LossBound
    run_at: RunAt
    run_at_reason: str
    fingerprint: str = ""
