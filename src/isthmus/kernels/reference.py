"""The definition of every kernel, in NumPy, written to be read: no stride tricks, no fused passes.

Positions are addressed byte by byte from `state.addressing`; encodings are those of `reference_codec`; digests are
unsigned 64-bit arithmetic. Whatever runs elsewhere must agree with this bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isthmus.core.errors import BadInput
from isthmus.core.ids import Digest
from isthmus.kernels.binding import Binding
from isthmus.kernels.mixing import MASK64, mix64, word_keys
from isthmus.kernels.reference_codec import NUMPY_DTYPES, Bytes, Encoded, Floats, decode, encode
from isthmus.state.digits import Axis
from isthmus.state.encoding import Granularity, NibbleOrder
from isthmus.state.fields import FieldAddress
from isthmus.state.plan import Conversion, PlanPart, Rebias, Reorder, Runs, TransformPlan
from isthmus.state.representation import FIELD_NAMES

__all__ = ["Counts", "Rows", "Scales", "convert", "digest", "execute", "gather", "row_hashes", "scatter"]

Index = NDArray[np.int64]
Rows = Mapping[str, Bytes]
"""Field name to uint8 [L, T, H, row_bytes]."""

Scales = Mapping[str, Floats]
"""Component to static scales: f32 [L] for one a layer, [L, H] for heads, [L, H, count] for channels; the model's heads,
and the layers of the plan in order. For a tensor scale [L].
"""


@dataclass(slots=True)
class Counts:
    """Elements that saturated or were no numbers, by component. What saturated is reported, never wrapped."""

    saturated: dict[str, int] = field(default_factory=dict)
    not_a_number: dict[str, int] = field(default_factory=dict)

    def add(self, component: str, encoded: Encoded) -> None:
        self.saturated[component] = self.saturated.get(component, 0) + encoded.saturated
        self.not_a_number[component] = self.not_a_number.get(component, 0) + encoded.not_a_number


def _digits(address: FieldAddress, axis: Axis, index: Index, num_blocks: int) -> Index:
    """The bytes that an axis adds at each index."""
    total = np.zeros_like(index)
    for digit in address.digits:
        if digit.axis is axis:
            place = index // digit.divisor
            total += (place % digit.extent if digit.extent else place) * digit.stride.at(num_blocks)
    return total


def _offsets(runs: Runs, layers: Index, blocks: Index, slots: Index, num_blocks: int) -> Index:
    """The byte of each unit: [L, T, H, units]."""
    address = runs.field
    layer = _digits(address, Axis.LAYER, layers, num_blocks)
    token = _digits(address, Axis.BLOCK, blocks, num_blocks) + _digits(address, Axis.TOKEN, slots, num_blocks)
    head = _digits(address, Axis.HEAD, runs.head + np.arange(runs.num_heads), num_blocks)
    unit = _digits(address, Axis.UNIT, np.arange(address.units), num_blocks)
    start = address.offset.at(num_blocks)
    offsets: Index = start + layer[:, None, None, None] + token[None, :, None, None] + head[None, None, :, None] + unit
    return offsets


def gather(region: Bytes, runs: Runs, layers: Sequence[int], blocks: Index, slots: Index, num_blocks: int) -> Bytes:
    """The rows of one field out of a flat region: uint8 [L, T, H, row_bytes]. `layers` are the shard's own numbers."""
    offsets = _offsets(runs, np.asarray(layers), blocks, slots, num_blocks)
    rows: Bytes = region[offsets[..., None] + np.arange(runs.field.unit_bytes)]
    return rows.reshape(*offsets.shape[:3], runs.field.row_bytes)


def scatter(
    region: Bytes, runs: Runs, rows: Bytes, layers: Sequence[int], blocks: Index, slots: Index, num_blocks: int
) -> None:
    """The inverse of `gather`, in place."""
    offsets = _offsets(runs, np.asarray(layers), blocks, slots, num_blocks)
    region[offsets[..., None] + np.arange(runs.field.unit_bytes)] = rows.reshape(*offsets.shape, runs.field.unit_bytes)


def convert(
    conversion: Conversion, rows: Rows, counts: Counts, source: Floats | None = None, target: Floats | None = None
) -> dict[str, Bytes]:
    """One component's rows (and scales) as the consumer stores them. Static scales are broadcastable to the rows."""
    name, scale_name = conversion.component, f"{conversion.component}_scale"
    own = {field: raw for field, raw in rows.items() if field in (name, scale_name)}
    ops = conversion.ops
    if not ops:
        return own
    if len(ops) == 1 and isinstance(ops[0], Reorder):
        return own | {name: _reordered_codes(own[name], ops[0], conversion)}
    if isinstance(ops[0], Rebias):
        return _rebias(conversion, own, ops[0], counts)
    values = decode(own[name], conversion.source, own.get(scale_name), source)
    for op in ops:
        if isinstance(op, Reorder):
            values = _reorder(values, op)
    encoded = encode(values, conversion.target, target)
    counts.add(name, encoded)
    converted = {name: encoded.raw}
    if encoded.scales is not None:
        converted[scale_name] = encoded.scales
    return converted


def _rebias(conversion: Conversion, own: Rows, op: Rebias, counts: Counts) -> dict[str, Bytes]:
    name, scale_name = conversion.component, f"{conversion.component}_scale"
    factor = np.float32(2.0**op.exponent)
    codes = own[name].view(NUMPY_DTYPES[op.source]).astype(np.float32) / factor
    plain = type(conversion.target)(storage_dtype=op.target)
    for other in conversion.ops[1:]:
        assert isinstance(other, Reorder)
        codes = _reorder(codes, other)
    encoded = encode(codes, plain)
    counts.add(name, encoded)
    scales = (np.ascontiguousarray(own[scale_name]).view("<f4") * factor).astype("<f4")
    return {name: encoded.raw, scale_name: scales.view(np.uint8)}


def _reorder(values: Floats, op: Reorder) -> Floats:
    """Elements from halves to neighbouring pairs, or back."""
    inner = (2, values.shape[-1] // 2) if op.source == "model" else (values.shape[-1] // 2, 2)
    turned = np.swapaxes(values.reshape(*values.shape[:-1], *inner), -1, -2)
    return np.ascontiguousarray(turned).reshape(values.shape)


def _reordered_codes(raw: Bytes, op: Reorder, conversion: Conversion) -> Bytes:
    if op.source in tuple(NibbleOrder):
        high: Bytes = raw << 4
        low: Bytes = raw >> 4
        return high | low
    size = conversion.source.traits.itemsize
    return _reorder(np.ascontiguousarray(raw).view(f"u{size}"), op).view(np.uint8)


def row_hashes(
    raw: Bytes, *, field_index: int, layers: Sequence[int], tokens: Sequence[int], head_start: int, key: int = 0
) -> NDArray[np.uint64]:
    """The keyed hash of each row of uint8 [L, T, H, row_bytes]: uint64 [L, T, H]. Plain Python integers."""
    row_bytes = raw.shape[-1]
    words = -(-row_bytes // 8)
    keys = word_keys(words)
    hashes = np.zeros(raw.shape[:3], dtype=np.uint64)
    for layer, token, head in np.ndindex(*raw.shape[:3]):
        row = raw[layer, token, head].tobytes().ljust(words * 8, b"\0")
        total = 0
        for index, word_key in enumerate(keys):
            word = int.from_bytes(row[index * 8 : index * 8 + 8], "little")
            total += mix64(word ^ word_key)
        position = int(tokens[token]) << 24 | layers[layer] << 14 | (head_start + head) << 4 | field_index
        hashes[layer, token, head] = mix64(total + mix64(position ^ key))
    return hashes


def digest(rows: Rows, *, layers: Sequence[int], tokens: Sequence[int], head_start: int, key: int = 0) -> Digest:
    """The logical digest of some rows: the sum of their hashes."""
    total = 0
    for name, raw in rows.items():
        hashes = row_hashes(
            raw, field_index=FIELD_NAMES.index(name), layers=layers, tokens=tokens, head_start=head_start, key=key
        )
        total += sum(int(value) for value in hashes.flat)
    return Digest(total & MASK64)


def execute(
    plan: TransformPlan,
    binding: Binding,
    producer: Sequence[Sequence[Bytes]],
    consumer: Sequence[Sequence[Bytes]],
    producer_scales: Scales | None = None,
    consumer_scales: Scales | None = None,
) -> Counts:
    """Run a whole plan: flat regions by [shard][region], the consumer's written in place.

    Raises:
        BadInput: static scales are needed and not given.
    """
    counts = Counts()
    sources = {shard.rank: regions for shard, regions in zip(plan.producer_shards, producer, strict=True)}
    targets = {shard.rank: regions for shard, regions in zip(plan.consumer_shards, consumer, strict=True)}
    for part in plan.parts:
        chosen = binding.tokens_of(part)
        if not len(chosen):
            continue  # so few tokens that none is dealt to both ranks
        here, there = binding.producer.of(chosen), binding.consumer.of(chosen)
        rows = {
            runs.field.name: gather(
                sources[part.producer_rank][runs.field.region],
                runs,
                part.producer_layers,
                here.blocks,
                here.slots,
                here.num_blocks,
            )
            for runs in part.gather
        }
        converted: dict[str, Bytes] = {}
        for conversion in plan.conversions:
            if conversion.component in rows:
                converted |= convert(
                    conversion,
                    rows,
                    counts,
                    _static(plan, part, conversion, producer_scales, source=True),
                    _static(plan, part, conversion, consumer_scales, source=False),
                )
        for runs in part.scatter:
            scatter(
                targets[part.consumer_rank][runs.field.region],
                runs,
                converted[runs.field.name],
                part.consumer_layers,
                there.blocks,
                there.slots,
                there.num_blocks,
            )
    return counts


def _static(
    plan: TransformPlan, part: PlanPart, conversion: Conversion, given: Scales | None, *, source: bool
) -> Floats | None:
    """A side's static scales for the rows of a part, as [L, 1, H or 1, count or 1]; None where it has none."""
    encoding = conversion.source if source else conversion.target
    moved_only = all(isinstance(op, Reorder) for op in conversion.ops)
    if encoding.quant is None or not encoding.quant.static or moved_only:
        return None
    if encoding.quant.scale_values == "ones":
        return np.ones((1, 1, 1, 1), np.float32)
    side = "producer" if source else "consumer"
    if given is None or conversion.component not in given:
        raise BadInput(
            f"scales: the {side}'s {conversion.component} has static scales of digest "
            f"{encoding.quant.scale_values or 'unknown'}; give their values",
            field="quant.scale_values",
        )
    said = (plan.producer if source else plan.consumer).component(conversion.component).encoding.quant
    assert said is not None  # it has a meaning, so it is there: the values come in the shape that it names
    runs = next(runs for runs in part.gather if runs.field.name == conversion.component)
    heads = slice(runs.head_start, runs.head_start + runs.num_heads)
    layers = plan.layers
    positions = [layers.index(layer) for layer in part.layers]
    scales = given[conversion.component].astype(np.float32)[positions]
    if said.granularity is Granularity.HEAD:
        return scales[:, None, heads, None]
    if said.granularity is Granularity.CHANNEL:
        return scales[:, None, heads, :]
    return scales[:, None, None, None]
