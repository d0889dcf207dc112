"""Launches of `copy_rows`: for moves whose rows cross unchanged."""

import torch

from isthmus.kernels.gpu.addressing import SLOTS, UNITS, Addresses, Launch, Regions, Tuning, numbers, unit_of
from isthmus.kernels.gpu.copy import copy_rows
from isthmus.kernels.gpu.launch import head_stride, padded, rest_of_position
from isthmus.kernels.gpu.recode import STATS
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove

__all__ = ["copying"]


def copying(group: list[BoundMove], source: Regions, target: Regions, _: Operands, key: int, tuning: Tuning) -> Launch:
    where, move = Addresses(source[0][0].device), group[0].move
    ours, our_starts = where.address([each.source for each in group], source)
    theirs, their_starts = where.address([each.target for each in group], target)
    step = min(ours.step, theirs.step)
    unit = min(unit_of(ours), unit_of(theirs))
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
    read = numbers(where.tables, jobs, group[0].tokens, -(-padded(row_units) * unit // 8), source[0][0].device)
    head_tile = padded(move.num_heads)
    tile = max(1, padded(tuning.tile_bytes // (head_tile * padded(row_units) * unit) or 1))
    tile = min(tile, padded(len(group[0].tokens)))
    stats = torch.zeros((1, STATS, SLOTS), dtype=torch.int64, device=source[0][0].device)
    return Launch(
        kernel=copy_rows,
        grid=(-(-len(group[0].tokens) // tile), len(jobs)),
        arguments=(
            where.base.view(UNITS[unit]),
            *read,
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
