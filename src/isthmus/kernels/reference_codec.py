"""The definition of every encoding, in NumPy: bytes to f32 values and back. Encodings' types are those of `ml_dtypes`.

Rounding is to nearest, ties to even; beyond the largest finite value it saturates, and is counted; what is no number
becomes the quiet NaN of its sign, or 0 where an encoding has none, and is counted. Products and quotients of scales are
f32.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from isthmus.state.encoding import INTEGERS, SCALE_MIN, TRAITS, Encoding, Granularity, NibbleOrder, Quant, StorageDtype

__all__ = ["NUMPY_DTYPES", "Bytes", "Encoded", "Floats", "decode", "encode", "round_scale_up"]

Bytes = NDArray[Any]
"""Of np.uint8; the stubs of bit operations say less."""
Floats = NDArray[np.float32]

NUMPY_DTYPES: dict[StorageDtype, np.dtype] = {
    StorageDtype.F32: np.dtype("<f4"),
    StorageDtype.BF16: np.dtype(ml_dtypes.bfloat16),
    StorageDtype.F16: np.dtype("<f2"),
    StorageDtype.F8_E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    StorageDtype.F8_E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    StorageDtype.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3),
    StorageDtype.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    StorageDtype.F8_E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    StorageDtype.UE8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    StorageDtype.E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    StorageDtype.I8: np.dtype("i1"),
    StorageDtype.I4: np.dtype(ml_dtypes.int4),
    StorageDtype.U8: np.dtype("u1"),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """uint8 [..., row_bytes]; scales as uint8 [..., scale bytes] where they are found on the way, else None; and how
    many elements lay beyond the largest value, or were no numbers.
    """

    raw: Bytes
    scales: Bytes | None
    saturated: int
    not_a_number: int


def decode(raw: Bytes, encoding: Encoding, scales: Bytes | None = None, static: Floats | None = None) -> Floats:
    """Rows to values.

    Args:
        raw: uint8 [..., row_bytes].
        scales: uint8 [..., bytes of the row's scales], where these lie in the pool.
        static: scales on the layer, broadcastable to [..., count].
    """
    values = _codes(raw, encoding).astype(np.float32)
    quant = encoding.quant
    if quant is None:
        return values
    if scales is not None:
        found = np.ascontiguousarray(scales).view(NUMPY_DTYPES[quant.scale_dtype]).astype(np.float32)
        values = values * _spread(_whole(found, static), quant, values.shape[-1])
    elif static is not None:
        values = values * static
    return values.astype(np.float32)


def encode(values: Floats, encoding: Encoding, static: Floats | None = None) -> Encoded:
    """Values f32 [..., count] to rows; the inverse of `decode`, rounded."""
    quant, count = encoding.quant, values.shape[-1]
    scales: Bytes | None = None
    scaled = values
    with np.errstate(invalid="ignore", over="ignore"):
        if quant is not None and quant.granularity in (Granularity.TOKEN_HEAD, Granularity.BLOCK):
            stored, scale = _find_scales(values, encoding, quant, static)
            scales = stored.view(np.uint8).reshape(*values.shape[:-1], -1)
            scaled = values / _spread(_whole(scale, static), quant, count)
        elif static is not None:
            scaled = values / static
        raw, saturated, not_a_number = _round(scaled.astype(np.float32), encoding)
    return Encoded(raw, scales, saturated, not_a_number)


def _codes(raw: Bytes, encoding: Encoding) -> NDArray[np.generic]:
    """uint8 [..., row_bytes] to codes [..., count], in the encoding's own type."""
    dtype, raw = NUMPY_DTYPES[encoding.storage_dtype], np.ascontiguousarray(raw)
    if encoding.traits.bits >= 8:
        return raw.view(dtype)
    low: Bytes = raw & 0xF
    high: Bytes = raw >> 4
    first, second = (low, high) if encoding.nibble_order is NibbleOrder.LOW_FIRST else (high, low)
    nibbles = np.stack([first, second], axis=-1).reshape(*raw.shape[:-1], -1)
    if encoding.storage_dtype is StorageDtype.I4:
        return (nibbles.astype(np.int8) ^ 8) - 8
    return nibbles.view(dtype)


def _pack(codes: NDArray[np.generic], encoding: Encoding) -> Bytes:
    codes = np.ascontiguousarray(codes)
    if encoding.traits.bits >= 8:
        return codes.view(np.uint8)
    nibbles = codes.view(np.uint8) & 0xF
    first, second = nibbles[..., 0::2], nibbles[..., 1::2]
    low, high = (first, second) if encoding.nibble_order is NibbleOrder.LOW_FIRST else (second, first)
    packed: Bytes = low | (high << 4)
    return packed


def _round(scaled: Floats, encoding: Encoding) -> tuple[Bytes, int, int]:
    traits = encoding.traits
    largest = np.float32(traits.largest)
    nan = np.isnan(scaled)
    if encoding.storage_dtype in INTEGERS:
        beyond = np.abs(scaled) >= largest + 0.5
        codes = np.clip(np.rint(np.where(nan, 0, scaled)), -largest, largest).astype(np.int8)
        return _pack(codes, encoding), int(beyond.sum()), int(nan.sum())
    ulp = 2.0 ** (np.floor(np.log2(traits.largest)) - traits.significand_bits + 1)
    beyond = np.abs(scaled).astype(np.float64) >= traits.largest + ulp / 2
    # One NaN for each sign, or a 0 where there is none: what hardware makes of the others' bits differs.
    instead = 0.0 if encoding.storage_dtype is StorageDtype.E2M1 else np.copysign(np.float32(np.nan), scaled)
    clipped = np.where(nan, instead, np.clip(scaled, -largest, largest)).astype(np.float32)
    return _pack(clipped.astype(NUMPY_DTYPES[encoding.storage_dtype]), encoding), int(beyond.sum()), int(nan.sum())


def _find_scales(
    values: Floats, encoding: Encoding, quant: Quant, static: Floats | None
) -> tuple[NDArray[np.generic], Floats]:
    """Scales [..., scales] as stored and as f32: max|what shares one| / largest, rounded up."""
    block = quant.block or values.shape[-1]
    count = -(-values.shape[-1] // block)
    padded = np.pad(np.abs(values), [(0, 0)] * (values.ndim - 1) + [(0, count * block - values.shape[-1])])
    largest = padded.reshape(*values.shape[:-1], count, block).max(axis=-1)
    wanted = largest / np.float32(encoding.traits.largest)
    if static is not None:
        wanted = wanted / static
    return round_scale_up(wanted.astype(np.float32), quant.scale_dtype)


def round_scale_up(wanted: Floats, dtype: StorageDtype) -> tuple[NDArray[np.generic], Floats]:
    """The smallest value of `dtype` that is at least `wanted` and positive, as stored and as f32."""
    kind, traits = NUMPY_DTYPES[dtype], TRAITS[dtype]
    wanted = np.clip(np.nan_to_num(wanted, nan=0.0), np.float32(SCALE_MIN), np.float32(traits.largest))
    if dtype is StorageDtype.F32:
        return wanted, wanted
    if dtype is StorageDtype.UE8M0:
        mantissa, exponent = np.frexp(wanted)
        found = np.ldexp(np.float32(1), exponent - (mantissa == 0.5)).astype(np.float32)
        found = np.minimum(found, np.float32(traits.largest))
        return found.astype(kind), found
    stored = wanted.astype(kind)
    bits = np.ascontiguousarray(stored).view(f"u{kind.itemsize}")
    stored = (bits + (stored.astype(np.float32) < wanted)).astype(bits.dtype).view(kind)
    return stored, stored.astype(np.float32)


def _whole(scale: Floats, static: Floats | None) -> Floats:
    return scale if static is None else (scale * static).astype(np.float32)


def _spread(scale: Floats, quant: Quant, count: int) -> Floats:
    """Scales [..., scales] to [..., count]."""
    return np.repeat(scale, quant.block or count, axis=-1)[..., :count]
