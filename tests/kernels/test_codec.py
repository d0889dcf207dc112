"""The torch codec against its definition in NumPy: every pattern of bits, ties, the ends of each range."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import Unsupported
from isthmus.kernels import reference_codec, torch_codec
from isthmus.state.encoding import SCALE_MIN, TRAITS, Encoding, StorageDtype
from tests.strategies import EMBEDDED_ENCODINGS, encoding_of, quant_of

FLOATS = [encoding.storage_dtype for encoding in EMBEDDED_ENCODINGS if encoding.quant is None]
NARROW = [dtype for dtype in FLOATS if TRAITS[dtype].itemsize <= 2]
QUANTISED = EMBEDDED_ENCODINGS[-1]


def patterns(dtype: StorageDtype) -> np.ndarray:
    """Every pattern of a narrow encoding's bits, as raw bytes [patterns * itemsize]."""
    itemsize = TRAITS[dtype].itemsize
    return np.arange(1 << 8 * itemsize, dtype=np.uint32).astype(f"<u{itemsize}").view(np.uint8)


def encoded(values: np.ndarray, dtype: StorageDtype):
    """Both codecs' bytes."""
    with np.errstate(all="ignore"):
        wanted = reference_codec.encode(values, encoding_of(dtype)).raw
    found, scale = torch_codec.encode_rows(torch.from_numpy(values), encoding_of(dtype))
    assert scale is None
    return wanted, found.numpy()


def quantised(values: np.ndarray):
    """Both codecs' bytes and scales."""
    wanted = reference_codec.encode(values, QUANTISED)
    found, scale = torch_codec.encode_rows(torch.from_numpy(values), QUANTISED)
    assert wanted.scales is not None
    assert scale is not None
    return wanted.raw, found.numpy(), wanted.scales.view("<f4")[..., 0], scale.numpy()


def decoded(raw: np.ndarray, dtype: StorageDtype) -> tuple[np.ndarray, np.ndarray]:
    found = torch_codec.decode_rows(torch.from_numpy(raw.copy()), encoding_of(dtype), None).numpy()
    return reference_codec.decode(raw, encoding_of(dtype)), found


def assert_same_values(wanted: np.ndarray, found: np.ndarray) -> None:
    """Bit for bit, but a NaN may carry any payload."""
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], wanted.view(np.uint32)[~nan])


def values_of(dtype: StorageDtype) -> np.ndarray:
    """Every value of an encoding that is a number, sorted."""
    with np.errstate(all="ignore"):
        values = reference_codec.decode(patterns(dtype), encoding_of(dtype))
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("dtype", NARROW)
def test_every_pattern_of_bits_decodes_to_the_same_value(dtype):
    with np.errstate(all="ignore"):
        assert_same_values(*decoded(patterns(dtype), dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_survives_being_decoded_and_encoded(dtype):
    values = values_of(dtype)
    for raw in encoded(values, dtype):
        with np.errstate(all="ignore"):
            assert_same_values(values, reference_codec.decode(raw, encoding_of(dtype)))


@pytest.mark.parametrize(("source", "target"), list(itertools.product(NARROW, FLOATS)))
def test_every_value_of_one_encoding_is_encoded_alike_in_any_other(source, target):
    wanted, found = encoded(values_of(source), target)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", NARROW)
def test_values_halfway_and_next_to_halfway_round_alike_and_to_even(dtype):
    values = values_of(dtype)
    with np.errstate(all="ignore"):
        half = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    near = np.concatenate([half, np.nextafter(half, np.float32(np.inf)), np.nextafter(half, np.float32(-np.inf))])
    wanted, found = encoded(near, dtype)
    np.testing.assert_array_equal(found, wanted)
    itemsize = TRAITS[dtype].itemsize
    exact = half.astype(np.float64) * 2 == values[1:].astype(np.float64) + values[:-1]
    codes = wanted.view(f"<u{itemsize}")[: len(half)][exact]
    assert not (codes & 1).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.inf, 3e38, 1e6, 500.0])
def test_a_value_beyond_the_range_becomes_the_largest_and_never_wraps(dtype, value):
    largest = min(value, TRAITS[dtype].largest)
    for sign in (1, -1):
        for raw in encoded(np.full(4, sign * value, dtype=np.float32), dtype):
            back = reference_codec.decode(raw, encoding_of(dtype))
            assert np.allclose(back, sign * largest, rtol=2.0 ** -TRAITS[dtype].significand_bits)
            assert np.isfinite(back).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_stays_one(dtype):
    for raw in encoded(np.full(4, np.nan, dtype=np.float32), dtype):
        assert np.isnan(reference_codec.decode(raw, encoding_of(dtype))).all()


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=st.integers(0, 1 << 32))
def test_any_bits_of_f32_are_encoded_alike(dtype, seed):
    values = np.random.default_rng(seed).integers(0, 1 << 32, 4096, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    wanted, found = encoded(values, dtype)
    np.testing.assert_array_equal(found, wanted)


@given(seed=st.integers(0, 1 << 32), exponent=st.integers(-110, 120), size=st.sampled_from([1, 3, 16, 64]))
def test_rows_are_quantised_alike_and_within_half_a_code(seed, exponent, size):
    values = (np.random.default_rng(seed).normal(0, 1, (64, size)) * 2.0**exponent).astype(np.float32)
    values[::5, ::2] = 0
    wanted, found, wanted_scale, scale = quantised(values)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scale, wanted_scale)
    back = torch_codec.decode_rows(torch.from_numpy(found), QUANTISED, torch.from_numpy(scale)).numpy()
    np.testing.assert_array_equal(back, reference_codec.decode(wanted, QUANTISED, wanted_scale[:, None].view(np.uint8)))
    peak = np.abs(values).max(axis=-1, keepdims=True)
    assert (np.abs(back - values) <= peak * np.float32(0.5 / 127 + 2.0**-22)).all()


def test_a_row_of_zeros_has_the_smallest_scale_and_no_code():
    wanted, found, wanted_scale, scale = quantised(np.zeros((2, 8), dtype=np.float32))
    assert not wanted.any()
    assert not found.any()
    assert wanted_scale.tolist() == scale.tolist() == [SCALE_MIN, SCALE_MIN]


def test_a_row_of_the_smallest_values_keeps_them_within_half_the_smallest_scale():
    values = np.array([[2.0**-133, 2.0**-130, -(2.0**-127), 0.0]], dtype=np.float32)
    encoded_ = reference_codec.encode(values, QUANTISED)
    error = np.abs(reference_codec.decode(encoded_.raw, QUANTISED, encoded_.scales) - values)
    assert np.isfinite(error).all()
    assert error.max() <= SCALE_MIN / 2


def refused(encoding: Encoding) -> bool:
    """Whether it is, by its name."""
    try:
        torch_codec.check_encoding(encoding)
    except Unsupported as error:
        return error.field == "storage_dtype" and encoding.storage_dtype.value in str(error)
    return False


DONE = {
    *((dtype.value, "none") for dtype in FLOATS),
    ("i8", "token_head f32"),
}


def test_these_encodings_are_done_and_every_other_is_refused_by_name():
    """Above all those of the same codes with other scales, which would be read without a word."""
    scales = [quant_of("token_head", "inline", scale) for scale in ("f32", "f16", "bf16", "f8_e4m3fn", "ue8m0")]
    scales += [quant_of("block", "inline", block=16)]
    scales += [quant_of(name, "layer_attr", scale_values="ab" * 8) for name in ("tensor", "head", "channel")]
    scales += [quant_of("token_head", "inline", tensor_scale=True, scale_values="ab" * 8)]
    done = set()
    for dtype in StorageDtype:
        if dtype is StorageDtype.UE8M0:
            continue
        for quant in [None] * (dtype not in (StorageDtype.I8, StorageDtype.I4)) + scales:
            name = "none" if quant is None else f"{quant.granularity.value} {quant.scale_dtype.value}"
            name += " x tensor" if quant is not None and quant.tensor_scale else ""
            if not refused(encoding_of(dtype, quant)):
                done.add((dtype.value, name))
    assert done == DONE
