"""What is launched: moves that are stored alike, with their tables, as one launch of one kernel.

Moves differ in where they begin; what is the same for all (shapes, encodings, strides of heads) are a kernel's
constants. Everything that tables say goes to the device in one copy.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.core.errors import Unsupported
from isthmus.kernels.lowered import Field, Index, Step
from isthmus.kernels.mixing import MASK64, signed
from isthmus.kernels.places import BoundMove, Places

__all__ = ["Address", "Tables", "address_of", "by_likeness", "head_stride", "padded", "rest_of_position"]

ALIGNMENT_MAX = 16
"""Bytes of the widest load: more alignment than this buys nothing."""


def padded(count: int) -> int:
    """The power of two that Triton wants."""
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One field of some moves: addresses count in steps of `step` bytes, which divides them all."""

    step: int
    places: tuple[Places, ...]


def address_of(places: Sequence[Places], bases: Sequence[int]) -> Address:
    """The field of all moves of a launch, whose regions begin at addresses `bases`."""
    low = ALIGNMENT_MAX
    for each, base in zip(places, bases, strict=True):
        low = math.gcd(low, each.alignment, base)
    return Address(step=low, places=tuple(places))


def head_stride(places: Places) -> int:
    """Bytes between neighbouring heads. Raises Unsupported where there is no one stride."""
    steps = np.diff(places.head)
    if len(steps) and (steps != steps[0]).any():
        raise Unsupported("heads: not at one stride", field="heads")
    return int(steps[0]) if len(steps) else 0


class Tables:
    """Numbers that a launch reads, one after another in one array; equal tables are there once."""

    def __init__(self) -> None:
        self._parts: list[Index] = []
        self._starts: dict[Hashable, int] = {}
        self._size = 0

    def add(self, table: Index, step: int = 1) -> int:
        """Where the table's entries begin; they are counted in steps."""
        key = (id(table), step)
        if key not in self._starts:
            self._starts[key] = self._size
            self._parts.append(table // step if step > 1 else table)
            self._size += len(table)
            # Enough room behind each for a kernel's padded vectors is not needed: loads are masked.
        return self._starts[key]

    def array(self) -> Index:
        return np.concatenate(self._parts) if self._parts else np.zeros(1, np.int64)


def by_likeness(moves: Sequence[BoundMove]) -> list[list[BoundMove]]:
    """Moves that one launch can make, together; in order."""
    alike: dict[Hashable, list[BoundMove]] = {}
    for bound in moves:
        alike.setdefault(_likeness(bound), []).append(bound)
    return list(alike.values())


def _likeness(bound: BoundMove) -> Hashable:
    move = bound.move
    fields = (bound.source, bound.target, bound.source_scales, bound.target_scales)
    return (
        move.step,
        move.exponent,
        move.reorder,
        move.decode if move.step is not Step.COPY else bound.source.row_bytes,
        move.encode if move.step is not Step.COPY else None,
        move.bound,
        move.num_heads,
        id(bound.tokens),
        tuple(None if each is None else _shape(each) for each in fields),
    )


def _shape(places: Places) -> Hashable:
    return head_stride(places), places.unit_bytes, places.row_bytes, places.contiguous or places.unit.tobytes()


def rest_of_position(layer: int, field: Field, key: int) -> int:
    """Rows' positions without token and head, and the key: as an int64."""
    return signed((layer << 14 | field.number) ^ key & MASK64)
