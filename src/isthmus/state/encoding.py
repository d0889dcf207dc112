"""Exact element encodings. Two encodings of one width are different things: a name here fixes every bit.

To add one: a member, its row in `TRAITS`, a NumPy codec in `kernels/reference.py`, a torch codec in
`kernels/torch_codec.py`. The tests then draw it by themselves.
"""

import enum
from dataclasses import dataclass

__all__ = ["SCALE_MIN", "TRAITS", "StorageDtype", "Traits"]


SCALE_MIN = 2.0**-126
"""The smallest scale of a quantised row: f32's smallest normal number. A smaller one would be too coarse, or zero."""


class StorageDtype(enum.StrEnum):
    """How one element is stored. Byte order is little-endian throughout."""

    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    F8_E4M3FN = "f8_e4m3fn"
    I8 = "i8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a conversion bound needs to know of an encoding.

    `significand_bits` counts the hidden bit, so half an ulp is at most 2**-significand_bits of the value;
    `smallest_step` is the spacing of subnormals (absolute); `largest` the largest finite value. Integers have no
    range of their own: `largest` is the largest code, and meaning comes from a scale.
    """

    itemsize: int
    significand_bits: int
    smallest_step: float
    largest: float
    exponent_bits: int


TRAITS: dict[StorageDtype, Traits] = {
    StorageDtype.F32: Traits(
        itemsize=4,
        significand_bits=24,
        smallest_step=2.0**-149,
        largest=float.fromhex("0x1.fffffep127"),
        exponent_bits=8,
    ),
    StorageDtype.BF16: Traits(
        itemsize=2, significand_bits=8, smallest_step=2.0**-133, largest=float.fromhex("0x1.fep127"), exponent_bits=8
    ),
    StorageDtype.F16: Traits(itemsize=2, significand_bits=11, smallest_step=2.0**-24, largest=65504.0, exponent_bits=5),
    StorageDtype.F8_E4M3FN: Traits(
        itemsize=1, significand_bits=4, smallest_step=2.0**-9, largest=448.0, exponent_bits=4
    ),
    StorageDtype.I8: Traits(itemsize=1, significand_bits=7, smallest_step=1.0, largest=127.0, exponent_bits=0),
}
