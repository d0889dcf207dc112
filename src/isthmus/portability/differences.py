"""Where two representations differ, by the field's name, and what resolves each difference.

The lists are of names; whether a layout's name matters is decided by where the bytes lie (`state.sameness`).
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from isthmus.portability.alignment import Meeting, meetings
from isthmus.portability.conversion import conversion_of
from isthmus.state.encoding import IN_POOL, Encoding, Quant, StorageDtype
from isthmus.state.plan import Reorder
from isthmus.state.representation import Component, GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.sameness import same_placement

__all__ = ["Difference", "differences", "places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field, both values, its kind and how it is resolved.

    `kind` is gate, layout, partition or numeric. `resolution` is `redistribute` (bytes move, unchanged), `convert`
    (elements are rewritten), `none` (other names for the same bytes or values), `reject`, or `unknown`.
    """

    field: str
    producer: str
    consumer: str
    kind: str
    resolution: str
    group: str = ""
    component: str = ""

    @property
    def name(self) -> str:
        """The field with the group and the component that it is about."""
        return ".".join(part for part in (self.group, self.component, self.field) if part)


_LAYOUT = ("layout", "kv_order", "interior", "page_size_padded")
_MODEL = ("kind", "tokens_per_state")


def differences(producer: KVRepresentation, consumer: KVRepresentation) -> tuple[Difference, ...]:
    """Every field in which the two differ, groups in order."""
    found: list[Difference] = []
    met, missing = meetings(producer, consumer)
    if missing:
        ours, theirs = (
            ", ".join(f"{group.kind.value} x {group.num_layers}" for group in side.groups)
            for side in (producer, consumer)
        )
        found.append(_difference("layers", ours, f"{theirs} ({missing})", "gate", "reject"))
    several = len(met) > 1
    for meeting in met:
        ours_group, theirs_group = producer.groups[meeting.producer], consumer.groups[meeting.consumer]
        group = ours_group.kind.value if several else ""
        if ours_group != theirs_group or ours_group.opaque:
            found.extend(_group(ours_group, theirs_group, group, producer, consumer))
        found.extend(_unknown_scales(ours_group, theirs_group, group))
    found.extend(_grouping(met, producer, consumer))
    for field in ("tp_size", "pp_starts", "dcp_size", "dcp_interleave"):
        a, b = getattr(producer.partition, field), getattr(consumer.partition, field)
        if a != b:
            name, a, b = ("pp_size", len(a), len(b)) if field == "pp_starts" and len(a) != len(b) else (field, a, b)
            found.append(_difference(name, a, b, "partition", "redistribute"))
    return tuple(found)


def _grouping(met: tuple[Meeting, ...], producer: KVRepresentation, consumer: KVRepresentation) -> Iterable[Difference]:
    """Layers that one side keeps together and the other apart."""
    sides = {(meeting.producer, meeting.consumer) for meeting in met}
    if len({p for p, _ in sides}) != len(sides) or len({c for _, c in sides}) != len(sides):
        yield _difference("groups", len(producer.groups), len(consumer.groups), "layout", "redistribute")


def _group(
    ours: GroupRepresentation,
    theirs: GroupRepresentation,
    group: str,
    producer: KVRepresentation,
    consumer: KVRepresentation,
) -> list[Difference]:
    found = [
        _difference(field, getattr(ours, field), getattr(theirs, field), "gate", "reject", group)
        for field in _MODEL
        if getattr(ours, field) != getattr(theirs, field)
    ]
    found += _components(ours, theirs, group)
    if ours.block_size != theirs.block_size:
        found.append(_difference("block_size", ours.block_size, theirs.block_size, "layout", "redistribute", group))
    if ours.sliding_window != theirs.sliding_window:
        window = [side.sliding_window or "all tokens kept" for side in (ours, theirs)]
        found.append(_difference("sliding_window", window[0], window[1], "layout", "redistribute", group))
    listed = places(ours, theirs)
    resolution = "redistribute"
    if ours.opaque or theirs.opaque:
        alike = ours == theirs and producer.partition == consumer.partition
        if not alike and not listed:
            listed = [("interior", ours.interior, theirs.interior)]
        resolution = "none" if alike else "unknown"
    elif listed and same_placement(ours, producer.partition, theirs, consumer.partition):
        resolution = "none"
    found += [_difference(field, a, b, "layout", resolution, group) for field, a, b in listed]
    a, b = _row(ours), _row(theirs)
    if a != b and _arrangement(ours) == _arrangement(theirs) and not _like_attention(ours):
        # Its fields are of other sizes and arranged alike: the conversion rewrites it.
        found.append(_difference("row", a, b, "layout", "convert", group))
    return found


def places(ours: GroupRepresentation, theirs: GroupRepresentation) -> list[tuple[str, object, object]]:
    """The fields that say where things lie in which two groups of the same components differ, with both values.

    What follows from an encoding alone (a row's size, say) is none of them.
    """
    found: list[tuple[str, object, object]] = [
        (field, a, b) for field in _LAYOUT if (a := getattr(ours, field)) != (b := getattr(theirs, field))
    ]
    if _arrangement(ours) != _arrangement(theirs):
        found.append(("row", _row(ours), _row(theirs)))
    for part in ours.components:
        mine, other = part.encoding.quant, theirs.component(part.name).encoding.quant
        if mine is None or other is None or not {mine.granularity, other.granularity} <= set(IN_POOL):
            continue
        for field in ("scale_location", "scale_row_bytes"):
            a, b = getattr(mine, field), getattr(other, field)
            if a != b and f"quant.{field}" not in [name for name, _, _ in found]:
                found.append((f"quant.{field}", a, b))
    return found


def _arrangement(group: GroupRepresentation) -> tuple[object, ...]:
    """A packed row without its sizes: padding, and the order and offsets of its fields."""
    tight = sum(part.row_bytes for part in group.components)
    padded = 0 if group.row_bytes == tight else group.row_bytes
    return (padded, tuple((part.name, part.offset, _scale_offset(part)) for part in group.components))


def _row(group: GroupRepresentation) -> str:
    """A packed row in words: its bytes, and the order and offsets of its fields."""
    fields = []
    for part in group.components:
        fields.append(part.name if part.offset is None else f"{part.name}@{part.offset}")
        if _scale_offset(part) is not None:
            fields.append(f"{part.name}_scale@{_scale_offset(part)}")
    tight = sum(part.row_bytes for part in group.components)
    size = f"padded to {group.row_bytes}" if group.row_bytes not in (0, tight) else tight
    return f"{size} bytes: {', '.join(fields)}"


def _scale_offset(part: Component) -> int | None:
    return None if part.encoding.quant is None else part.encoding.quant.scale_offset


def _like_attention(group: GroupRepresentation) -> bool:
    return [part.name for part in group.components] in (["key", "value"], ["index_key"])


def _components(ours: GroupRepresentation, theirs: GroupRepresentation, group: str) -> list[Difference]:
    """Differences of components: said once where all differ alike."""
    if ours.components == theirs.components:
        return []
    each: list[tuple[str, list[Difference]]] = []
    for part in ours.components:
        other = theirs.component(part.name)
        each.append((part.name, _component(part, other, group) if part != other else []))
    first = each[0][1]
    if all(found == first for _, found in each):
        return first
    return [dataclasses.replace(difference, component=name) for name, found in each for difference in found]


def _component(ours: Component, theirs: Component, group: str) -> list[Difference]:
    found = []
    if ours.heads != theirs.heads:
        found.append(_difference("num_kv_heads", ours.heads, theirs.heads, "gate", "reject", group))
    if ours.count != theirs.count:
        found.append(_difference("head_size", ours.count, theirs.count, "gate", "reject", group))
    a, b = ours.encoding, theirs.encoding
    if a.transform != b.transform:
        found.append(_difference("transform", a.transform, b.transform, "gate", "reject", group))
    if found:
        return found
    ops, listed = conversion_of(ours, theirs).ops, list(_encodings(a, b))
    moves = "redistribute" if ops else "none"
    resolution = "convert" if any(not isinstance(op, Reorder) for op in ops) else moves
    orders = ours.element_order, theirs.element_order
    if orders[0] != orders[1]:
        found.append(_difference("element_order", orders[0], orders[1], "layout", "redistribute", group))
        if resolution == "convert" and not listed:  # other elements share a scale
            shared = _granularity(a.quant)
            listed = [("quant.granularity", f"{shared} in {orders[0]} order", f"{shared} in {orders[1]} order")]
    if ops and StorageDtype.U8 in (a.storage_dtype, b.storage_dtype):
        resolution = "unknown"
    return found + [_difference(f, x, y, "numeric", resolution, group) for f, x, y in listed]


def _encodings(a: Encoding, b: Encoding) -> Iterable[tuple[str, object, object]]:
    if a.storage_dtype is not b.storage_dtype:
        yield "storage_dtype", a.storage_dtype, b.storage_dtype
    if a.nibble_order is not b.nibble_order:
        yield "nibble_order", a.nibble_order, b.nibble_order
    ours, theirs = a.quant, b.quant
    if ours is None and theirs is None:
        return
    if _granularity(ours) != _granularity(theirs):
        yield "quant.granularity", _granularity(ours), _granularity(theirs)
    if ours is not None and theirs is not None:
        if ours.scale_dtype is not theirs.scale_dtype:
            yield "quant.scale_dtype", ours.scale_dtype, theirs.scale_dtype
        if ours.scale_values != theirs.scale_values:
            yield "quant.scale_values", ours.scale_values or "unknown", theirs.scale_values or "unknown"


def _granularity(quant: Quant | None) -> str:
    if quant is None:
        return "none"
    text = f"block{{{quant.block}}}" if quant.block else quant.granularity.value
    return text + (" x tensor" if quant.tensor_scale else "")


def _unknown_scales(ours: GroupRepresentation, theirs: GroupRepresentation, group: str) -> Iterable[Difference]:
    """Static scales whose values nobody gave: the codes cannot be read, also where both sides name one encoding."""
    for a in ours.components:
        b = theirs.component(a.name)
        sides = [
            "unknown"
            if part.encoding.quant and part.encoding.quant.static and not part.encoding.quant.scale_values
            else ""
            for part in (a, b)
        ]
        if any(sides):
            values = [side or _known(part) for side, part in zip(sides, (a, b), strict=True)]
            yield _difference("quant.scale_values", values[0], values[1], "numeric", "unknown", group, a.name)


def _known(part: Component) -> str:
    quant = part.encoding.quant
    return "none" if quant is None else quant.scale_values or quant.scale_location.value


def _difference(
    field: str, producer: object, consumer: object, kind: str, resolution: str, group: str = "", component: str = ""
) -> Difference:
    return Difference(
        field=field,
        producer=str(getattr(producer, "value", producer)),
        consumer=str(getattr(consumer, "value", consumer)),
        kind=kind,
        resolution=resolution,
        group=group,
        component=component,
    )
