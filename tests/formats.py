"""What every encoding's codes mean, written out from the formats' definitions: signs, exponents, mantissas, biases.

Nothing here uses the codecs under test or a library's types. OCP's formats are those of "OFP8" (e4m3fn, e5m2) and "MX"
(e2m1, ue8m0); `fnuz` is finite, with one NaN in the place of -0, and a bias larger by one.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isthmus.state.encoding import Encoding, Granularity, NibbleOrder, StorageDtype

F32 = np.float32


@dataclass(frozen=True)
class Format:
    """Bits of exponent and mantissa, the exponent's bias, and what the codes with specials are."""

    exponent: int
    mantissa: int
    bias: int
    specials: str  # ieee: all ones of exponent; fn: one NaN with all ones; fnuz: NaN for -0; none

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa


FORMATS = {
    StorageDtype.F32: Format(8, 23, 127, "ieee"),
    StorageDtype.BF16: Format(8, 7, 127, "ieee"),
    StorageDtype.F16: Format(5, 10, 15, "ieee"),
    StorageDtype.F8_E4M3FN: Format(4, 3, 7, "fn"),
    StorageDtype.F8_E4M3FNUZ: Format(4, 3, 8, "fnuz"),
    StorageDtype.F8_E4M3: Format(4, 3, 7, "ieee"),
    StorageDtype.F8_E5M2: Format(5, 2, 15, "ieee"),
    StorageDtype.F8_E5M2FNUZ: Format(5, 2, 16, "fnuz"),
    StorageDtype.E2M1: Format(2, 1, 1, "none"),
}
INTEGERS = {StorageDtype.I8: 127, StorageDtype.I4: 7}


def bits_of(dtype: StorageDtype) -> int:
    return FORMATS[dtype].bits if dtype in FORMATS else {StorageDtype.I4: 4}.get(dtype, 8)


def value_of(dtype: StorageDtype, code: int) -> float:
    """The value of a code."""
    if dtype is StorageDtype.UE8M0:
        return math.nan if code == 255 else 2.0 ** (code - 127)
    if dtype in INTEGERS:
        half = 1 << (bits_of(dtype) - 1)
        return float(code - 2 * half if code >= half else code)
    form = FORMATS[dtype]
    sign = -1.0 if code >> (form.bits - 1) else 1.0
    exponent = code >> form.mantissa & ((1 << form.exponent) - 1)
    fraction = code & ((1 << form.mantissa) - 1)
    ones = exponent == (1 << form.exponent) - 1
    if form.specials == "ieee" and ones:
        return math.nan if fraction else sign * math.inf
    if form.specials == "fn" and ones and fraction == (1 << form.mantissa) - 1:
        return math.nan
    if form.specials == "fnuz" and sign < 0 and not exponent and not fraction:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - form.bias - form.mantissa)
    return sign * math.ldexp((1 << form.mantissa) + fraction, exponent - form.bias - form.mantissa)


@lru_cache
def table(dtype: StorageDtype) -> np.ndarray:
    """The value of every code of an encoding of at most 16 bits: float64 [codes]."""
    assert bits_of(dtype) <= 16
    return np.array([value_of(dtype, code) for code in range(1 << bits_of(dtype))])


@lru_cache
def positive(dtype: StorageDtype) -> np.ndarray:
    """The finite values of the codes without a sign, in the codes' order, which is theirs: float64."""
    if dtype is StorageDtype.UE8M0:
        return table(dtype)[:255]
    codes = table(dtype)[: 1 << (bits_of(dtype) - 1)]
    return codes[np.isfinite(codes)]


def largest_of(dtype: StorageDtype) -> float:
    """The largest finite value, or code."""
    if dtype is StorageDtype.F32:
        return value_of(dtype, 0x7F7FFFFF)
    return float(INTEGERS.get(dtype) or positive(dtype)[-1])


def nearest(dtype: StorageDtype, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The code of the finite value nearest to each, ties to the even code; and which lie beyond the largest one: those
    that would round to the next value after it if there were one. float64 in, uint32 and bool out.
    """
    values = values.astype(np.float64)
    if dtype is StorageDtype.F32:
        limit = largest_of(dtype)
        return np.clip(values, -limit, limit).astype(F32).view(np.uint32), np.abs(values) > limit
    found, magnitude = positive(dtype), np.abs(values)
    largest = found[-1]
    ulp = largest - found[-2]
    beyond = magnitude >= largest + ulp / 2
    right = np.clip(np.searchsorted(found, magnitude), 1, len(found) - 1)
    low, high = found[right - 1], found[right]
    tie = magnitude * 2 == low + high
    up = np.where(tie, right % 2 == 0, magnitude * 2 > low + high)
    codes = np.where(up, right, right - 1).astype(np.uint32)
    negative = np.signbit(values)
    if dtype is StorageDtype.UE8M0:
        return codes, beyond
    if dtype in INTEGERS:
        whole = 1 << bits_of(dtype)
        return np.where(negative, (whole - codes) % whole, codes).astype(np.uint32), beyond
    if FORMATS[dtype].specials == "fnuz":
        negative &= codes != 0
    return codes | np.where(negative, 1 << (bits_of(dtype) - 1), 0).astype(np.uint32), beyond


def unpack(raw: np.ndarray, encoding: Encoding) -> np.ndarray:
    """uint8 [..., bytes] to codes uint32 [..., count]."""
    bits = bits_of(encoding.storage_dtype)
    if bits == 4:
        pair = (raw & 15, raw >> 4) if encoding.nibble_order is NibbleOrder.LOW_FIRST else (raw >> 4, raw & 15)
        return np.stack(pair, axis=-1).reshape(*raw.shape[:-1], -1).astype(np.uint32)
    parts = raw.reshape(*raw.shape[:-1], -1, bits // 8).astype(np.uint32)
    return sum(parts[..., at] << np.uint32(8 * at) for at in range(bits // 8))


def pack(codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The inverse of `unpack`."""
    bits = bits_of(encoding.storage_dtype)
    if bits == 4:
        first, second = codes[..., 0::2], codes[..., 1::2]
        low, high = (first, second) if encoding.nibble_order is NibbleOrder.LOW_FIRST else (second, first)
        return (low | high << 4).astype(np.uint8)
    parts = [codes >> np.uint32(8 * at) & np.uint32(255) for at in range(bits // 8)]
    return np.stack(parts, axis=-1).reshape(*codes.shape[:-1], -1).astype(np.uint8)


def plain(dtype: StorageDtype) -> Encoding:
    """An encoding whose codes are packed as those of `dtype`; scales have no other properties."""
    return Encoding(storage_dtype=StorageDtype.U8 if dtype is StorageDtype.UE8M0 else dtype)


def values_of(raw: np.ndarray, dtype: StorageDtype, encoding: Encoding | None = None) -> np.ndarray:
    """uint8 [..., bytes] to f32 [..., count], without scales."""
    codes = unpack(raw, encoding or plain(dtype))
    return codes.view(F32) if dtype is StorageDtype.F32 else table(dtype)[codes].astype(F32)


def spread(scales: np.ndarray, encoding: Encoding, count: int) -> np.ndarray:
    """Scales of a row [..., scales] to its elements [..., count]."""
    each = encoding.quant.block if encoding.quant.granularity is Granularity.BLOCK else count
    return np.stack([scales[..., at // each] for at in range(count)], axis=-1)


def decode(raw: np.ndarray, scales: np.ndarray | None, static: np.ndarray | None, encoding: Encoding) -> np.ndarray:
    """Rows to f32 values: code * (scale in the pool * scale on the layer), each product an f32."""
    codes = values_of(raw, encoding.storage_dtype, encoding)
    return codes if encoding.quant is None else (codes * whole_scale(scales, static, encoding, codes)).astype(F32)


def whole_scale(scales, static, encoding: Encoding, like: np.ndarray) -> np.ndarray:
    """The scale of every element, as f32 of the shape of `like`; ones where there is none."""
    whole = np.ones_like(like, dtype=F32)
    if scales is not None:
        whole = spread(values_of(scales, encoding.quant.scale_dtype), encoding, like.shape[-1])
    if static is not None:
        whole = (whole * static).astype(F32)
    return whole


def encode(values: np.ndarray, static: np.ndarray | None, encoding: Encoding):
    """Finite f32 rows to (codes' bytes, scales' bytes or None, which elements lie beyond the largest)."""
    quant, scales, dtype = encoding.quant, None, encoding.storage_dtype
    scaled = values
    with np.errstate(over="ignore"):
        if quant is not None:
            if quant.granularity in (Granularity.TOKEN_HEAD, Granularity.BLOCK):
                scales = find_scales(values, static, encoding)
            scaled = (values / whole_scale(scales, static, encoding, values)).astype(F32)
    codes, beyond = nearest(dtype, scaled)
    return pack(codes, encoding), scales, beyond


def find_scales(values: np.ndarray, static: np.ndarray | None, encoding: Encoding) -> np.ndarray:
    """For what shares a scale: the smallest that is at least max|it| / largest, and at least 2**-126; as bytes."""
    quant, count = encoding.quant, values.shape[-1]
    each = quant.block if quant.granularity is Granularity.BLOCK else count
    peaks = [np.abs(values[..., at : at + each]).max(axis=-1) for at in range(0, count, each)]
    largest = largest_of(encoding.storage_dtype)
    wanted = np.stack(peaks, axis=-1) / F32(largest)
    if static is not None:
        wanted = wanted / static
    wanted = np.maximum(wanted, F32(2.0**-126)).astype(F32)
    if quant.scale_dtype is StorageDtype.F32:
        return pack(wanted.view(np.uint32), plain(StorageDtype.F32))
    there = positive(quant.scale_dtype)
    codes = np.minimum(np.searchsorted(there, wanted.astype(np.float64)), len(there) - 1)
    return pack(codes.astype(np.uint32), plain(quant.scale_dtype))
