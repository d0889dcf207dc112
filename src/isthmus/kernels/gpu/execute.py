"""Moves, run on the device that the regions are on: one launch for all that is stored alike.

What was found comes back in one small copy, so that the device is waited for once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from isthmus.core.errors import BadInput, Unsupported
from isthmus.kernels.gpu.codecs import FORMATS
from isthmus.kernels.gpu.copy import copy_rows
from isthmus.kernels.gpu.launch import Address, Tables, address_of, by_likeness, head_stride, padded, rest_of_position
from isthmus.kernels.gpu.recode import STATS, recode_rows
from isthmus.kernels.lowered import Codec, Index, Move, Order, Scales, Step
from isthmus.kernels.mixing import signed, word_keys
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove, Places
from isthmus.kernels.report import Executed

__all__ = ["Regions", "Tuning", "execute_moves", "launches"]

Regions = Sequence[Sequence[Tensor]]
"""Flat uint8 tensors, by [position of the shard][region]."""

_TYPES = {8: tl.int8, 16: tl.int16, 32: tl.int32}
SLOTS = 256
"""Sums are spread over so many places, so that programs do not wait for each other."""
_UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SCALES = {"f32": 0, "f16": 1, "bf16": 2, "f8_e4m3fn": 3, "ue8m0": 4}
_SCALE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f8_e4m3fn": 1, "ue8m0": 1}
_SCALE_LARGEST = {
    "f32": FORMATS["f32"].largest,
    "f16": 65504.0,
    "bf16": FORMATS["bf16"].largest,
    "f8_e4m3fn": 448.0,
    "ue8m0": 2.0**127,
}
_SCALE_SMALLEST = 2.0**-126
_KINDS = {Scales.NONE: 0, Scales.STATIC: 1, Scales.STORED: 2}
_ORDERS: dict[Order, int] = {"": 0, "model": 1, "rope_pairs": 2}
_SPECIAL = {"f8_e4m3fn": 480.0, "f8_e4m3": 256.0, "f8_e4m3fnuz": -1.0}
"""What `decode_fast` makes of a code that is no ordinary number, at the least; -1: it is told by its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How launches are cut: elements of a program's tile, and its warps."""

    tile_bytes: int = 32768
    warps: int = 8
    digest: bool = True
    check: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel, its grid and its arguments; running it again moves the same rows again.

    `again`: the same for numbers of any kind, where this one is for ordinary ones and says if it has met others.
    """

    kernel: Any
    grid: tuple[int, int]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    moves: tuple[BoundMove, ...]
    stats: Tensor
    again: "Callable[[], Launch] | None" = None

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants)


def execute_moves(
    moves: Sequence[BoundMove],
    source: Regions,
    target: Regions,
    *,
    operands: Operands | None = None,
    key: int = 0,
    tuning: Tuning | None = None,
) -> Executed:
    """Run moves from regions to regions of one device, and return what was found, once all has been written.

    Raises:
        BadInput: a region or an operand does not fit; nothing is written.
        Unsupported: an interior or a block of scales that these kernels do not know; nothing is written.
    """
    made = launches(moves, source, target, operands=operands, key=key, tuning=tuning)
    for launch in made:
        launch()
    return found_by(made)


def launches(
    moves: Sequence[BoundMove],
    source: Regions,
    target: Regions,
    *,
    operands: Operands | None = None,
    key: int = 0,
    tuning: Tuning | None = None,
) -> list[Launch]:
    """The launches of some moves, ready to run on the current stream. Raises as `execute_moves`."""
    groups = by_likeness(moves)
    made = []
    for group in groups:
        first = group[0].move
        build = _copy if first.step is Step.COPY and not first.reorder else _recode
        made.append(build(group, source, target, operands or Operands(), key, tuning or Tuning()))
        scales = [each for each in group if first.step in (Step.COPY, Step.SWAP_NIBBLES) and each.source_scales]
        if scales:  # they cross as they are
            made.append(
                _copy([_of_scales(each) for each in scales], source, target, Operands(), key, tuning or Tuning())
            )
    return made


def _of_scales(bound: BoundMove) -> BoundMove:
    """A move of the scales alone."""
    from dataclasses import replace

    move, source, target = bound.move, bound.source_scales, bound.target_scales
    assert source is not None
    assert target is not None
    assert move.source_scales is not None
    assert move.target_scales is not None
    plain = replace(
        move,
        step=Step.COPY,
        reorder="",
        source=move.source_scales,
        target=move.target_scales,
        source_scales=None,
        target_scales=None,
    )
    return BoundMove(
        move=plain, tokens=bound.tokens, source=source, target=target, source_scales=None, target_scales=None
    )


def found_by(made: Sequence[Launch]) -> Executed:
    """Wait for launches, and sum up what they found."""
    total = Executed()
    if not made:
        return total
    sums = torch.cat([launch.stats for launch in made]).cpu().numpy()
    for launch in made:
        of_launch, sums = sums[: len(launch.stats)], sums[len(launch.stats) :]
        if launch.again is not None and of_launch[:, 2].any():
            careful = launch.again()
            careful()
            total.add(_found(careful, careful.stats.cpu().numpy()))
        else:
            total.add(_found(launch, of_launch))
    return total


def _found(launch: Launch, sums: Any) -> Executed:
    """What one launch found: sums int64 [components, STATS, SLOTS]."""
    move = launch.moves[0].move
    digests = sums[:, :2].view(np.uint64).sum(axis=(0, 2), dtype=np.uint64)
    found = Executed(before=int(digests[0]), after=int(digests[1]))
    if not move.source.name.endswith("_scale"):
        found.rows = sum(len(each.move.layers) * len(each.tokens) * each.move.num_heads for each in launch.moves)
    if launch.kernel is copy_rows:
        found.after = found.before
        return found
    found.error_max = float(np.array([sums[:, 5].max()], np.int32).view(np.float32)[0])
    for component, counts in zip(_components(launch.moves), sums[:, 2:5].sum(axis=2), strict=True):
        found.saturated[component], found.not_a_number[component], found.outside[component] = map(int, counts)
    return found


def _components(moves: Sequence[BoundMove]) -> list[str]:
    return list(dict.fromkeys(each.move.component for each in moves))


class _Addresses:
    """The fields of a group of moves, as steps from one address."""

    def __init__(self, device: torch.device) -> None:
        self.base = _anchor(device)
        self.tables = Tables()

    def address(self, places: Sequence[Places], regions: Regions) -> tuple[Address, list[Index]]:
        """The field's step, and for each move where each layer's rows begin, in steps."""
        bases = [_pointer(regions, each) - self.base.data_ptr() for each in places]
        address = address_of(places, bases)
        starts = [
            (each.layer + (base + int(each.head[0]))) // address.step for each, base in zip(places, bases, strict=True)
        ]
        return address, starts

    def elements(self, address: Address) -> int:
        """Where the table of a row's elements begins, in units that can be read; -1 where they follow each other."""
        first = address.places[0]
        return -1 if first.contiguous else self.tables.add(first.unit // min(first.unit_bytes, address.step))

    def units(self, places: Places, unit: int) -> int:
        """Where the table of all units of so many bytes of a row begins; -1 where they follow each other."""
        if places.contiguous:
            return -1
        within = np.arange(0, places.unit_bytes, unit)
        return self.tables.add((places.unit[:, None] + within).reshape(-1) // unit)


@lru_cache(maxsize=8)
def _anchor(device: torch.device) -> Tensor:
    """An address that all others are counted from."""
    return torch.zeros(64, dtype=torch.int64, device=device)


def _pointer(regions: Regions, places: Places) -> int:
    return regions[places.shard][places.region].data_ptr()


def _unit_of(address: Address) -> int:
    """Bytes of the widest integer that rows of a field can be read in."""
    first = address.places[0]
    return min(8 if first.contiguous else first.unit_bytes, address.step, first.row_bytes & -first.row_bytes)


def _copy(group: list[BoundMove], source: Regions, target: Regions, _: Operands, key: int, tuning: Tuning) -> Launch:
    where, move = _Addresses(source[0][0].device), group[0].move
    ours, our_starts = where.address([each.source for each in group], source)
    theirs, their_starts = where.address([each.target for each in group], target)
    step = min(ours.step, theirs.step)
    unit = min(_unit_of(ours), _unit_of(theirs))
    row_units = ours.places[0].row_bytes // unit
    jobs = [
        [
            a * (ours.step // step),
            b * (theirs.step // step),
            where.tables.add(each.source.token, step),
            where.tables.add(each.target.token, step),
            rest_of_position(layer, each.move.source, key),
            each.move.head_start,
        ]
        for each, starts, ends in zip(group, our_starts, their_starts, strict=True)
        for layer, a, b in zip(each.move.layers, starts.tolist(), ends.tolist(), strict=True)
    ]
    tables = tuple(where.units(each, unit) for each in (group[0].source, group[0].target))
    numbers = _numbers(where.tables, jobs, group[0].tokens, -(-padded(row_units) * unit // 8), source[0][0].device)
    head_tile = padded(move.num_heads)
    tile = max(1, padded(tuning.tile_bytes // (head_tile * padded(row_units) * unit) or 1))
    tile = min(tile, padded(len(group[0].tokens)))
    stats = torch.zeros((1, STATS, SLOTS), dtype=torch.int64, device=source[0][0].device)
    return Launch(
        kernel=copy_rows,
        grid=(-(-len(group[0].tokens) // tile), len(jobs)),
        arguments=(
            where.base.view(_UNITS[unit]),
            *numbers,
            stats,
            len(group[0].tokens),
            head_stride(group[0].source) // step,
            head_stride(group[0].target) // step,
        ),
        constants={
            "HEADS": move.num_heads,
            "UNITS": row_units,
            "WIDTH": padded(row_units),
            "PER": step // unit,
            "EACH": 8 // unit,
            "TABLES": tables,
            "TILE": tile,
            "HEAD_TILE": head_tile,
            "SLOTS": SLOTS,
            "DIGEST": tuning.digest,
            "num_warps": tuning.warps,
        },
        moves=tuple(group),
        stats=stats,
    )


def _numbers(
    tables: Tables, jobs: list[list[int]], tokens: Index, words: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Jobs, token tables, the numbers of tokens, unit tables (in the same array), and word keys; in one copy."""
    array, room = tables.array(), 2
    parts = [
        np.asarray(jobs, np.int64).reshape(-1),
        array,
        tokens,
        np.array([signed(each) for each in word_keys(words)], np.int64),
    ]
    sizes = [-(-len(part) // room) * room for part in parts]
    whole = np.zeros(sum(sizes), np.int64)
    starts = np.cumsum([0, *sizes])
    for part, start in zip(parts, starts, strict=False):
        whole[start : start + len(part)] = part
    there = torch.from_numpy(whole).to(device, non_blocking=True)
    job_numbers, table_numbers, token_numbers, keys = (
        there[start : start + size] for start, size in zip(starts, sizes, strict=False)
    )
    return job_numbers, table_numbers, token_numbers, table_numbers, keys


def _recode(
    group: list[BoundMove],
    source: Regions,
    target: Regions,
    operands: Operands,
    key: int,
    tuning: Tuning,
    careful: bool = False,
) -> Launch:
    device, move = source[0][0].device, group[0].move
    where = _Addresses(device)
    fields = [
        None if places[0] is None else where.address([each for each in places if each is not None], regions)
        for places, regions in (
            ([each.source for each in group], source),
            ([each.target for each in group], target),
            ([each.source_scales for each in group], source),
            ([each.target_scales for each in group], target),
        )
    ]
    raw = {Step.SWAP_NIBBLES: 1, Step.COPY: 2}.get(move.step, 0)
    if raw:
        fields[2] = fields[3] = None  # a launch of their own copies them
    static = [_static(group, operands, side) for side in ("producer", "consumer")]
    constants = _constants(move, raw, fields, static, tuning, careful)
    jobs = _jobs(group, where, fields, key)
    tables = tuple(-1 if each is None else where.elements(each[0]) for each in fields)
    for name, at in (("IN_WORDS", 0), ("OUT_WORDS", 1)):
        constants[name] = (*constants[name], where.units(fields[at][0].places[0], _unit_of(fields[at][0])))
    row_bytes = max(group[0].source.row_bytes, group[0].target.row_bytes)
    words = max(padded(-(-row_bytes // 8)), 1) * 2
    job_numbers, table_numbers, tokens, _, keys = _numbers(where.tables, jobs, group[0].tokens, words, device)
    head_tile = padded(move.num_heads)
    per_token = head_tile * constants["WIDTH"] * 4
    tile = min(padded(len(group[0].tokens)), max(1, padded(tuning.tile_bytes // per_token or 1)))
    stats = torch.zeros((len(_components(group)), STATS, SLOTS), dtype=torch.int64, device=device)
    sizes = [constants[name] for name in ("IN_BITS", "OUT_BITS", "IN_SCALE_BITS", "OUT_SCALE_BITS")]
    units = [_unit_type(each, max(1, size // 8)) for each, size in zip(fields, sizes, strict=True)]
    word_units = [_unit_of(each[0]) for each in fields[:2] if each is not None]
    strides = [0 if each is None else head_stride(each[0].places[0]) // each[0].step for each in fields]
    grid = -(-len(group[0].tokens) // tile), len(jobs)
    programs = grid[0] * grid[1]
    return Launch(
        kernel=recode_rows,
        grid=grid,
        arguments=(
            where.base.view(units[0]),
            where.base.view(units[1]),
            where.base.view(_UNITS[word_units[0]]),
            where.base.view(_UNITS[word_units[1]]),
            where.base.view(units[2]),
            where.base.view(units[3]),
            job_numbers,
            table_numbers,
            tokens,
            _on(static[0], device),
            _on(static[1], device),
            table_numbers,
            keys,
            stats,
            torch.empty(programs * 4 * tile * head_tile if tuning.digest else 1, dtype=torch.int64, device=device),
            len(group[0].tokens),
            *strides,
        ),
        constants={
            **constants,
            "TABLES": tables,
            "DIGEST": tuning.digest,
            "TILE": tile,
            "HEAD_TILE": head_tile,
            "SLOTS": SLOTS,
            "num_warps": tuning.warps,
        },
        moves=tuple(group),
        stats=stats,
        again=partial(_recode, group, source, target, operands, key, tuning, True) if constants["FAST"] else None,
    )


def _on(values: Any, device: torch.device) -> Tensor:
    flat = np.zeros(4, np.float32) if values is None else np.concatenate([each.reshape(-1) for each in values])
    return torch.from_numpy(flat).to(device, non_blocking=True)


def _static(group: list[BoundMove], operands: Operands, side: str) -> list[Any] | None:
    """Static scales of each move: f32 [L, H, 1 or count]."""
    found = [operands.of(each.move, side) for each in group]
    return None if found[0] is None else found


def _jobs(group: list[BoundMove], where: _Addresses, fields: list[Any], key: int) -> list[list[int]]:
    jobs, static_rows, components = [], 0, _components(group)
    for at, each in enumerate(group):
        places = (each.source, each.target, each.source_scales, each.target_scales)
        starts = [[0] * len(each.move.layers) if field is None else field[1][at].tolist() for field in fields]
        tokens = [
            0 if field is None or spot is None else where.tables.add(spot.token, field[0].step)
            for field, spot in zip(fields, places, strict=True)
        ]
        scales = each.move.source_scales or each.move.target_scales
        for index, layer in enumerate(each.move.layers):
            jobs.append(
                [
                    *(start[index] for start in starts),
                    *tokens,
                    rest_of_position(layer, each.move.source, key),
                    0 if scales is None else rest_of_position(layer, scales, key),
                    static_rows,
                    static_rows,
                    each.move.head_start,
                    components.index(each.move.component) * STATS * SLOTS,
                ]
            )
            static_rows += each.move.num_heads
    return jobs


def _unit_type(field: Any, element_bytes: int) -> torch.dtype:
    return torch.uint8 if field is None else _UNITS[min(element_bytes, field[0].step)]


def _element_bytes(fields: list[Any], ours: Codec, theirs: Codec) -> list[int]:
    """Of source, target, source scales and target scales."""
    sizes = [max(1, ours.bits // 8), max(1, theirs.bits // 8), _SCALE_BYTES[ours.scale_dtype]]
    return [*sizes, _SCALE_BYTES[theirs.scale_dtype]]


def _constants(
    move: Move, raw: int, fields: list[Any], static: list[Any], tuning: Tuning, careful: bool
) -> dict[str, Any]:
    ours, theirs = move.decode, move.encode
    if raw == 1:
        ours = theirs = Codec(dtype="i8", bits=8, count=fields[0][0].places[0].row_bytes, scales=Scales.NONE)
    count, width = ours.count, padded(ours.count)
    block = theirs.block or count
    stored = theirs.scales is Scales.STORED and not raw
    if stored and theirs.block and (block & (block - 1) or block > width):
        raise Unsupported(f"quant.block: got {block}, wanted a power of two", field="quant.block")
    groups = width // block if stored and theirs.block else 1
    source, target = _format(ours, raw), _format(theirs, raw)
    bound = move.bound
    terms = (bound.relative, bound.absolute, bound.per_row_max, bound.per_scale)
    sizes = _element_bytes(fields, ours, theirs)
    units = [
        (0, 1) if each is None else (each[0].step // min(size, each[0].step), size // min(size, each[0].step))
        for each, size in zip(fields, sizes, strict=True)
    ]
    fast = int(
        not careful and not raw and not _interpreted() and ours.bits in (8, 16) and all(sub == 1 for _, sub in units)
    )
    checked = tuning.check and move.step is Step.RECODE and any(terms)
    return {
        "HEADS": move.num_heads,
        "COUNT": count,
        "WIDTH": width,
        "ORDER": _ORDERS[move.reorder],
        "RAW": raw,
        "IN": (source.kind, source.exponent, source.mantissa, source.bias),
        "IN_BITS": ours.bits,
        "IN_HIGH": int(ours.high_first),
        "IN_SCALES": 0 if raw else _KINDS[ours.scales],
        "IN_SCALE": _SCALES[ours.scale_dtype],
        "IN_SCALE_BITS": 8 * _SCALE_BYTES[ours.scale_dtype],
        "IN_BLOCK": ours.block or count,
        "IN_STATIC": 0 if static[0] is None else static[0][0].shape[2],
        "OUT": (target.kind, target.exponent, target.mantissa, target.bias),
        "OUT_BITS": theirs.bits,
        "OUT_HIGH": int(theirs.high_first),
        "OUT_SCALES": 0 if raw else _KINDS[theirs.scales],
        "OUT_SCALE": _SCALES[theirs.scale_dtype],
        "OUT_SCALE_BITS": 8 * _SCALE_BYTES[theirs.scale_dtype],
        "OUT_GROUPS": groups,
        "OUT_COUNT": theirs_scales if (theirs_scales := -(-count // block)) and stored else 1,
        "OUT_STATIC": 0 if static[1] is None else static[1][0].shape[2],
        "OUT_LARGEST": target.largest,
        "OUT_BEYOND": target.beyond,
        "SCALE_LARGEST": _SCALE_LARGEST[theirs.scale_dtype],
        "SCALE_SMALLEST": _SCALE_SMALLEST,
        "FACTOR": 2.0**move.exponent if move.step is Step.REBIAS else 1.0,
        "PERS": tuple(per for per, _ in units),
        "SUBS": tuple(sub for _, sub in units),
        "IN_WORDS": _words(fields[0][0]),
        "OUT_WORDS": _words(fields[1][0]),
        "BOUND": terms if checked else (),
        "FAST": fast,
        "SPECIAL": _SPECIAL.get(ours.dtype, 0.0),
        "OUT_FIRST_BEYOND": float(np.array([target.beyond], np.uint32).view(np.float32)[0]),
        "OUT_TYPE": _TYPES[theirs.bits if theirs.bits >= 8 else 32],
    }


def _words(address: Address) -> tuple[int, int, int, int]:
    unit = _unit_of(address)
    units = address.places[0].row_bytes // unit
    return units, padded(units), 8 // unit, address.step // unit


def _format(codec: Codec, raw: int) -> Any:
    if raw:
        return FORMATS["i8"]
    if codec.dtype not in FORMATS:
        raise BadInput(f"storage_dtype: {codec.dtype} has no values", field="storage_dtype")
    return FORMATS[codec.dtype]


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)
