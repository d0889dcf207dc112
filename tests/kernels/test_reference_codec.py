"""The reference codec against the formats' definitions (`tests.formats`): every code, every rounding, every scale."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.kernels import reference_codec
from isthmus.state.encoding import SCALE_MIN, TRAITS, Encoding, NibbleOrder, StorageDtype
from tests.formats import (
    F32,
    FORMATS,
    INTEGERS,
    bits_of,
    decode,
    encode,
    largest_of,
    nearest,
    pack,
    plain,
    positive,
    table,
    unpack,
    value_of,
)
from tests.strategies import ELEMENTS, SCALES, encoding_of, quant_of

FLOATS = tuple(FORMATS)
NARROW = tuple(dtype for dtype in FLOATS if bits_of(dtype) <= 16)
TENSOR = quant_of("tensor", "layer_attr", scale_values="ones")
ONE = np.ones((1,), F32)


def unscaled(dtype: StorageDtype, **fields) -> Encoding:
    """An encoding of codes; integers have a scale of one."""
    return encoding_of(dtype, TENSOR if dtype in INTEGERS else None, **fields)


def encode_unscaled(values: np.ndarray, dtype: StorageDtype) -> reference_codec.Encoded:
    static = ONE if dtype in INTEGERS else None
    with np.errstate(all="ignore"):
        return reference_codec.encode(values.astype(F32), unscaled(dtype), static)


def every_code(dtype: StorageDtype) -> np.ndarray:
    """All codes in a row, as stored: uint8 [1, bytes]."""
    return pack(np.arange(1 << bits_of(dtype), dtype=np.uint32)[None], unscaled(dtype))


@pytest.mark.parametrize("dtype", [*NARROW, *INTEGERS])
def test_every_code_decodes_to_what_its_bits_say(dtype):
    wanted = table(dtype).astype(F32)
    found = reference_codec.decode(every_code(dtype), unscaled(dtype), static=ONE)[0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[number], wanted[number])
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("dtype", SCALES)
def test_every_code_of_a_scale_multiplies_by_what_its_bits_say(dtype):
    quant = quant_of("token_head", "inline", dtype)
    some = np.arange(1 << min(16, bits_of(dtype)), dtype=np.uint32)
    codes = some << 16 if dtype is StorageDtype.F32 else some
    rows = np.full((len(codes), 1, 1), 127, np.uint8)
    scales = pack(codes[:, None, None], plain(dtype))
    with np.errstate(all="ignore"):
        found = reference_codec.decode(rows, encoding_of("i8", quant), scales)
        wanted = (F32(127) * np.array([value_of(dtype, int(code)) for code in codes], dtype=F32)).astype(F32)
    np.testing.assert_array_equal(found.reshape(-1), wanted)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_said_of_an_encoding_is_true_of_its_codes(dtype):
    """`Traits` against the definition: largest value, smallest step, bits of significand."""
    traits, form = TRAITS[dtype], FORMATS[dtype]
    assert traits.bits == form.bits
    assert traits.significand_bits == form.mantissa + 1
    assert traits.exponent_bits == form.exponent
    assert traits.smallest_step == value_of(dtype, 1)
    assert traits.largest == largest_of(dtype)


def test_what_is_said_of_integers_and_of_ue8m0_is_true():
    for dtype, largest in INTEGERS.items():
        assert (TRAITS[dtype].largest, TRAITS[dtype].smallest_step) == (largest, 1)
    scale = TRAITS[StorageDtype.UE8M0]
    assert (scale.largest, scale.smallest_step) == (positive(StorageDtype.UE8M0)[-1], value_of(StorageDtype.UE8M0, 0))


def halfway(dtype: StorageDtype) -> np.ndarray:
    """Values between every two neighbours, and the f32 values next to them; both signs."""
    found = positive(dtype) if dtype is not StorageDtype.BF16 else positive(dtype)[:0x7F70]
    half = ((found[1:] + found[:-1]) / 2).astype(F32)
    near = np.concatenate([half, np.nextafter(half, F32(np.inf)), np.nextafter(half, F32(0)), found.astype(F32)])
    return np.concatenate([near, -near])


@pytest.mark.parametrize("dtype", [*NARROW, *INTEGERS])
def test_a_value_between_two_codes_goes_to_the_nearest_and_a_tie_to_the_even_one(dtype):
    values = halfway(dtype)
    values = np.pad(values, (0, len(values) % 2))
    wanted, _ = nearest(dtype, values)
    found = encode_unscaled(values[None], dtype)
    np.testing.assert_array_equal(unpack(found.raw, unscaled(dtype))[0], wanted)
    assert (found.saturated, found.not_a_number) == (0, 0)


@pytest.mark.parametrize("dtype", ELEMENTS)
@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 32), exponent=st.integers(-150, 127))
def test_random_values_go_to_the_nearest_code_and_what_lies_beyond_is_counted(dtype, seed, exponent):
    rng = np.random.default_rng(seed)
    values = np.clip(np.ldexp(rng.normal(0, 1, 512), exponent), -3e38, 3e38).astype(F32)
    values[:256] = rng.integers(0, 1 << 32, 256, dtype=np.uint32).view(F32)
    values = np.where(np.isnan(values), F32(0), values)
    wanted, beyond = nearest(dtype, values)
    found = encode_unscaled(values[None], dtype)
    np.testing.assert_array_equal(unpack(found.raw, unscaled(dtype))[0], wanted)
    assert (found.saturated, found.not_a_number) == (int(beyond.sum()), 0)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("value", [np.inf, 3e38, -np.inf])
def test_a_value_beyond_the_range_becomes_the_largest_and_never_wraps(dtype, value):
    found = encode_unscaled(np.full((1, 4), value), dtype)
    back = reference_codec.decode(found.raw, unscaled(dtype), static=ONE)
    if np.isfinite(value) and dtype in (StorageDtype.F32, StorageDtype.BF16):
        assert found.saturated == 0
    else:
        assert found.saturated == 4
        np.testing.assert_array_equal(back, np.sign(value) * F32(largest_of(dtype)))


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_what_is_no_number_is_counted_and_stays_none_where_there_is_one(dtype):
    values = np.array([[np.nan, 1, -np.nan, 2]], F32)
    found = encode_unscaled(values, dtype)
    assert (found.saturated, found.not_a_number) == (0, 2)
    back = reference_codec.decode(found.raw, unscaled(dtype), static=ONE)[0]
    np.testing.assert_array_equal(back[[1, 3]], [1, 2])
    if dtype not in (*INTEGERS, StorageDtype.E2M1):
        assert np.isnan(back[[0, 2]]).all()
    else:
        np.testing.assert_array_equal(back[[0, 2]], [0, 0])


@pytest.mark.parametrize("order", ["low_first", "high_first"])
@pytest.mark.parametrize("dtype", ["e2m1", "i4"])
def test_the_first_of_two_nibbles_lies_where_the_order_says(dtype, order):
    encoding = unscaled(StorageDtype(dtype), nibble_order=NibbleOrder(order))
    found = reference_codec.encode(np.array([[1, 2, 3, 0]], F32), encoding, ONE if dtype == "i4" else None).raw
    codes = [2, 4, 5, 0] if dtype == "e2m1" else [1, 2, 3, 0]
    shift = (0, 4) if order == "low_first" else (4, 0)
    assert found.tolist() == [[codes[0] << shift[0] | codes[1] << shift[1], codes[2] << shift[0] | 0]]
    np.testing.assert_array_equal(reference_codec.decode(found, encoding, static=ONE), [[1, 2, 3, 0]])


# scales


@pytest.mark.parametrize("dtype", SCALES)
@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 32), exponent=st.integers(-140, 127))
def test_a_scale_is_the_smallest_that_is_large_enough_and_not_zero(dtype, seed, exponent):
    rng = np.random.default_rng(seed)
    wanted = np.minimum(np.abs(np.ldexp(rng.normal(0, 1, 64), exponent)), 3e38).astype(F32)
    wanted[:2] = 0, F32(2.0**exponent)
    stored, value = reference_codec.round_scale_up(wanted, dtype)
    least = np.maximum(wanted.astype(np.float64), SCALE_MIN)
    if dtype is StorageDtype.F32:
        np.testing.assert_array_equal(value, least)
        return
    there = positive(dtype)
    at = np.minimum(np.searchsorted(there, least), len(there) - 1)
    np.testing.assert_array_equal(value, there[at].astype(F32))
    np.testing.assert_array_equal(np.ascontiguousarray(stored).view(f"<u{stored.itemsize}"), at)
    assert (value > 0).all()


@pytest.mark.parametrize("dtype", [StorageDtype.F16, StorageDtype.BF16, StorageDtype.F8_E4M3FN, StorageDtype.UE8M0])
def test_every_value_of_a_scale_is_kept_and_the_next_f32_goes_up(dtype):
    there = positive(dtype)[1:].astype(F32)
    there = there[there >= SCALE_MIN]
    np.testing.assert_array_equal(reference_codec.round_scale_up(there, dtype)[1], there)
    above = np.nextafter(there[:-1], F32(np.inf))
    np.testing.assert_array_equal(reference_codec.round_scale_up(above, dtype)[1], there[1:])


PLACED = [
    quant_of(granularity, "side_pool", scale, block=block, tensor_scale=tensor, scale_values="ab" * 8 * tensor)
    for (granularity, block), scale, tensor in itertools.product(
        [("token_head", 0), ("block", 3), ("block", 4), ("block", 32)], SCALES, [False, True]
    )
]


@pytest.mark.parametrize("quant", PLACED, ids=lambda q: f"{q.granularity}{q.block}-{q.scale_dtype}-{q.tensor_scale}")
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 32), exponent=st.integers(-60, 60))
def test_scales_in_the_pool_are_found_and_used_as_defined(quant, seed, exponent):
    rng = np.random.default_rng(seed)
    for dtype in ELEMENTS:
        encoding = encoding_of(dtype, quant)
        values = np.ldexp(rng.normal(0, 1, (3, 2, 16)), exponent).astype(F32)
        values[0, 0], values[1, :, ::2] = 0, 0
        static = F32(rng.uniform(0.1, 3)).reshape(1, 1, 1) if quant.tensor_scale else None
        with np.errstate(all="ignore"):
            found = reference_codec.encode(values, encoding, static)
            raw, scales, beyond = encode(values, static, encoding)
            np.testing.assert_array_equal(found.scales, scales)
            np.testing.assert_array_equal(found.raw, raw)
            back = reference_codec.decode(found.raw, encoding, found.scales, static)
            np.testing.assert_array_equal(back, decode(raw, scales, static, encoding))
        assert (found.saturated, found.not_a_number) == (int(beyond.sum()), 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (1, 2, 16)], ids=["tensor", "head", "channel"])
@settings(max_examples=10)
@given(seed=st.integers(0, 1 << 32))
def test_scales_on_the_layer_are_used_as_defined(shape, seed):
    rng = np.random.default_rng(seed)
    granularity = {1: "tensor", 2: "head", 32: "channel"}[int(np.prod(shape))]
    static = (2.0 ** rng.uniform(-4, 4, shape)).astype(F32)
    values = rng.normal(0, 3, (3, 2, 16)).astype(F32)
    for dtype in ELEMENTS:
        encoding = encoding_of(dtype, quant_of(granularity, "layer_attr", scale_values="ab" * 8))
        with np.errstate(all="ignore"):
            found = reference_codec.encode(values, encoding, static)
            raw, scales, beyond = encode(values, static, encoding)
            np.testing.assert_array_equal(found.raw, raw)
            back = reference_codec.decode(raw, encoding, None, static)
            np.testing.assert_array_equal(back, decode(raw, None, static, encoding))
        assert (scales, found.scales, found.saturated) == (None, None, int(beyond.sum()))


def test_a_row_of_zeros_has_the_smallest_scale_and_no_code():
    found = reference_codec.encode(np.zeros((2, 8), F32), encoding_of("i8", quant_of("token_head", "inline")))
    assert not found.raw.any()
    assert found.scales.view("<f4").reshape(-1).tolist() == [SCALE_MIN, SCALE_MIN]


@pytest.mark.parametrize("code", range(-127, 128))
def test_every_code_of_a_row_survives_being_decoded_and_encoded(code):
    encoding = encoding_of("i8", quant_of("token_head", "inline"))
    values = np.array([[127.0, code, -code]], F32) * F32(0.37)
    once = reference_codec.encode(values, encoding)
    assert once.raw.view(np.int8).tolist() == [[127, code, -code]]
    again = reference_codec.encode(reference_codec.decode(once.raw, encoding, once.scales), encoding)
    np.testing.assert_array_equal(again.raw, once.raw)


@pytest.mark.parametrize("scale", ["f16", "f8_e4m3fn"])
def test_a_row_too_large_for_any_scale_is_counted(scale):
    encoding = encoding_of("i8", quant_of("token_head", "inline", scale))
    with np.errstate(all="ignore"):
        found = reference_codec.encode(np.full((1, 4), 1e30, F32), encoding)
    assert found.saturated == 4
    assert found.raw.view(np.int8).tolist() == [[127] * 4]
