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
from isthmus.portability.compiler import compile_plan
from isthmus.portability.loss import loss_bound
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.identity import TokenRange
from isthmus.state.plan import LossBound
from isthmus.state.representation import Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP
from tests.strategies import ENCODINGS

SIZE = 16
NORMAL_MIN, F32_MAX = 2.0**-126, TRAITS[StorageDtype.F32].largest
EVERY_PAIR = [
    pytest.param(a, b, id=f"{a[0]}-{i}>{b[0]}-{j}")
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


def pool_of(encoding) -> PagedPool:
    dtype, quant = encoding
    group = msgspec.structs.replace(GROUP, layer_stop=1, num_kv_heads=1, block_size=8, storage_dtype=dtype, quant=quant)
    return PagedPool(KVRepresentation(groups=(group,), partition=Partition()), 4)


def plan_of(source: PagedPool, target: PagedPool):
    return compile_plan(source.group, Partition(), target.group, Partition())


def carry(values: np.ndarray, one, other) -> tuple[np.ndarray, np.ndarray, LossBound]:
    """K of [tokens, SIZE] values: as the producer's encoding holds them, and as the consumer then holds them."""
    source, target = pool_of(one), pool_of(other)
    keys = torch.from_numpy(values.astype(np.float32))[:, None, :]
    count = len(values)
    at = torch.arange(count)
    source.write(0, at // 8, at % 8, source.encode(keys, torch.zeros_like(keys)))
    binding = bind(
        TokenRange(start=0, stop=count),
        producer_blocks=range(4),
        producer_block_size=8,
        producer_num_blocks=4,
        consumer_blocks=[3, 1, 0, 2],
        consumer_block_size=8,
        consumer_num_blocks=4,
    )
    plan = plan_of(source, target)
    execute(plan, binding, [[r.data for r in source.regions]], [[r.data for r in target.regions]])
    before = source.read("key", 0, torch.arange(4))[:count, 0]
    after = target.read("key", 0, torch.tensor([3, 1, 0, 2]))[:count, 0]
    return before.double().numpy(), after.double().numpy(), plan.loss


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
    too_large = other[1] is None and largest > TRAITS[other[0]].largest * (1 + 2.0**-4)
    converts = one[0] is not other[0]
    # At the ends of f32's range a scale is too coarse for the bound: such a row is refused, not spoiled.
    no_scale = other[1] is not None and largest > 0 and not 127 * NORMAL_MIN <= largest < F32_MAX
    try:
        before, after, loss = carry(row[None], one, other)
    except ConversionOutOfBounds:
        assert converts
        assert too_large or no_scale
    else:
        assert not (converts and too_large)
        assert within(before, after, loss) if np.isfinite(largest) else np.array_equal(before, after)


@pytest.mark.parametrize("one", ENCODINGS[:1] + ENCODINGS[4:])
@pytest.mark.parametrize("target", [StorageDtype.F16, StorageDtype.F8_E4M3FN])
def test_a_value_beyond_the_targets_range_is_refused_and_never_wraps_or_saturates(one, target):
    largest = TRAITS[target].largest
    for factor in (1.1, 2.0, 1e3, 1e10, -1.1, -1e10):
        with pytest.raises(ConversionOutOfBounds) as caught:
            carry(np.full((1, SIZE), largest * factor), one, (target, None))
        assert caught.value.field == "key"
        assert target.value in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("one", [StorageDtype.F32])
@pytest.mark.parametrize("other", ENCODINGS)
def test_what_is_no_number_is_never_converted_into_one(one, other, value):
    """The pool's own encoding clamps infinities, so these are put there as a broken producer would."""
    source, target = pool_of((one, None)), pool_of(other)
    for region in source.regions:
        region.data.view(torch.float32).fill_(value)
    binding = bind(
        TokenRange(start=0, stop=2),
        producer_blocks=[0],
        producer_block_size=8,
        producer_num_blocks=4,
        consumer_blocks=[0],
        consumer_block_size=8,
        consumer_num_blocks=4,
    )
    regions = [[r.data for r in source.regions]], [[r.data for r in target.regions]]
    plan = plan_of(source, target)
    if plan.ops:
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
        (a[0], b[0])
        for a, b in itertools.product(ENCODINGS, repeat=2)
        if a[0] is not b[0] and loss_bound(pool_of(a).group, pool_of(b).group).lossless
    }
    assert found == LOSSLESS
    for encoding in ENCODINGS:
        for other in (e for e in ENCODINGS if e[0] is encoding[0]):
            assert loss_bound(pool_of(encoding).group, pool_of(other).group).lossless


@pytest.mark.parametrize(("source", "target"), sorted(LOSSLESS - {(StorageDtype.I8, StorageDtype.F32)}))
def test_a_lossless_conversion_keeps_every_value_there_is(source, target):
    itemsize = TRAITS[source].itemsize
    bits = np.arange(1 << 8 * itemsize, dtype=np.uint16).astype(f"<u{itemsize}")
    raw = torch.from_numpy(bits.view(np.uint8).copy())
    before = decode_rows(raw, source, None)
    before = before[before.isfinite()]
    after = decode_rows(encode_rows(before, target, None)[0], target, None)
    assert torch.equal(after, before)
    assert torch.equal(after.signbit(), before.signbit())
