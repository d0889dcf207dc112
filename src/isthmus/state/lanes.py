"""Lanes: what is laid out together before the axis over the components is reached. Used by `state.addressing` alone.

A lane is a packed row of all components, or one component's row, or its page where an interior arranges it.
"""

import itertools
from dataclasses import dataclass, field

from isthmus.state.encoding import TRAITS, ScaleLocation, StorageDtype
from isthmus.state.interior import interior_kind, interior_number, tile_of
from isthmus.state.representation import Component, GroupRepresentation, KvOrder
from isthmus.state.structs import require

__all__ = ["Lane", "LaneField", "Units", "lanes_of", "local_heads", "location", "side_lane"]

Units = tuple[tuple[int, int, int], ...]
"""Digits of an index: (divisor, extent, bytes)."""

_IN_PAGE = (ScaleLocation.INLINE, ScaleLocation.INTERLEAVED, ScaleLocation.SEGREGATED)
_NOT_TILES = ("row", "opaque", "conv_sd")


@dataclass(frozen=True, slots=True)
class LaneField:
    """A field at `offset` in its lane. `tokens` are digits where an interior places tokens too."""

    name: str
    storage_dtype: StorageDtype
    count: int
    offset: int
    units: Units
    tokens: Units = ()
    segregated: int = 0
    """Bytes of its row after the page's rows; 0 where it lies in the lane's row."""


@dataclass(slots=True)
class Lane:
    """`size` bytes for each of `heads` local heads of `heads_total`, and `tail` bytes after the last of them."""

    heads: int
    heads_total: int
    size: int = 0
    tail: int = 0
    tiled: bool = False
    fields: list[LaneField] = field(default_factory=list)


def local_heads(heads: int, tp_size: int) -> int:
    """Heads of one rank: an even share, or one that neighbours hold too. Raises ValueError."""
    require(
        heads % tp_size == 0 or tp_size % heads == 0,
        "tp_size",
        tp_size,
        f"a divisor or a multiple of num_kv_heads = {heads}",
    )
    return max(1, heads // tp_size)


def lanes_of(group: GroupRepresentation, parts: tuple[Component, ...], tp_size: int) -> list[Lane]:
    """The lanes of one region: one for a packed row, else one for each component.

    Raises:
        ValueError: the interior, the padding or the heads do not fit.
    """
    kind = interior_kind(group.interior)
    if kind not in _NOT_TILES:
        _check_tiles(group)
    if kind == "conv_sd":
        return _conv_sd(group, parts, tp_size)
    together = [parts] if group.kv_order is KvOrder.PACKED_C else [(part,) for part in parts]
    return [_lane(group, each, tp_size, tiled=kind not in _NOT_TILES) for each in together]


def side_lane(parts: list[Component], tp_size: int) -> Lane:
    """One row of all the scales that have a region of their own."""
    lane = Lane(local_heads(parts[0].heads, tp_size), parts[0].heads)
    for part in parts:
        scale, row = _scale(part, lane.size)
        lane.fields.append(scale)
        lane.size += row
    return lane


def location(component: Component) -> ScaleLocation | None:
    """Where a component's scales lie."""
    quant = component.encoding.quant
    return None if quant is None else quant.scale_location


def _check_tiles(group: GroupRepresentation) -> None:
    inside = [part.name for part in group.components if location(part) in _IN_PAGE]
    require(not inside, "interior", group.interior, f"scales outside the page for {', '.join(inside)}")
    plain = not group.row_bytes and all(part.offset is None for part in group.components)
    require(
        group.layout.value.endswith("NC") and plain,
        "layout",
        group.layout.value,
        f"tokens innermost, and rows without padding, for interior {group.interior}",
    )


def _lane(group: GroupRepresentation, parts: tuple[Component, ...], tp_size: int, *, tiled: bool) -> Lane:
    lane = Lane(local_heads(parts[0].heads, tp_size), parts[0].heads, tiled=tiled)
    taken: list[tuple[int, int]] = []
    for part in parts:
        start = lane.size if part.offset is None else part.offset
        taken += _tile(group, part, lane, start) if tiled else _row(part, lane, start)
        lane.size = max(stop for _, stop in taken)
    taken.sort()
    for (_, stop), (start, _) in itertools.pairwise(taken):
        require(stop <= start, "offset", start, f"at least {stop}, where what lies before it ends")
    if group.row_bytes:
        require(lane.size <= group.row_bytes, "row_bytes", group.row_bytes, f"at least {lane.size}")
        lane.size = group.row_bytes
    return lane


def _row(part: Component, lane: Lane, start: int) -> list[tuple[int, int]]:
    """Place a component and its scales in the lane's row. Returns the bytes [start, stop) that they take."""
    traits, quant = part.encoding.traits, part.encoding.quant
    item, stop = traits.itemsize, start + traits.size(part.count)
    where = location(part)
    if quant is not None and where is ScaleLocation.INTERLEAVED:
        scales, codes = part.encoding.scales_per_row(part.count), traits.size(quant.block)
        scale_bytes = TRAITS[quant.scale_dtype].itemsize
        step = scale_bytes + codes
        units = ((1, codes // item, item), (codes // item, scales, step))
        lane.fields.append(_field(part, start + scale_bytes, units))
        lane.fields.append(LaneField(f"{part.name}_scale", quant.scale_dtype, scales, start, ((1, scales, step),)))
        return [(start, start + scales * step)]
    lane.fields.append(_field(part, start, ((1, traits.size(part.count) // item, item),)))
    if quant is None or where not in _IN_PAGE:
        return [(start, stop)]
    if where is ScaleLocation.SEGREGATED:
        scale, row = _scale(part, sum(other.segregated for other in lane.fields), segregated=True)
        lane.fields.append(scale)
        return [(start, stop)]
    scale, row = _scale(part, stop if quant.scale_offset is None else quant.scale_offset)
    lane.fields.append(scale)
    return [(start, stop), (scale.offset, scale.offset + row)]


def _tile(group: GroupRepresentation, part: Component, lane: Lane, start: int) -> list[tuple[int, int]]:
    """Place a component's page as the interior arranges it. Returns the bytes [start, stop) that it takes."""
    item = part.encoding.traits.itemsize
    require(part.encoding.traits.bits >= 8, "interior", group.interior, "row for 4-bit elements")
    units: list[tuple[int, int, int]] = []
    tokens: list[tuple[int, int, int]] = []
    step = item
    for digit in reversed(tile_of(group.interior, part.name, group.block_size, part.count)):
        (tokens if digit.axis == "N" else units).append((digit.divisor, digit.extent, step))
        step *= digit.extent
    lane.fields.append(_field(part, start, tuple(units), tuple(tokens)))
    return [(start, start + step)]


def _conv_sd(group: GroupRepresentation, parts: tuple[Component, ...], tp_size: int) -> list[Lane]:
    """Convolution sections as [taps, channels of all sections]; what is no section follows as usual."""
    taps = interior_number(group.interior)
    require(taps >= 1, "interior", group.interior, "a number of at least 1 after the colon")
    require(
        group.kv_order is KvOrder.TWO_SLOTS and group.block_size == 1 and set(group.layout.value[2:4]) == {"H", "N"},
        "interior",
        group.interior,
        "kv_order two_slots with one state a block, and a layout with H and N innermost",
    )
    sections = [part for part in parts if part.name.startswith("conv_")]
    require(bool(sections) and list(parts[: len(sections)]) == sections, "components", "", "conv sections first")
    heads = [local_heads(part.heads, tp_size) for part in parts]
    for part in sections:
        plain = part.encoding.quant is None and part.encoding.traits.bits >= 8
        require(part.count % taps == 0 and plain, "count", part.count, f"channels times {taps} taps, not quantised")
    item = sections[0].encoding.traits.itemsize
    require(all(p.encoding.traits.itemsize == item for p in sections), "storage_dtype", "", "one for all sections")
    width = sum(count * part.count // taps * item for count, part in zip(heads, sections, strict=False))
    lanes = []
    for count, part in zip(heads, sections, strict=False):
        channels = part.count // taps
        units = ((1, taps, width), (taps, channels, item))
        lanes.append(Lane(count, part.heads, size=channels * item, fields=[_field(part, 0, units)]))
    lanes[-1].tail = width * (taps - 1)
    return lanes + [_lane(group, (part,), tp_size, tiled=False) for part in parts[len(sections) :]]


def _field(part: Component, offset: int, units: Units, tokens: Units = ()) -> LaneField:
    return LaneField(part.name, part.encoding.storage_dtype, part.count, offset, units, tokens)


def _scale(part: Component, offset: int, *, segregated: bool = False) -> tuple[LaneField, int]:
    """A component's scales as one run, and the bytes that they take."""
    quant = part.encoding.quant
    assert quant is not None
    item, count = TRAITS[quant.scale_dtype].itemsize, part.encoding.scales_per_row(part.count)
    row = max(count * item, quant.scale_row_bytes)
    field = LaneField(
        f"{part.name}_scale", quant.scale_dtype, count, offset, ((1, count, item),), (), row if segregated else 0
    )
    return field, row
