"""The forms in which workers of the simulation keep KV: real representations, real verdicts and plans, made once.

A table says for each byte of each logical row where it lies in a pool or image of some extent, by a plan's own parts
and the reference's own addressing; so that executing a plan is one look-up, cheap enough for thousands of seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isthmus.core.errors import Bug
from isthmus.core.ids import Digest
from isthmus.kernels.mixing import MASK64, SPLIT_A, SPLIT_B, mix64, word_keys
from isthmus.kernels.reference import Counts, convert, gather
from isthmus.kernels.reference_codec import NUMPY_DTYPES
from isthmus.lab.seeds.paper import FIELDS, HEAD_SIZE, HEADS, LAYERS, TOKENS_MAX, Values
from isthmus.portability.verdict import Verdict, judge
from isthmus.state.encoding import Encoding, StorageDtype
from isthmus.state.identity import Identity, ModelLineage, RopeState, WeightsRecord
from isthmus.state.partition import Partition
from isthmus.state.plan import TransformPlan
from isthmus.state.representation import FIELD_NAMES, GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["FORMS", "IDENTITY", "Form", "Rows", "converted", "decode", "digest", "encode", "table", "verdict"]

Rows = NDArray[np.uint8]
"""KV as stored: [fields, layers, tokens, heads, row bytes]."""

IDENTITY: Final = Identity(
    lineage=ModelLineage(base_model="paper", revision="1"),
    weights=WeightsRecord(dtype="float32", digest="0" * 16),
    rope=RopeState(applied=True, theta=10_000.0, rope_dim=HEAD_SIZE, style="neox"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Form:
    """One way to keep KV. Equal forms are one object."""

    name: str
    representation: KVRepresentation
    storage: StorageDtype

    @property
    def group(self) -> GroupRepresentation:
        return self.representation.groups[0]

    @property
    def block_size(self) -> int:
        return self.group.block_size


def _form(name: str, storage: StorageDtype, layout: Layout, order: KvOrder, block_size: int, tp_size: int) -> Form:
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=tuple(range(LAYERS)),
        components=attention(
            heads=HEADS, head_size=HEAD_SIZE, head_size_v=HEAD_SIZE, encoding=Encoding(storage_dtype=storage)
        ),
        block_size=block_size,
        layout=layout,
        kv_order=order,
    )
    representation = KVRepresentation(groups=(group,), partition=Partition(tp_size=tp_size))
    return Form(name=name, representation=representation, storage=storage)


FORMS: Final = (
    _form("bf16 tokens outside", StorageDtype.BF16, Layout.LBNHC, KvOrder.KV_OUTER, 4, 1),
    _form("bf16 heads outside", StorageDtype.BF16, Layout.LBHNC, KvOrder.TWO_TENSORS, 2, 1),
    _form("bf16 blocks outside", StorageDtype.BF16, Layout.BLNHC, KvOrder.PACKED_C, 3, 1),
    _form("bf16 two ranks", StorageDtype.BF16, Layout.LBNHC, KvOrder.KV_OUTERMOST, 2, 2),
    _form("f32 tokens outside", StorageDtype.F32, Layout.LBNHC, KvOrder.KV_OUTER, 4, 1),
    _form("f16 two slots", StorageDtype.F16, Layout.LBNHC, KvOrder.TWO_SLOTS, 2, 1),
)


@cache
def verdict(producer: Form, consumer: Form) -> Verdict:
    """May KV cross, and by which plan? The real answer."""
    return judge((IDENTITY, producer.representation), (IDENTITY, consumer.representation))


_TABLES: dict[tuple[str, int, bool], NDArray[np.int64]] = {}


def table(plan: TransformPlan, num_blocks: int, *, producer: bool) -> NDArray[np.int64]:
    """Where each byte lies on one side of a plan: [fields, layers, slots of the pool, heads, row bytes].

    A slot is block * block_size + slot in block; places are in all regions, one after another. Made once for each
    plan and extent: pools and images are small, so there are few.
    """
    key = (plan.fingerprint, num_blocks, producer)
    if key not in _TABLES:
        _TABLES[key] = _table(plan, num_blocks, producer=producer)
    return _TABLES[key]


def _table(plan: TransformPlan, num_blocks: int, *, producer: bool) -> NDArray[np.int64]:
    group = plan.producer if producer else plan.consumer
    shards = plan.producer_shards if producer else plan.consumer_shards
    starts: dict[tuple[int, int], tuple[int, int]] = {}
    total = 0
    for shard in shards:
        for index, region in enumerate(shard.regions):
            size = region.size_bytes(num_blocks)
            starts[shard.rank, index] = total, size
            total += size
    blocks, slots = (axis.reshape(-1) for axis in np.indices((num_blocks, group.block_size)))
    row_bytes = HEAD_SIZE * group.components[0].encoding.traits.itemsize
    found = np.full((len(FIELDS), LAYERS, num_blocks * group.block_size, HEADS, row_bytes), -1, np.int64)
    for part in plan.parts:
        rank = part.producer_rank if producer else part.consumer_rank
        layers = part.producer_layers if producer else part.consumer_layers
        for runs in part.gather if producer else part.scatter:
            start, size = starts[rank, runs.field.region]
            # The reference gathers bytes out of a region; out of a region that holds addresses it gathers these.
            where = gather(np.arange(start, start + size), runs, layers, blocks, slots, num_blocks)
            heads = slice(runs.head_start, runs.head_start + runs.num_heads)
            found[FIELDS.index(runs.field.name), list(part.layers), :, heads] = where
    if found.min() < 0:
        raise Bug(f"plan {plan.fingerprint}: some rows are in none of its parts", field="parts")
    return found


def encode(values: Values, storage: StorageDtype) -> Rows:
    """Numbers as stored."""
    rows: Rows = np.ascontiguousarray(values.astype(NUMPY_DTYPES[storage])).view(np.uint8)
    return rows


def decode(rows: Rows, storage: StorageDtype) -> Values:
    """As stored, to numbers."""
    return np.ascontiguousarray(rows).view(NUMPY_DTYPES[storage]).astype(np.float32)


def converted(plan: TransformPlan, rows: Rows) -> tuple[Rows, Counts]:
    """Rows as the consumer stores them, and what did not fit."""
    counts = Counts()
    if not plan.converts:
        return rows, counts
    by_name: Mapping[str, Any] = dict(zip(FIELDS, rows, strict=True))
    found = [convert(plan.conversion(name), by_name, counts)[name] for name in FIELDS]
    return np.stack(found), counts


_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_A, _B = np.uint64(SPLIT_A), np.uint64(SPLIT_B)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> _SHIFTS[0])) * _A
    value = (value ^ (value >> _SHIFTS[1])) * _B
    mixed: NDArray[np.uint64] = value ^ (value >> _SHIFTS[2])
    return mixed


def _positions() -> NDArray[np.uint64]:
    found = np.zeros((len(FIELDS), LAYERS, TOKENS_MAX, HEADS), np.uint64)
    for field, layer, token, head in np.ndindex(*found.shape):
        found[field, layer, token, head] = mix64(
            token << 24 | layer << 14 | head << 4 | FIELD_NAMES.index(FIELDS[field])
        )
    return found


_POSITIONS: Final = _positions()
_WORD_KEYS: Final = np.array(word_keys(HEAD_SIZE), np.uint64)


def digest(rows: Rows) -> Digest:
    """The logical digest of tokens from 0 on: `kernels.reference.digest`, for the paper's shapes and in one pass."""
    words = np.ascontiguousarray(rows).view(np.uint64)
    hashes = _mix(words ^ _WORD_KEYS[: words.shape[-1]]).sum(axis=-1, dtype=np.uint64)
    total = _mix(hashes + _POSITIONS[:, :, : rows.shape[2]]).sum(dtype=np.uint64)
    return Digest(int(total) & MASK64)
