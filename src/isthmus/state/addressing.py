"""Where every element lies, derived from a representation. The one place that turns names into strides.

A region is dense: [outer, num_blocks, block_bytes]. A field (a component or its scales) has an offset and digits
(`state.digits`). One description serves a pool of any size, and a staging image is simply a pool of as many blocks as
cross.
"""

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from isthmus.core.ids import RegionId
from isthmus.state.digits import Axis, Digit, Stride
from isthmus.state.encoding import ScaleLocation
from isthmus.state.fields import FieldAddress, RegionShape, ShardAddressing
from isthmus.state.lanes import Lane, LaneField, lanes_of, local_heads, location, side_lane
from isthmus.state.partition import Partition
from isthmus.state.representation import FIELD_NAMES, Component, GroupRepresentation, KvOrder
from isthmus.state.structs import require

__all__ = ["address_rank", "address_shards", "heads_of", "stage_of"]

_FIELD_INDEX = {name: index for index, name in enumerate(FIELD_NAMES)}


@lru_cache(maxsize=1024)
def address_shards(group: GroupRepresentation, partition: Partition, prefix: str = "") -> tuple[ShardAddressing, ...]:
    """The shards of a group, by rank; of pipeline stages only those that hold one of its layers.

    Remembered: a hand-off asks several times, each offer that is decoded asks, and a fleet has few forms.

    Args:
        prefix: goes before every region's id, to tell groups apart.

    Raises:
        ValueError: the partition or the interior does not fit the heads, the block or the layout.
    """
    if partition.dcp_size > 1:
        _check_dcp(group, partition)
    shards = []
    for stage in range(partition.pp_size):
        start, stop = stage_of(group, partition, stage)
        if start == stop:
            continue
        regions, fields = address_rank(group, partition.tp_size, stop - start)
        for tp_rank in range(partition.tp_size):
            rank = stage * partition.tp_size + tp_rank
            shards.append(
                ShardAddressing(
                    rank=rank,
                    layer_start=start,
                    layer_stop=stop,
                    dcp_rank=tp_rank % partition.dcp_size,
                    regions=tuple(
                        RegionShape(id=RegionId(f"{prefix}tp{rank}.{name}"), outer=outer, block_bytes=size)
                        for name, outer, size in regions
                    ),
                    fields=tuple(_of_rank(field, total, partition.tp_size, tp_rank) for field, total in fields),
                )
            )
    return tuple(shards)


def _check_dcp(group: GroupRepresentation, partition: Partition) -> None:
    """Tokens are dealt to ranks that hold the same heads: each head needs as many holders."""
    require(
        group.block_size % partition.dcp_interleave == 0,
        "dcp_interleave",
        partition.dcp_interleave,
        f"a divisor of block_size = {group.block_size}",
    )
    for part in group.components:
        fewest = part.heads * partition.dcp_size
        require(
            partition.tp_size % fewest == 0,
            "dcp_size",
            partition.dcp_size,
            f"one for which {part.name}'s heads x dcp_size = {fewest} divides tp_size = {partition.tp_size}",
        )


def heads_of(heads: int, tp_size: int, tp_rank: int) -> tuple[int, int]:
    """The heads [start, stop) of a rank: an even share, or one that neighbours hold too. Raises ValueError."""
    each = local_heads(heads, tp_size)
    start = tp_rank * heads // tp_size
    return start, start + each


def stage_of(group: GroupRepresentation, partition: Partition, stage: int) -> tuple[int, int]:
    """The positions [start, stop) in the group's layers that a pipeline stage holds."""
    if partition.pp_size == 1:
        return 0, group.num_layers
    first = partition.pp_starts[stage]
    last = partition.pp_starts[stage + 1] if stage + 1 < partition.pp_size else None
    held = [at for at, layer in enumerate(group.layers) if layer >= first and (last is None or layer < last)]
    return (held[0], held[-1] + 1) if held else (0, 0)


def _of_rank(field: FieldAddress, heads_total: int, tp_size: int, tp_rank: int) -> FieldAddress:
    start = heads_of(heads_total, tp_size, tp_rank)[0]
    return msgspec.structs.replace(field, head_start=start) if start else field


_Regions = list[tuple[str, int, int]]
_Fields = list[tuple[FieldAddress, int]]


def address_rank(group: GroupRepresentation, tp_size: int, layers: int) -> tuple[_Regions, _Fields]:
    """One rank with `layers` layers: its regions (name, outer, block bytes), and its fields as tensor-parallel rank 0
    has them, each with the heads of all ranks. Raises ValueError as `address_shards`.
    """
    regions: _Regions = []
    fields: _Fields = []
    apart = group.kv_order is KvOrder.TWO_TENSORS
    for parts in _apart(group) if apart else [group.components]:
        inside = msgspec.structs.replace(group, kv_order=KvOrder.TWO_SLOTS) if apart and len(parts) > 1 else group
        name = ("conv" if len(parts) > 1 else parts[0].name) if apart else "kv"
        _walk(inside, lanes_of(inside, parts, tp_size), layers, name, regions, fields)
        side = [part for part in parts if location(part) is ScaleLocation.SIDE_POOL]
        if side:
            heads = {part.heads for part in side}
            require(len(heads) == 1, "kv_order", group.kv_order.value, "two_tensors where heads of a side pool differ")
            name = f"{parts[0].name}_scale" if apart else "scale"
            _walk(_unpadded(group), [side_lane(side, tp_size)], layers, name, regions, fields)
    fields.sort(key=lambda found: _FIELD_INDEX[found[0].name])
    return regions, fields


def _apart(group: GroupRepresentation) -> list[tuple[Component, ...]]:
    """What has a region of its own: each component, and the sections of a convolution together."""
    sections = tuple(part for part in group.components if part.name.startswith("conv_"))
    others: list[tuple[Component, ...]] = [(part,) for part in group.components if part not in sections]
    return [sections, *others] if sections else others


def _unpadded(group: GroupRepresentation) -> GroupRepresentation:
    return msgspec.structs.replace(group, page_size_padded=0) if group.page_size_padded else group


_NONE = Stride()


@dataclass(slots=True)
class _Walked:
    """What the walk has found of one lane so far."""

    lane: Lane
    size: int
    start: Stride = _NONE
    head: Stride = _NONE
    token: Stride = _NONE
    rows_end: int = 0  # where segregated scales begin in a page


def _walk(
    group: GroupRepresentation, lanes: list[Lane], layers: int, name: str, regions: _Regions, fields: _Fields
) -> None:
    """Walk the axes of one region from the innermost outwards, and give each its stride."""
    axes = list(group.layout.value[:-1])
    if len(lanes) > 1 and group.kv_order in (KvOrder.KV_OUTER, KvOrder.KV_OUTERMOST):
        axes.insert(axes.index("L") + (group.kv_order is KvOrder.KV_OUTER), "K")
    page_axis = axes[-2] if {axes[-1], axes[-2]} == {"N", "H"} else "B"
    found = [_Walked(lane, lane.size) for lane in lanes]
    layer, block = Stride(), 0
    for axis in reversed(axes):
        if axis == "B":
            if page_axis == "B":
                _page(group, found, axes)
            block = found[0].size
            require(all(each.size == block for each in found), "layout", group.layout.value, "one with H inside B")
        elif axis == "N":
            for each in found:
                each.token = Stride(each.size)
                each.size *= 1 if each.lane.tiled else group.block_size
        elif axis == "H":
            _heads(group, found, block)
        elif axis == "K":
            for at, each in enumerate(found):
                each.start = _stride(each.size, block).times(at)
                each.size *= len(found)
        else:
            same = all(each.size == found[0].size for each in found)
            require(same, "layout", group.layout.value, "one with H inside L")
            layer = _stride(found[0].size, block)
            for each in found:
                each.size *= layers
        if axis == page_axis != "B":
            _page(group, found, axes)
    outer = found[0].size // block
    for each in found:
        fields.extend(_fields(group, each, len(regions), layers, layer, Stride(block)))
    regions.append((name, outer, block))


def _stride(size: int, block: int) -> Stride:
    """A stride along an axis, inside the block or (once its bytes are known) outside."""
    return Stride(0, size) if block else Stride(size)


def _heads(group: GroupRepresentation, found: list[_Walked], block: int) -> None:
    """The axis H: heads of one lane after another's where it counts slots, else of all lanes alike."""
    for each in found:
        each.head = _stride(each.size, block)
    if group.kv_order is not KvOrder.TWO_SLOTS:
        for each in found:
            each.size *= each.lane.heads
        return
    total = 0
    for each in found:
        each.start = _stride(total, block)
        total += each.size * each.lane.heads + each.lane.tail
    for each in found:
        each.size = total


def _page(group: GroupRepresentation, found: list[_Walked], axes: list[str]) -> None:
    """A page is complete: its segregated scales follow, then its padding."""
    apart = [sum(field.segregated for field in each.lane.fields) * each.lane.heads for each in found]
    if any(apart):
        require(axes[-1] in "NH" and axes[-2] in "NH", "layout", group.layout.value, "a page of rows")
    slots, before = group.kv_order is KvOrder.TWO_SLOTS, 0
    for each, scales in zip(found, apart, strict=True):
        each.rows_end = each.size + (before if slots else 0)
        each.size += (sum(apart) if slots else scales) * group.block_size
        before += scales * group.block_size
        if group.page_size_padded:
            _fits(group, each.size)
            each.size = group.page_size_padded


def _fits(group: GroupRepresentation, size: int) -> None:
    require(size <= group.page_size_padded, "page_size_padded", group.page_size_padded, f"at least {size} bytes, or 0")


def _fields(
    group: GroupRepresentation, walked: _Walked, region: int, layers: int, layer: Stride, block: Stride
) -> list[tuple[FieldAddress, int]]:
    lane = walked.lane
    apart = sum(field.segregated for field in lane.fields)
    found = []
    for field in lane.fields:
        token, head, offset = walked.token, walked.head, walked.start.plus(Stride(field.offset))
        if field.segregated:
            if group.layout.value[-2] == "H":
                token, head = Stride(apart * lane.heads), Stride(apart)
            else:
                token, head = Stride(apart), Stride(apart * group.block_size)
            start = Stride() if group.kv_order is KvOrder.TWO_SLOTS else walked.start  # slots share their page
            offset = start.plus(Stride(walked.rows_end + field.offset))
        address = FieldAddress(
            name=field.name,
            storage_dtype=field.storage_dtype,
            count=field.count,
            head_start=0,
            heads=lane.heads,
            region=region,
            offset=offset,
            digits=_digits(group, field, (layers, layer), block, token, (lane.heads, head)),
        )
        found.append((address, lane.heads_total))
    return found


def _digits(
    group: GroupRepresentation,
    field: LaneField,
    layer: tuple[int, Stride],
    block: Stride,
    token: Stride,
    head: tuple[int, Stride],
) -> tuple[Digit, ...]:
    tokens = field.tokens or ((1, group.block_size, 0),)
    return (
        Digit(axis=Axis.LAYER, divisor=1, extent=layer[0], stride=layer[1]),
        Digit(axis=Axis.BLOCK, divisor=1, extent=0, stride=block),
        *(
            Digit(axis=Axis.TOKEN, divisor=divisor, extent=extent, stride=Stride(step) if field.tokens else token)
            for divisor, extent, step in tokens
        ),
        Digit(axis=Axis.HEAD, divisor=1, extent=head[0], stride=head[1]),
        *(
            Digit(axis=Axis.UNIT, divisor=divisor, extent=extent, stride=Stride(step))
            for divisor, extent, step in field.units
        ),
    )
