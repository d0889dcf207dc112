"""A plan and its binding as descriptors: (source byte, target byte, length), for a NIC or a plain copy.

Only for what crosses unchanged: elements that are rewritten are gathered and converted instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.core.errors import Unsupported
from isthmus.kernels.binding import Binding, Side
from isthmus.portability.runs import CommonRuns, common_runs
from isthmus.state.digits import Axis
from isthmus.state.plan import PlanPart, Runs, TransformPlan

__all__ = ["Descriptors", "descriptors"]

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Runs of `length` bytes from one region to another: byte offsets int64 [n] in each."""

    producer_rank: int
    producer_region: int
    consumer_rank: int
    consumer_region: int
    length: int
    sources: Index
    targets: Index


def descriptors(plan: TransformPlan, binding: Binding) -> tuple[Descriptors, ...]:
    """All runs of a plan, merged as far as the two layouts allow.

    Raises:
        Unsupported: the plan rewrites elements, or deals tokens to ranks one by one.
    """
    if any(conversion.ops for conversion in plan.conversions):
        raise Unsupported("ops: a plan that rewrites elements has no descriptors; gather and convert", field="ops")
    if plan.producer_partition.dcp_size > 1 or plan.consumer_partition.dcp_size > 1:
        raise Unsupported("dcp_size: tokens dealt to ranks have no runs; gather and scatter", field="dcp_size")
    return tuple(found for part in plan.parts for found in _part(plan, binding, part))


def _part(plan: TransformPlan, binding: Binding, part: PlanPart) -> Iterator[Descriptors]:
    sizes = (plan.producer.block_size, plan.consumer.block_size)
    scatter = {(runs.field.name, runs.head_start): runs for runs in part.scatter}
    for ours in part.gather:
        theirs = scatter[ours.field.name, ours.head_start]
        whole, single = common_runs(ours, theirs, sizes), common_runs(ours, theirs, sizes, chunk=1)
        start, stop = binding.rows.start, binding.rows.stop
        first = min(-(-start // whole.chunk) * whole.chunk, stop)
        last = max(first, stop // whole.chunk * whole.chunk)
        for runs, begin, end in (
            (whole, first, last),
            (single, start, first),
            (single, last, stop),
        ):
            if begin < end:
                chosen = np.arange(begin - start, end - start, runs.chunk)
                yield Descriptors(
                    producer_rank=part.producer_rank,
                    producer_region=ours.field.region,
                    consumer_rank=part.consumer_rank,
                    consumer_region=theirs.field.region,
                    length=runs.run_bytes,
                    sources=_bytes(ours, binding.producer.of(chosen), part.producer_layers, runs, mine=True),
                    targets=_bytes(theirs, binding.consumer.of(chosen), part.consumer_layers, runs, mine=False),
                )


def _bytes(runs: Runs, side: Side, layers: tuple[int, ...], common: CommonRuns, *, mine: bool) -> Index:
    """Where each run begins on one side: layers x chunks x pieces, flat."""
    field, num_blocks = runs.field, side.num_blocks
    chunk = np.zeros(len(side.blocks), dtype=np.int64)
    for digit in field.digits:
        if digit.axis is Axis.BLOCK:
            chunk += side.blocks * digit.stride.at(num_blocks)
        elif digit.axis is Axis.TOKEN:
            chunk += side.slots // digit.divisor % digit.extent * digit.stride.at(num_blocks)
    inner = np.zeros(1, dtype=np.int64)
    for piece in common.pieces:
        step = (piece.ours if mine else piece.theirs).at(num_blocks)
        inner = (inner[:, None] + np.arange(piece.extent) * step).reshape(-1)
    layer_stride, head_stride = field.stride(Axis.LAYER), field.stride(Axis.HEAD)
    assert layer_stride is not None
    assert head_stride is not None
    start = field.offset.at(num_blocks) + runs.head * head_stride.at(num_blocks)
    layer = np.asarray(layers, dtype=np.int64) * layer_stride.at(num_blocks) + start
    per_chunk = (chunk[:, None] + inner).reshape(-1)
    found: Index = np.add.outer(layer, per_chunk).reshape(-1)
    return found
