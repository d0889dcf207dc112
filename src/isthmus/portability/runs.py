"""The longest runs that two addressings share: what one copy, or one descriptor, can move between them.

Both sides' digits are cut at the same places, axis by axis. Units that follow each other on both sides make a run, and
so on outwards, as far as both agree; what is left is counted through. Tokens are taken in chunks that never cross a
block on either side.
"""

import itertools
import math
from dataclasses import dataclass

from isthmus.core.errors import Unsupported
from isthmus.state.digits import Axis, Digit, Stride, canonical
from isthmus.state.plan import PlanPart, Runs, TransformPlan

__all__ = ["CommonRuns", "Piece", "common_runs", "plan_runs"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Something counted through: `extent` steps, of so many bytes on each side."""

    extent: int
    ours: Stride
    theirs: Stride


@dataclass(frozen=True, slots=True)
class CommonRuns:
    """For each chunk of `chunk` tokens and each layer: one run of `run_bytes` for every step of all pieces."""

    chunk: int
    run_bytes: int
    pieces: tuple[Piece, ...]

    @property
    def runs_per_chunk(self) -> int:
        return math.prod(piece.extent for piece in self.pieces)


def plan_runs(plan: TransformPlan) -> tuple[int, float]:
    """The shortest run in bytes that a plan moves, and how many runs a token takes over all layers.

    Raises:
        Unsupported: two interiors cut an axis at places that do not nest.
    """
    shortest, each = 0, 0.0
    for part in plan.parts:
        for ours, theirs in _pairs(part):
            found = common_runs(ours, theirs, (plan.producer.block_size, plan.consumer.block_size))
            shortest = min(shortest or found.run_bytes, found.run_bytes)
            deal = max(plan.producer_partition.dcp_size, plan.consumer_partition.dcp_size)
            each += found.runs_per_chunk * len(part.layers) / found.chunk / deal
    return shortest, each


def common_runs(ours: Runs, theirs: Runs, block_sizes: tuple[int, int], *, chunk: int = 0) -> CommonRuns:
    """The runs of one field of a part. `chunk` bounds the tokens of a chunk; 0: as many as fit. Raises Unsupported."""
    sides = (canonical(ours.field.digits), canonical(theirs.field.digits))
    tokens = [_of(digits, Axis.TOKEN) for digits in sides]
    size = _chunk(math.gcd(*block_sizes), tokens)
    size = math.gcd(size, chunk) if chunk else size
    pieces = [
        *_common(*(_of(digits, Axis.UNIT) for digits in sides), extent=ours.field.units),
        *_common(*(_within(digits, size) for digits in tokens), extent=size),
    ]
    heads = [ours.field.stride(Axis.HEAD), theirs.field.stride(Axis.HEAD)]
    if ours.num_heads > 1:
        assert heads[0] is not None
        assert heads[1] is not None
        pieces.append(Piece(ours.num_heads, heads[0], heads[1]))
    run, left = ours.field.unit_bytes, pieces
    while True:
        step = Stride(run)
        joined = next((piece for piece in left if piece.ours == step == piece.theirs), None)
        if joined is None:
            return CommonRuns(size, run, tuple(left))
        run *= joined.extent
        left = [piece for piece in left if piece is not joined]


def _pairs(part: PlanPart) -> list[tuple[Runs, Runs]]:
    scatter = {(runs.field.name, runs.head_start): runs for runs in part.scatter}
    pairs = [(runs, scatter.get((runs.field.name, runs.head_start))) for runs in part.gather]
    return [
        (ours, theirs)
        for ours, theirs in pairs
        if theirs is not None and ours.field.storage_dtype is theirs.field.storage_dtype
    ]


def _of(digits: tuple[Digit, ...], axis: Axis) -> list[Digit]:
    return [digit for digit in digits if digit.axis is axis]


def _chunk(size: int, sides: list[list[Digit]]) -> int:
    """The most tokens within which no digit of either side is cut in its middle."""
    for digits in sides:
        for digit in digits:
            edge = digit.divisor * digit.extent
            size = math.gcd(size, edge) if size % edge else size
    return size


def _within(digits: list[Digit], size: int) -> list[Digit]:
    """The digits of an index below `size`."""
    found = []
    for digit in digits:
        extent = min(digit.extent, size // digit.divisor)
        if digit.divisor < size and extent > 1:
            found.append(Digit(axis=digit.axis, divisor=digit.divisor, extent=extent, stride=digit.stride))
    return found


def _common(ours: list[Digit], theirs: list[Digit], *, extent: int) -> list[Piece]:
    """Both sides' digits of one axis, cut at the same places."""
    edges = sorted({digit.divisor for digit in (*ours, *theirs)} | {1, extent})
    pieces = []
    for low, high in itertools.pairwise(edges):
        if high % low:
            raise Unsupported(f"interior: runs cut at {low} and at {high} do not nest", field="interior")
        pieces.append(Piece(high // low, _stride_at(ours, low), _stride_at(theirs, low)))
    return pieces


def _stride_at(digits: list[Digit], divisor: int) -> Stride:
    """The bytes of a step of `divisor` along an axis."""
    for digit in reversed(digits):
        if digit.divisor <= divisor:
            if divisor % digit.divisor:
                raise Unsupported(f"interior: a run of {divisor} is cut at {digit.divisor}", field="interior")
            return digit.stride.times(divisor // digit.divisor)
    return Stride()
