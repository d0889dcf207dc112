"""Encodings inside kernels: codes to f32 and back, in integer arithmetic. `reference_codec` is the definition.

Rounding is to nearest, ties to even, saturating, in integers: it is the same bits on every device and in the
interpreter, whose own casts are not those of any device. Where the hardware rounds alike (`HARDWARE`), it does so for
tiles of ordinary numbers.
"""

from dataclasses import dataclass

import numpy as np
import triton
import triton.language as tl

__all__ = [
    "FORMATS",
    "Format",
    "decode",
    "decode_fast",
    "divide_fast",
    "encode",
    "encode_fast",
    "scale_up",
    "scale_value",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What kernels need to know of an element type, as numbers.

    `kind`: how infinities and NaN are coded (see `decode`). `beyond`: the bits of the smallest f32 that saturates.
    """

    kind: int
    exponent: int
    mantissa: int
    bias: int
    largest: float
    bits: int

    @property
    def step(self) -> float:
        """The spacing of subnormals."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    @property
    def beyond(self) -> int:
        if self.kind == INTEGER:
            return _f32_bits(self.largest + 0.5)
        if self.bits == 32:
            return 0x7F800000
        ulp = 2.0 ** (np.floor(np.log2(self.largest)) - self.mantissa)
        return _f32_bits(self.largest + ulp / 2)


def _f32_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


IEEE, FINITE, FNUZ, NO_SPECIALS, INTEGER, WHOLE = range(6)

FORMATS = {
    "f32": Format(kind=WHOLE, exponent=8, mantissa=23, bias=127, largest=float.fromhex("0x1.fffffep127"), bits=32),
    "bf16": Format(kind=IEEE, exponent=8, mantissa=7, bias=127, largest=float.fromhex("0x1.fep127"), bits=16),
    "f16": Format(kind=IEEE, exponent=5, mantissa=10, bias=15, largest=65504.0, bits=16),
    "f8_e4m3fn": Format(kind=FINITE, exponent=4, mantissa=3, bias=7, largest=448.0, bits=8),
    "f8_e4m3fnuz": Format(kind=FNUZ, exponent=4, mantissa=3, bias=8, largest=240.0, bits=8),
    "f8_e4m3": Format(kind=IEEE, exponent=4, mantissa=3, bias=7, largest=240.0, bits=8),
    "f8_e5m2": Format(kind=IEEE, exponent=5, mantissa=2, bias=15, largest=57344.0, bits=8),
    "f8_e5m2fnuz": Format(kind=FNUZ, exponent=5, mantissa=2, bias=16, largest=57344.0, bits=8),
    "e2m1": Format(kind=NO_SPECIALS, exponent=2, mantissa=1, bias=1, largest=6.0, bits=4),
    "i8": Format(kind=INTEGER, exponent=0, mantissa=6, bias=0, largest=127.0, bits=8),
    "i4": Format(kind=INTEGER, exponent=0, mantissa=2, bias=0, largest=7.0, bits=4),
}

_IEEE, _FINITE, _FNUZ = tl.constexpr(IEEE), tl.constexpr(FINITE), tl.constexpr(FNUZ)
_NO_SPECIALS, _INTEGER, _WHOLE = tl.constexpr(NO_SPECIALS), tl.constexpr(INTEGER), tl.constexpr(WHOLE)
_SIGN = tl.constexpr(-0x80000000)
_INFINITY = tl.constexpr(0x7F800000)
_QUIET = tl.constexpr(0x7FC00000)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves the nearest integer in the lowest bits
_ROUND_BITS = tl.constexpr(0x4B400000)


@triton.jit
def decode(codes, KIND: tl.constexpr, EXP: tl.constexpr, MAN: tl.constexpr, BIAS: tl.constexpr):
    """f32 of codes, which are int32 with nothing above their own bits."""
    if KIND == _WHOLE:
        return codes.to(tl.float32, bitcast=True)
    if KIND == _INTEGER:
        top: tl.constexpr = 1 << (MAN + 1)
        return ((codes ^ top) - top).to(tl.float32)
    if EXP == 8:
        return (codes << 16).to(tl.float32, bitcast=True)
    low: tl.constexpr = (1 << (EXP + MAN)) - 1
    magnitude = codes & low
    normal = (magnitude << (23 - MAN)) + ((127 - BIAS) << 23)
    step: tl.constexpr = 2.0 ** (1 - BIAS - MAN)
    small = (magnitude.to(tl.float32) * step).to(tl.int32, bitcast=True)
    bits = tl.where(magnitude < (1 << MAN), small, normal)
    if KIND == _FINITE:
        bits = tl.where(magnitude == low, _QUIET, bits)
    if KIND == _IEEE:
        infinite: tl.constexpr = ((1 << EXP) - 1) << MAN
        payload = (magnitude & ((1 << MAN) - 1)) << (23 - MAN)
        bits = tl.where(magnitude >= infinite, _INFINITY | payload, bits)
    if KIND == _FNUZ:
        bits = tl.where(codes == low + 1, _QUIET, bits)
    sign = (codes >> (EXP + MAN)) << 31
    return (bits | sign).to(tl.float32, bitcast=True)


@triton.jit
def encode(values, KIND: tl.constexpr, EXP: tl.constexpr, MAN: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr):
    """int32 codes of f32 values: nearest, ties to even, saturating; NaN to NaN, or to 0 where there is none."""
    bits = values.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    nan = magnitude > _INFINITY
    sign = (bits >> 31) & 1
    if KIND == _INTEGER:
        inside = tl.minimum(tl.maximum(tl.where(nan, 0.0, values), -LARGEST), LARGEST)
        return (inside + _ROUND).to(tl.int32, bitcast=True) - _ROUND_BITS
    if KIND == _WHOLE:
        inside = tl.minimum(magnitude, 0x7F7FFFFF)
        return tl.where(nan, _QUIET | (bits & _SIGN), inside | (bits & _SIGN))
    top = tl.full([1], LARGEST, tl.float32).to(tl.int32, bitcast=True)
    inside = tl.where(magnitude > top, top, magnitude)
    rounded = inside + ((1 << (22 - MAN)) - 1) + ((inside >> (23 - MAN)) & 1)
    codes = (rounded >> (23 - MAN)) - ((127 - BIAS) << MAN)
    if EXP < 8:
        magic: tl.constexpr = 2.0 ** (1 - BIAS - MAN + 23)
        small = inside.to(tl.float32, bitcast=True) + magic
        zero = tl.full([1], magic, tl.float32).to(tl.int32, bitcast=True)
        smallest: tl.constexpr = (128 - BIAS) << 23  # the bits of the smallest normal number
        codes = tl.where(inside < smallest, small.to(tl.int32, bitcast=True) - zero, codes)
    if KIND == _FNUZ:
        signed = tl.where(codes == 0, 0, codes | (sign << (EXP + MAN)))
        none = sign * 0 + (1 << (EXP + MAN))
    else:
        signed = codes | (sign << (EXP + MAN))
        if KIND == _FINITE:
            none = ((1 << (EXP + MAN)) - 1) | (sign << (EXP + MAN))
        elif KIND == _IEEE:
            none = ((((1 << EXP) - 1) << MAN) | (1 << (MAN - 1))) | (sign << (EXP + MAN))
        else:
            none = sign * 0
    return tl.where(nan, none, signed)


@triton.jit
def decode_fast(raw, codes, KIND: tl.constexpr, EXP: tl.constexpr, MAN: tl.constexpr, BIAS: tl.constexpr):
    """As `decode`, where every code is of an ordinary number; `raw` are the codes as they were loaded."""
    if KIND == _IEEE and EXP == 8:
        return raw.to(tl.bfloat16, bitcast=True).to(tl.float32)
    if EXP == 4 and MAN == 3:
        # Exponent and significand at their places in an f32, whose bias one product makes good: exact, subnormals too.
        bits = ((raw.to(tl.int32) << 24) >> 4) & -0x78100000
        factor: tl.constexpr = 2.0 ** (127 - BIAS)
        return bits.to(tl.float32, bitcast=True) * factor
    return decode(codes, KIND, EXP, MAN, BIAS)


@triton.jit
def encode_fast(
    values, KIND: tl.constexpr, EXP: tl.constexpr, MAN: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr
):
    """As `encode`, where no value is beyond range and each is a number, by what the hardware has; integers."""
    if KIND == _INTEGER:
        return (values + _ROUND).to(tl.int32, bitcast=True)
    if KIND == _FINITE and MAN == 3:
        return _e4m3(values)
    if KIND == _FNUZ and MAN == 3:
        # A bias more: the code of x is e4m3fn's of 2 x, but that no zero has a sign and the largest code is a number.
        codes = _e4m3(values * 2.0)
        codes = tl.where(tl.abs(values) >= 232.0, (codes & -128) | 0x7F, codes)
        return tl.where(codes == -128, 0, codes)
    if KIND == _IEEE and EXP == 8:
        return values.to(tl.bfloat16).to(tl.int16, bitcast=True)
    return encode(values, KIND, EXP, MAN, BIAS, LARGEST)


@triton.jit
def _e4m3(values):
    """int8 codes: two at a time, to nearest, ties to even."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
        }
        """,
        "=r,r,r,r,r",
        [values],
        dtype=tl.int8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def divide_fast(values, scale, reciprocal):
    """values / scale, correctly rounded, where `reciprocal` is 1 / scale so rounded and nothing under- or overflows
    (Markstein 1990): a quotient, what is left of it, and a last correction.
    """
    quotient = values * reciprocal
    left = tl.fma(-quotient, scale, values)
    return tl.fma(left, reciprocal, quotient)


@triton.jit
def scale_up(wanted, SCALE: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """Codes int32 and f32 of the smallest scale that is at least `wanted` and positive. SCALE: 0 f32, 1 f16, 2 bf16,
    3 e4m3fn, 4 ue8m0.
    """
    bits = wanted.to(tl.int32, bitcast=True)
    wanted = tl.where((bits & 0x7FFFFFFF) > _INFINITY, 0.0, wanted)
    wanted = tl.minimum(tl.maximum(wanted, SMALLEST), LARGEST)
    if SCALE == 0:
        return wanted.to(tl.int32, bitcast=True), wanted
    if SCALE == 4:
        exact = wanted.to(tl.int32, bitcast=True)
        codes = tl.minimum((exact >> 23) + ((exact & 0x7FFFFF) != 0).to(tl.int32), 254)
        return codes, scale_value(codes, SCALE)
    if SCALE == 1:
        codes = encode(wanted, _IEEE, 5, 10, 15, LARGEST)
    elif SCALE == 2:
        codes = encode(wanted, _IEEE, 8, 7, 127, LARGEST)
    else:
        codes = encode(wanted, _FINITE, 4, 3, 7, LARGEST)
    codes += (scale_value(codes, SCALE) < wanted).to(tl.int32)
    return codes, scale_value(codes, SCALE)


@triton.jit
def scale_value(codes, SCALE: tl.constexpr):
    """f32 of a stored scale."""
    if SCALE == 0:
        return codes.to(tl.float32, bitcast=True)
    if SCALE == 1:
        return decode(codes, _IEEE, 5, 10, 15)
    if SCALE == 2:
        return decode(codes, _IEEE, 8, 7, 127)
    if SCALE == 3:
        return decode(codes, _FINITE, 4, 3, 7)
    # ue8m0: 2**(code - 127); the smallest is a subnormal f32
    return tl.where(codes == 0, 0x00400000, tl.where(codes == 255, _QUIET, codes << 23)).to(tl.float32, bitcast=True)
