"""Addresses as sums of digits: the one form that every layout, block size and interior comes to.

A field's element at (layer, block, token in block, head, unit) lies at

    offset + sum over digits d of ((index of d's axis // d.divisor) % d.extent) * d.stride

A plain axis has one digit (divisor 1). An interior splits the token or the unit into several. Strides of axes outside
the block grow with the pool: a `Stride` is `fixed + per_block * num_blocks`.
"""

import enum
from typing import NamedTuple

from isthmus.state.structs import WireStruct

__all__ = ["Axis", "Digit", "Stride", "canonical", "split"]


class Axis(enum.StrEnum):
    """What is counted. A unit is an element, or the byte that holds two 4-bit elements."""

    LAYER = "layer"
    BLOCK = "block"
    TOKEN = "token"
    HEAD = "head"
    UNIT = "unit"


class Stride(NamedTuple):
    """Bytes between neighbours along a digit: `fixed + per_block * num_blocks`."""

    fixed: int = 0
    per_block: int = 0

    def at(self, num_blocks: int) -> int:
        return self.fixed + self.per_block * num_blocks

    def times(self, count: int) -> "Stride":
        return Stride(self.fixed * count, self.per_block * count)

    def plus(self, other: "Stride") -> "Stride":
        return Stride(self.fixed + other.fixed, self.per_block + other.per_block)


class Digit(WireStruct, frozen=True, kw_only=True):
    """One digit of an axis. The block's has extent 0: a pool has as many as it has."""

    axis: Axis
    divisor: int
    extent: int
    stride: Stride


def _place(digit: Digit) -> tuple[str, int]:
    return digit.axis, digit.divisor


def canonical(digits: tuple[Digit, ...]) -> tuple[Digit, ...]:
    """The one shortest form of a sum of digits: none of extent 1, neighbours merged where they are one run.

    Two sums are the same function of their indexes exactly if their canonical forms are equal: the first place where
    an axis breaks is where its function stops being linear, and what is left of it is again such a sum.
    """
    found: list[Digit] = []
    kept = [digit for digit in digits if digit.extent != 1]
    kept.sort(key=_place)
    for digit in kept:
        last = found[-1] if found else None
        if (
            last is not None
            and last.axis is digit.axis
            and last.extent * last.divisor == digit.divisor
            and digit.stride == last.stride.times(last.extent)
        ):
            found[-1] = Digit(
                axis=last.axis, divisor=last.divisor, extent=last.extent * digit.extent, stride=last.stride
            )
        else:
            found.append(digit)
    return tuple(found)


def split(digit: Digit, extent: int) -> tuple[Digit, Digit]:
    """A digit as a lower one of `extent` and an upper one of the rest. `extent` divides the digit's."""
    lower = Digit(axis=digit.axis, divisor=digit.divisor, extent=extent, stride=digit.stride)
    upper = Digit(
        axis=digit.axis,
        divisor=digit.divisor * extent,
        extent=digit.extent // extent,
        stride=digit.stride.times(extent),
    )
    return lower, upper
