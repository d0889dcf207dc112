"""Launches of `recode_rows`: for moves whose elements change."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from isthmus.core.errors import BadInput, Unsupported
from isthmus.kernels.gpu.addressing import (
    SLOTS,
    UNITS,
    Addressed,
    Addresses,
    Launch,
    Regions,
    Tuning,
    numbers,
    unit_of,
)
from isthmus.kernels.gpu.codecs import FORMATS
from isthmus.kernels.gpu.launch import Address, head_stride, padded, rest_of_position
from isthmus.kernels.gpu.recode import STATS, recode_rows
from isthmus.kernels.lowered import Codec, Move, Order, Scales, Step
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove

__all__ = ["components_of", "recoding"]

Fields = list[Addressed | None]
"""Of source, target, source scales and target scales."""

_TYPES = {8: tl.int8, 16: tl.int16, 32: tl.int32}
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


def components_of(moves: Sequence[BoundMove]) -> list[str]:
    return list(dict.fromkeys(each.move.component for each in moves))


def recoding(
    group: list[BoundMove],
    source: Regions,
    target: Regions,
    operands: Operands,
    key: int,
    tuning: Tuning,
    careful: bool = False,
) -> Launch:
    device, move = source[0][0].device, group[0].move
    where = Addresses(device)
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
    for name, each in zip(("IN_WORDS", "OUT_WORDS"), fields, strict=False):
        if each is not None:
            constants[name] = (*constants[name], where.units(each[0].places[0], unit_of(each[0])))
    row_bytes = max(group[0].source.row_bytes, group[0].target.row_bytes)
    words = max(padded(-(-row_bytes // 8)), 1) * 2
    job_numbers, table_numbers, tokens, _, keys = numbers(where.tables, jobs, group[0].tokens, words, device)
    head_tile = padded(move.num_heads)
    per_token = head_tile * constants["WIDTH"] * 4
    tile = min(padded(len(group[0].tokens)), max(1, padded(tuning.tile_bytes // per_token or 1)))
    stats = torch.zeros((len(components_of(group)), STATS, SLOTS), dtype=torch.int64, device=device)
    sizes = [constants[name] for name in ("IN_BITS", "OUT_BITS", "IN_SCALE_BITS", "OUT_SCALE_BITS")]
    units = [_unit_type(each, max(1, size // 8)) for each, size in zip(fields, sizes, strict=True)]
    word_units = [unit_of(each[0]) for each in fields[:2] if each is not None]
    strides = [0 if each is None else head_stride(each[0].places[0]) // each[0].step for each in fields]
    grid = -(-len(group[0].tokens) // tile), len(jobs)
    programs = grid[0] * grid[1]
    return Launch(
        kernel=recode_rows,
        grid=grid,
        arguments=(
            where.base.view(units[0]),
            where.base.view(units[1]),
            where.base.view(UNITS[word_units[0]]),
            where.base.view(UNITS[word_units[1]]),
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
        again=partial(recoding, group, source, target, operands, key, tuning, True) if constants["FAST"] else None,
    )


def _on(values: Any, device: torch.device) -> Tensor:
    flat = np.zeros(4, np.float32) if values is None else np.concatenate([each.reshape(-1) for each in values])
    return torch.from_numpy(flat).to(device, non_blocking=True)


def _static(group: list[BoundMove], operands: Operands, side: str) -> list[Any] | None:
    """Static scales of each move: f32 [L, H, 1 or count]."""
    found = [operands.of(each.move, side) for each in group]
    return None if found[0] is None else found


def _jobs(group: list[BoundMove], where: Addresses, fields: list[Any], key: int) -> list[list[int]]:
    jobs, static_rows, components = [], 0, components_of(group)
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
    return torch.uint8 if field is None else UNITS[min(element_bytes, field[0].step)]


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
    unit = unit_of(address)
    units = address.places[0].row_bytes // unit
    return units, padded(units), 8 // unit, address.step // unit


def _format(codec: Codec, raw: int) -> Any:
    if raw:
        return FORMATS["i8"]
    if codec.dtype not in FORMATS:
        raise BadInput(f"storage_dtype: {codec.dtype} has no values", field="storage_dtype")
    return FORMATS[codec.dtype]


def _interpreted() -> bool:

    return bool(triton.knobs.runtime.interpret)
