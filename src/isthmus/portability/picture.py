"""Byte maps: the first bytes of a block, by what lies there, both sides next to each other."""

import heapq
import itertools
from collections.abc import Iterator

from isthmus.state.digits import Axis, Digit, canonical
from isthmus.state.fields import FieldAddress, ShardAddressing
from isthmus.state.plan import TransformPlan

__all__ = ["byte_maps", "segments"]

ROWS = 14


def byte_maps(plan: TransformPlan, rows: int = ROWS) -> list[str]:
    """Lines of text: both sides' block 0 of the first layer, as rank 0 holds it."""
    left = _column("producer", plan.producer_shards[0], plan.producer.block_size, rows)
    right = _column("consumer", plan.consumer_shards[0], plan.consumer.block_size, rows)
    width = max(len(line) for line in left)
    return [f"{a:<{width}}  │  {b}".rstrip() for a, b in itertools.zip_longest(left, right, fillvalue="")]


def _column(side: str, shard: ShardAddressing, block_size: int, rows: int) -> list[str]:
    lines = [f"{side}: block of {block_size}"]
    places = sorted({(field.region, field.offset.per_block) for field in shard.fields})
    for region, per_block in places:
        shape = shard.regions[region]
        name = shape.id.partition(".")[2]
        slices = f", {per_block:,} B x num_blocks further on" if per_block else f", {shape.block_bytes:,} B"
        lines.append(f"  {name}{slices}")
        fields = [field for field in shard.fields if (field.region, field.offset.per_block) == (region, per_block)]
        most = max(4, rows // len(places))
        found = list(itertools.islice(heapq.merge(*(segments(field) for field in fields)), most + 1))
        lines += [f"  {byte:>7,}  {label}" for byte, label in found[:most]]
        if len(found) > most:
            lines.append("        …")
    return lines


def segments(field: FieldAddress) -> Iterator[tuple[int, str]]:
    """The runs of a field in block 0 of layer 0, in the order of their bytes: (byte, what lies there)."""
    run, outer = _innermost(field)
    for index in itertools.product(*(range(digit.extent) for digit in outer)):
        at = list(zip(outer, index, strict=True))
        yield field.offset.fixed + sum(step * digit.stride.fixed for digit, step in at), _label(field, run, at)


def _innermost(field: FieldAddress) -> tuple[Digit | None, list[Digit]]:
    """The digit along which bytes follow each other, and the others inside the block, largest stride first."""
    inside = [
        digit
        for digit in canonical(field.digits)
        if digit.axis not in (Axis.LAYER, Axis.BLOCK) and not digit.stride.per_block
    ]
    run = next((digit for digit in inside if digit.stride.fixed == field.unit_bytes), None)
    return run, sorted((digit for digit in inside if digit is not run), key=lambda digit: -digit.stride.fixed)


def _label(field: FieldAddress, run: Digit | None, outer: list[tuple[Digit, int]]) -> str:
    """`key[0..15] t0 h3 bf16`: which elements, of which tokens and heads, stored as what."""
    per_unit = max(1, field.count // field.units)
    spans = {Axis.UNIT: [0, field.units], Axis.TOKEN: [0, 1], Axis.HEAD: [field.head_start, 1]}
    if any(digit.axis is Axis.UNIT for digit, _ in outer):
        spans[Axis.UNIT][1] = 1
    if run is not None:
        spans[run.axis][1] = run.extent
    for digit, step in outer:
        spans[digit.axis][0] += step * digit.divisor
    first, count = (number * per_unit for number in spans[Axis.UNIT])
    elements = "" if count == field.count else f"[{_span(first, count)}]"
    token, head = (_span(*spans[axis]) for axis in (Axis.TOKEN, Axis.HEAD))
    return f"{field.name}{elements} t{token} h{head} {field.storage_dtype.value}"


def _span(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}..{first + count - 1}"
