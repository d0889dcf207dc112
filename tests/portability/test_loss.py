"""What a conversion loses: within the plan's bound for every value in range, and refused for every other."""

import itertools

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConversionOutOfBounds
from isthmus.engines.embedded.pool import PagedPool
from isthmus.kernels.binding import bind
from isthmus.kernels.torch_codec import decode_rows, encode_rows
from isthmus.kernels.torch_execute import execute
from isthmus.portability.compiler import compile_plans
from isthmus.portability.conversion import conversion_of
from isthmus.state.encoding import TRAITS, Encoding, StorageDtype
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.plan import LossBound, TransformPlan
from isthmus.state.representation import Component, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP
from tests.strategies import EMBEDDED_ENCODINGS as ENCODINGS

SIZE = 16
NORMAL_MIN, F32_MAX = 2.0**-126, TRAITS[StorageDtype.F32].largest
EVERY_PAIR = [
    pytest.param(a, b, id=f"{a.storage_dtype}-{i}>{b.storage_dtype}-{j}")
    for (i, a), (j, b) in itertools.product(enumerate(ENCODINGS), repeat=2)
]
# a row as f32, by what is hard about it
ROWS = {
    "zeros": np.zeros(SIZE),
    "one among zeros": np.eye(1, SIZE)[0],
    "signs": np.tile([1.0, -1.0], SIZE // 2),
    "halves between codes": np.arange(SIZE) + 0.5,
    "many magnitudes": 2.0 ** np.arange(-8, 8),
    "f8's smallest": np.arange(SIZE) * 2.0**-10,
    "f16's smallest": np.arange(SIZE) * 2.0**-25,
    "bf16's smallest": np.arange(SIZE) * 2.0**-134,
    "f32's smallest": np.arange(SIZE) * 2.0**-149,
    "largest of f8": np.full(SIZE, 448.0),
    "largest of f16": np.full(SIZE, 65504.0),
    "largest of bf16": np.full(SIZE, TRAITS[StorageDtype.BF16].largest),
    "largest of f32": np.full(SIZE, TRAITS[StorageDtype.F32].largest),
}


def pool_of(encoding: Encoding) -> PagedPool:
    parts = attention(heads=1, head_size=SIZE, head_size_v=SIZE, encoding=encoding)
    group = msgspec.structs.replace(GROUP, layers=(0,), components=parts, block_size=8)
    return PagedPool(KVRepresentation(groups=(group,), partition=Partition()), 4)


def plan_of(source: PagedPool, target: PagedPool) -> TransformPlan:
    (plan,) = compile_plans(source.representation, target.representation)
    return plan


def conversion(one: Encoding, other: Encoding):
    return conversion_of(*(Component(name="key", heads=1, count=SIZE, encoding=encoding) for encoding in (one, other)))


def carry(values: np.ndarray, one, other) -> tuple[np.ndarray, np.ndarray, LossBound]:
    """K of [tokens, SIZE] values: as the producer's encoding holds them, and as the consumer then holds them."""
    source, target = pool_of(one), pool_of(other)
    keys = torch.from_numpy(values.astype(np.float32))[:, None, :]
    count = len(values)
    at = torch.arange(count)
    source.write(0, at // 8, at % 8, source.encode(keys, torch.zeros_like(keys)))
    plan = plan_of(source, target)
    binding = bind(
        plan,
        TokenRange(start=0, stop=count),
        producer_blocks=range(4),
        producer_num_blocks=4,
        consumer_blocks=[3, 1, 0, 2],
        consumer_num_blocks=4,
    )
    execute(plan, binding, [[r.data for r in source.regions]], [[r.data for r in target.regions]])
    before = source.read("key", 0, torch.arange(4))[:count, 0]
    after = target.read("key", 0, torch.tensor([3, 1, 0, 2]))[:count, 0]
    return before.double().numpy(), after.double().numpy(), plan.conversion("key").loss


def within(before: np.ndarray, after: np.ndarray, loss: LossBound) -> bool:
    peak = np.abs(before).max(axis=-1, keepdims=True)
    allowed = np.abs(before) * loss.relative + loss.absolute + peak * loss.per_row_max
    return bool((np.abs(after - before) <= allowed).all())


@pytest.mark.parametrize(("one", "other"), EVERY_PAIR)
@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 32), exponent=st.integers(-20, 8))
def test_random_values_are_kept_within_the_bound(one, other, seed, exponent):
    values = np.random.default_rng(seed).normal(0, 1, (9, SIZE)) * 2.0**exponent
    assert within(*carry(np.clip(values, -448, 448), one, other))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("one", "other"), EVERY_PAIR)
def test_hard_rows_are_kept_within_the_bound_or_refused_where_the_target_cannot_hold_them(one, other, name):
    row = ROWS[name].astype(np.float32)
    held = carry(row[None], one, one)[0]
    largest = np.abs(held).max()
    beyond = other.quant is None and largest > other.traits.largest
    too_large = beyond and largest > other.traits.largest * (1 + 2.0**-4)
    converts = one.storage_dtype is not other.storage_dtype
    # At the ends of f32's range a scale is too coarse for the bound: such a row is refused, not spoiled.
    no_scale = other.quant is not None and largest > 0 and not 127 * NORMAL_MIN <= largest < F32_MAX
    try:
        before, after, loss = carry(row[None], one, other)
    except ConversionOutOfBounds:
        assert converts
        assert beyond or no_scale
    else:
        assert not (converts and too_large)
        assert within(before, after, loss) if np.isfinite(largest) else np.array_equal(before, after)


@pytest.mark.parametrize("one", ENCODINGS[:1] + ENCODINGS[4:])
@pytest.mark.parametrize("target", [StorageDtype.F16, StorageDtype.F8_E4M3FN])
def test_a_value_beyond_the_targets_range_is_refused_and_never_wraps_or_saturates(one, target):
    largest = TRAITS[target].largest
    for factor in (1.1, 2.0, 1e3, 1e10, -1.1, -1e10):
        with pytest.raises(ConversionOutOfBounds) as caught:
            carry(np.full((1, SIZE), largest * factor), one, Encoding(storage_dtype=target))
        assert caught.value.field == "key"
        assert target.value in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("one", [Encoding(storage_dtype=StorageDtype.F32)])
@pytest.mark.parametrize("other", ENCODINGS)
def test_what_is_no_number_is_never_converted_into_one(one, other, value):
    """The pool's own encoding clamps infinities, so these are put there as a broken producer would."""
    source, target = pool_of(one), pool_of(other)
    for region in source.regions:
        region.data.view(torch.float32).fill_(value)
    plan = plan_of(source, target)
    binding = bind(
        plan,
        TokenRange(start=0, stop=2),
        producer_blocks=[0],
        producer_num_blocks=4,
        consumer_blocks=[0],
        consumer_num_blocks=4,
    )
    regions = [[r.data for r in source.regions]], [[r.data for r in target.regions]]
    if plan.converts:
        with pytest.raises(ConversionOutOfBounds):
            execute(plan, binding, *regions)
    else:
        execute(plan, binding, *regions)
        assert not np.isfinite(target.read("key", 0, torch.arange(1))[:2].numpy()).any()


LOSSLESS = {
    (StorageDtype.BF16, StorageDtype.F32),
    (StorageDtype.F16, StorageDtype.F32),
    (StorageDtype.F8_E4M3FN, StorageDtype.F32),
    (StorageDtype.F8_E4M3FN, StorageDtype.BF16),
    (StorageDtype.F8_E4M3FN, StorageDtype.F16),
    (StorageDtype.I8, StorageDtype.F32),
}


def test_these_conversions_lose_nothing_and_no_others():
    found = {
        (a.storage_dtype, b.storage_dtype)
        for a, b in itertools.product(ENCODINGS, repeat=2)
        if a.storage_dtype is not b.storage_dtype and conversion(a, b).lossless
    }
    assert found == LOSSLESS
    for encoding in ENCODINGS:
        for other in (e for e in ENCODINGS if e.storage_dtype is encoding.storage_dtype):
            assert conversion(encoding, other).lossless


@pytest.mark.parametrize(("source", "target"), sorted(LOSSLESS - {(StorageDtype.I8, StorageDtype.F32)}))
def test_a_lossless_conversion_keeps_every_value_there_is(source, target):
    itemsize = TRAITS[source].itemsize
    bits = np.arange(1 << 8 * itemsize, dtype=np.uint16).astype(f"<u{itemsize}")
    raw = torch.from_numpy(bits.view(np.uint8).copy())
    stored = Encoding(storage_dtype=target)
    before = decode_rows(raw, Encoding(storage_dtype=source), None)
    before = before[before.isfinite()]
    after = decode_rows(encode_rows(before, stored)[0], stored, None)
    assert torch.equal(after, before)
    assert torch.equal(after.signbit(), before.signbit())
