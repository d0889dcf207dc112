"""Where every element lies, derived from a representation. The one place that turns names into strides.

A region is dense: [outer, num_blocks, block_bytes]. A field (key, value, their scales) of the row at (layer, block,
token in block, local head) starts at

    offset + layer*layer_stride + block*block_stride + token*token_stride + head*head_stride

Strides of axes outside B grow with the pool: a `Stride` is `fixed + per_block * num_blocks`, so one description serves
a pool of any size, and a staging image is simply a pool of as many blocks as cross.
"""

from dataclasses import dataclass

from isthmus.core.ids import RegionId
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.representation import (
    GroupRepresentation,
    KvOrder,
    Partition,
    ScaleLocation,
)
from isthmus.state.structs import WireStruct

__all__ = ["FIELD_NAMES", "FieldAddress", "RegionShape", "ShardAddressing", "Stride", "address_shards"]

FIELD_NAMES = ("key", "value", "key_scale", "value_scale")
"""Fields of a row in their fixed order; the index is part of the logical digest's position."""


class Stride(WireStruct, frozen=True, kw_only=True):
    """Bytes between neighbours along an axis: `fixed + per_block * num_blocks`."""

    fixed: int = 0
    per_block: int = 0

    def at(self, num_blocks: int) -> int:
        return self.fixed + self.per_block * num_blocks


class FieldAddress(WireStruct, frozen=True, kw_only=True):
    """One field of a row: `count` elements of `storage_dtype`, contiguous, in region number `region` of its shard."""

    name: str
    storage_dtype: StorageDtype
    count: int
    region: int
    offset: Stride
    layer_stride: Stride
    block_stride: Stride
    token_stride: Stride
    head_stride: Stride

    @property
    def row_bytes(self) -> int:
        return self.count * TRAITS[self.storage_dtype].itemsize


class RegionShape(WireStruct, frozen=True, kw_only=True):
    """A dense region: `outer` slices of `num_blocks` blocks of `block_bytes`. Block b is `outer` spans."""

    id: RegionId
    outer: int
    block_bytes: int

    def size_bytes(self, num_blocks: int) -> int:
        return self.outer * num_blocks * self.block_bytes


class ShardAddressing(WireStruct, frozen=True, kw_only=True):
    """One shard: heads [head_start, head_stop) of the model, its regions, and its fields."""

    rank: int
    head_start: int
    head_stop: int
    regions: tuple[RegionShape, ...]
    fields: tuple[FieldAddress, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """The content of one row: (field name, dtype, count) in order."""

    fields: tuple[tuple[str, StorageDtype, int], ...]

    @property
    def size(self) -> int:
        return sum(TRAITS[dtype].itemsize * count for _, dtype, count in self.fields)


def address_shards(group: GroupRepresentation, partition: Partition) -> tuple[ShardAddressing, ...]:
    """The shards of a group, by rank.

    Raises:
        ValueError: `tp_size` does not divide `num_kv_heads`.
    """
    if group.num_kv_heads % partition.tp_size:
        raise ValueError(f"tp_size: got {partition.tp_size}, wanted a divisor of num_kv_heads = {group.num_kv_heads}")
    heads = group.num_kv_heads // partition.tp_size
    return tuple(_address_shard(group, rank=rank, heads=heads) for rank in range(partition.tp_size))


def _address_shard(group: GroupRepresentation, *, rank: int, heads: int) -> ShardAddressing:
    regions: list[RegionShape] = []
    fields: list[FieldAddress] = []
    for name, kv_order, rows in _region_rows(group):
        region = RegionId(f"tp{rank}.{name}")
        shape, found = _lay_out(group, heads, region, len(regions), kv_order, rows)
        regions.append(shape)
        fields.extend(found)
    fields.sort(key=lambda field: FIELD_NAMES.index(field.name))
    return ShardAddressing(
        rank=rank,
        head_start=rank * heads,
        head_stop=(rank + 1) * heads,
        regions=tuple(regions),
        fields=tuple(fields),
    )


def _region_rows(group: GroupRepresentation) -> list[tuple[str, KvOrder, tuple[_Row, ...]]]:
    """The regions of a shard: (name, order of its rows, rows), where more than one row means an axis over them."""
    scale = group.quant
    inline = scale is not None and scale.scale_location is ScaleLocation.INLINE
    rows = []
    for name, count in (("key", group.head_size), ("value", group.head_size_v)):
        row = [(name, group.storage_dtype, count)]
        if scale is not None and inline:
            row.append((f"{name}_scale", scale.scale_dtype, 1))
        rows.append(_Row(tuple(row)))
    key, value = rows
    regions: list[tuple[str, KvOrder, tuple[_Row, ...]]]
    if group.kv_order is KvOrder.TWO_TENSORS:
        regions = [("key", KvOrder.PACKED_C, (key,)), ("value", KvOrder.PACKED_C, (value,))]
    elif group.kv_order is KvOrder.PACKED_C:
        regions = [("kv", KvOrder.PACKED_C, (_Row(key.fields + value.fields),))]
    else:
        regions = [("kv", group.kv_order, (key, value))]
    if scale is not None and not inline:
        side = _Row((("key_scale", scale.scale_dtype, 1), ("value_scale", scale.scale_dtype, 1)))
        regions.append(("scale", KvOrder.PACKED_C, (side,)))
    return regions


def _lay_out(
    group: GroupRepresentation,
    heads: int,
    region_id: RegionId,
    region: int,
    kv_order: KvOrder,
    rows: tuple[_Row, ...],
) -> tuple[RegionShape, list[FieldAddress]]:
    """Walk the axes from the innermost outwards and give each its stride."""
    slots = heads * len(rows) if kv_order is KvOrder.TWO_SLOTS else heads
    extents = {"L": group.num_layers, "B": 0, "H": slots, "N": group.block_size, "K": len(rows)}
    axes = list(group.layout.value[:-1])
    if kv_order is KvOrder.KV_OUTER:
        axes.insert(axes.index("L") + 1, "K")
    strides: dict[str, Stride] = {}
    size, block_bytes = rows[0].size, 0
    for axis in reversed(axes):
        if axis == "B":
            block_bytes = size
            strides[axis] = Stride(fixed=size)
            continue
        strides[axis] = Stride(per_block=size) if block_bytes else Stride(fixed=size)
        size *= extents[axis]
    outer = size // block_bytes
    fields = []
    for index, row in enumerate(rows):
        step = _row_step(kv_order, strides, heads)
        start = Stride(fixed=step.fixed * index, per_block=step.per_block * index)
        inner = 0
        for name, dtype, count in row.fields:
            fields.append(
                FieldAddress(
                    name=name,
                    storage_dtype=dtype,
                    count=count,
                    region=region,
                    offset=Stride(fixed=start.fixed + inner, per_block=start.per_block),
                    layer_stride=strides["L"],
                    block_stride=strides["B"],
                    token_stride=strides["N"],
                    head_stride=strides["H"],
                )
            )
            inner += TRAITS[dtype].itemsize * count
    return RegionShape(id=region_id, outer=outer, block_bytes=block_bytes), fields


def _row_step(kv_order: KvOrder, strides: dict[str, Stride], heads: int) -> Stride:
    """Bytes from K's rows to V's."""
    if kv_order is KvOrder.KV_OUTER:
        return strides["K"]
    if kv_order is KvOrder.TWO_SLOTS:
        return Stride(fixed=strides["H"].fixed * heads, per_block=strides["H"].per_block * heads)
    return Stride()
