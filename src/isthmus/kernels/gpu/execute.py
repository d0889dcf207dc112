"""Moves, run on the device that the regions are on: one launch for all that is stored alike.

What was found comes back in one small copy, so that the device is waited for once.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isthmus.kernels.gpu.addressing import Launch, Regions, Tuning
from isthmus.kernels.gpu.copy import copy_rows
from isthmus.kernels.gpu.copying import copying
from isthmus.kernels.gpu.launch import by_likeness
from isthmus.kernels.gpu.recoding import components_of, recoding
from isthmus.kernels.lowered import Step
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove
from isthmus.kernels.report import Executed

__all__ = ["Regions", "Tuning", "execute_moves", "found_by", "launches"]


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
        build = copying if first.step is Step.COPY and not first.reorder else recoding
        made.append(build(group, source, target, operands or Operands(), key, tuning or Tuning()))
        scales = [each for each in group if first.step in (Step.COPY, Step.SWAP_NIBBLES) and each.source_scales]
        if scales:  # they cross as they are
            made.append(
                copying([_of_scales(each) for each in scales], source, target, Operands(), key, tuning or Tuning())
            )
    return made


def _of_scales(bound: BoundMove) -> BoundMove:
    """A move of the scales alone."""
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
    for component, counts in zip(components_of(launch.moves), sums[:, 2:5].sum(axis=2), strict=True):
        found.saturated[component], found.not_a_number[component], found.outside[component] = map(int, counts)
    return found
