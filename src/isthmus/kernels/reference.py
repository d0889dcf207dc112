"""The definition of every kernel, in NumPy, written to be read: no strides tricks, no fused passes.

Positions are addressed byte by byte from `state.addressing`; encodings are those of `ml_dtypes`; digests are unsigned
64-bit arithmetic. Whatever runs elsewhere must agree with this bit for bit.
"""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from isthmus.core.ids import Digest
from isthmus.kernels.binding import Binding
from isthmus.kernels.mixing import MASK64, mix64, word_keys
from isthmus.state.addressing import FIELD_NAMES
from isthmus.state.encoding import SCALE_MIN, TRAITS, StorageDtype
from isthmus.state.plan import Runs, TransformPlan
from isthmus.state.representation import Quant

__all__ = ["Rows", "convert", "decode", "digest", "encode", "execute", "gather", "row_hashes", "scatter"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Index = NDArray[np.int64]
Rows = Mapping[str, Bytes]
"""Field name to uint8 [L, T, H, row_bytes]."""

NUMPY_DTYPES: dict[StorageDtype, np.dtype] = {
    StorageDtype.F32: np.dtype("<f4"),
    StorageDtype.BF16: np.dtype(ml_dtypes.bfloat16),
    StorageDtype.F16: np.dtype("<f2"),
    StorageDtype.F8_E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    StorageDtype.I8: np.dtype("i1"),
}


def encode(values: Floats, dtype: StorageDtype, quant: Quant | None) -> tuple[Bytes, Floats | None]:
    """f32 [..., count] to uint8 [..., row_bytes] and f32 scales [...] or None."""
    if quant is not None:
        scale = np.maximum(np.abs(values).max(axis=-1) / np.float32(127), np.float32(SCALE_MIN))
        codes = np.clip(np.rint(values / scale[..., None]), -127, 127).astype(np.int8)
        return codes.view(np.uint8), scale
    largest = np.float32(TRAITS[dtype].largest)
    stored = np.ascontiguousarray(np.clip(values, -largest, largest).astype(NUMPY_DTYPES[dtype]))
    return stored.view(np.uint8), None


def decode(raw: Bytes, dtype: StorageDtype, scale: Floats | None) -> Floats:
    """uint8 [..., row_bytes] and f32 scales [...] or None to f32 [..., count]."""
    values = np.ascontiguousarray(raw).view(NUMPY_DTYPES[dtype]).astype(np.float32)
    return values if scale is None else values * scale[..., None]


def _offsets(runs: Runs, layers: int, blocks: Index, slots: Index, num_blocks: int) -> Index:
    """Byte offset of each row: [L, T, H]."""
    field = runs.field
    layer = np.arange(layers) * field.layer_stride.at(num_blocks)
    token = blocks * field.block_stride.at(num_blocks) + slots * field.token_stride.at(num_blocks)
    head = (runs.head + np.arange(runs.num_heads)) * field.head_stride.at(num_blocks)
    start = field.offset.at(num_blocks)
    offsets: Index = start + layer[:, None, None] + token[None, :, None] + head[None, None, :]
    return offsets


def gather(region: Bytes, runs: Runs, layers: int, blocks: Index, slots: Index, num_blocks: int) -> Bytes:
    """The rows of one field out of a flat region: uint8 [L, T, H, row_bytes]."""
    offsets = _offsets(runs, layers, blocks, slots, num_blocks)
    rows: Bytes = region[offsets[..., None] + np.arange(runs.field.row_bytes)]
    return rows


def scatter(region: Bytes, runs: Runs, rows: Bytes, blocks: Index, slots: Index, num_blocks: int) -> None:
    """The inverse of `gather`, in place."""
    offsets = _offsets(runs, rows.shape[0], blocks, slots, num_blocks)
    region[offsets[..., None] + np.arange(runs.field.row_bytes)] = rows


def convert(plan: TransformPlan, rows: Rows) -> dict[str, Bytes]:
    """The element operations of a plan, from the producer's rows to the consumer's."""
    if not plan.ops:
        return dict(rows)
    converted: dict[str, Bytes] = {}
    for name in ("key", "value"):
        scale = rows[f"{name}_scale"].view("<f4")[..., 0] if f"{name}_scale" in rows else None
        values = decode(rows[name], plan.producer.storage_dtype, scale)
        converted[name], scale = encode(values, plan.consumer.storage_dtype, plan.consumer.quant)
        if scale is not None:
            converted[f"{name}_scale"] = np.ascontiguousarray(scale[..., None]).view(np.uint8)
    return converted


def row_hashes(
    raw: Bytes, *, field_index: int, layer_start: int, token_start: int, head_start: int, key: int = 0
) -> NDArray[np.uint64]:
    """The keyed hash of each row of uint8 [L, T, H, row_bytes]: uint64 [L, T, H]. Plain Python integers."""
    layers, tokens, heads, row_bytes = raw.shape
    words = -(-row_bytes // 8)
    keys = word_keys(words)
    hashes = np.zeros((layers, tokens, heads), dtype=np.uint64)
    for layer, token, head in np.ndindex(layers, tokens, heads):
        row = raw[layer, token, head].tobytes().ljust(words * 8, b"\0")
        total = 0
        for index, word_key in enumerate(keys):
            word = int.from_bytes(row[index * 8 : index * 8 + 8], "little")
            total += mix64(word ^ word_key)
        position = (token_start + token) << 24 | (layer_start + layer) << 14 | (head_start + head) << 3 | field_index
        hashes[layer, token, head] = mix64(total + mix64(position ^ key))
    return hashes


def digest(rows: Rows, *, layer_start: int, token_start: int, head_start: int, key: int = 0) -> Digest:
    """The logical digest of some rows: the sum of their hashes."""
    total = 0
    for name, raw in rows.items():
        hashes = row_hashes(
            raw,
            field_index=FIELD_NAMES.index(name),
            layer_start=layer_start,
            token_start=token_start,
            head_start=head_start,
            key=key,
        )
        total += sum(int(value) for value in hashes.flat)
    return Digest(total & MASK64)


def execute(
    plan: TransformPlan,
    binding: Binding,
    producer: Sequence[Sequence[Bytes]],
    consumer: Sequence[Sequence[Bytes]],
) -> None:
    """Run a whole plan: flat regions by [rank][region], the consumer's written in place."""
    layers = plan.producer.num_layers
    for part in plan.parts:
        rows = {
            runs.field.name: gather(
                producer[part.producer_rank][runs.field.region],
                runs,
                layers,
                binding.producer.blocks,
                binding.producer.slots,
                binding.producer.num_blocks,
            )
            for runs in part.gather
        }
        converted = convert(plan, rows)
        for runs in part.scatter:
            scatter(
                consumer[part.consumer_rank][runs.field.region],
                runs,
                converted[runs.field.name],
                binding.consumer.blocks,
                binding.consumer.slots,
                binding.consumer.num_blocks,
            )
