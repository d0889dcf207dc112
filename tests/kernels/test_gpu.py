"""The Triton kernels against the reference, bit for bit: interpreted, or on a GPU where there is one."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.core.errors import BadInput, Unsupported
from isthmus.kernels import reference
from isthmus.kernels.gpu import codecs
from isthmus.kernels.gpu.execute import execute_moves
from isthmus.kernels.lowered import Lowered, from_builtins
from isthmus.kernels.lowering import lower
from isthmus.kernels.mixing import MASK64
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove, bind_moves
from isthmus.kernels.reference_codec import NUMPY_DTYPES, encode
from isthmus.lab.bench.kernels.cases import CASES_PATH
from isthmus.lab.bench.kernels.forms import as_json
from isthmus.state.encoding import Encoding, Granularity, Quant, ScaleLocation, StorageDtype
from tests.engines.models import DEVICE
from tests.kernels.cases import Case, a_case
from tests.kernels.test_plans_execute import EVERY

KEY = 5
seeds = st.integers(0, 2**32 - 1)
few = settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def moves_of(case: Case) -> tuple[BoundMove, ...]:
    binding = case.binding
    return bind_moves(lower(case.plan), binding.rows.start, binding.producer, binding.consumer)


def on_device(regions) -> list[list[torch.Tensor]]:
    return [[torch.from_numpy(region).to(DEVICE) for region in shard] for shard in regions]


def digests(case: Case, written) -> tuple[int, int]:
    """Before and after, by the definition."""
    sources = {
        shard.rank: regions for shard, regions in zip(case.plan.producer_shards, case.source.regions, strict=True)
    }
    targets = {shard.rank: regions for shard, regions in zip(case.plan.consumer_shards, written, strict=True)}
    before = after = 0
    for part in case.plan.parts:
        chosen = case.binding.tokens_of(part)
        if not len(chosen):
            continue
        tokens = [case.binding.rows.start + int(index) for index in chosen]
        for side, regions, rank, layers, of_part in (
            (case.binding.producer.of(chosen), sources, part.producer_rank, part.producer_layers, part.gather),
            (case.binding.consumer.of(chosen), targets, part.consumer_rank, part.consumer_layers, part.scatter),
        ):
            for runs in of_part:
                rows = reference.gather(
                    regions[rank][runs.field.region], runs, layers, side.blocks, side.slots, side.num_blocks
                )
                found = reference.digest(
                    {runs.field.name: rows}, layers=part.layers, tokens=tokens, head_start=runs.head_start, key=KEY
                )
                if of_part is part.gather:
                    before += found
                else:
                    after += found
    return before & MASK64, after & MASK64


@few
@given(EVERY, seeds)
def test_every_plan_writes_what_the_reference_writes_and_no_byte_more(pair, seed):
    """Bytes (what is no row stays as it was), counts and both digests."""
    case = a_case(pair, seed)
    wanted, target = case.target.copy(), on_device(case.target.copy().regions)
    operands = Operands(producer=case.scales("producer"), consumer=case.scales("consumer"))
    try:
        found = execute_moves(moves_of(case), on_device(case.source.regions), target, operands=operands, key=KEY)
    except Unsupported as error:
        assert "wanted a power of two" in str(error)  # noqa: PT017  the one thing that these kernels do not know
        return
    counts = reference.execute(
        case.plan, case.binding, case.source.regions, wanted.regions, operands.producer, operands.consumer
    )
    for shard, expected in zip(target, wanted.regions, strict=True):
        for region, bytes_ in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region.cpu().numpy(), bytes_)
    for mine, theirs in ((found.saturated, counts.saturated), (found.not_a_number, counts.not_a_number)):
        assert {name: mine.get(name, 0) for name in theirs} == theirs
    assert (found.before, found.after) == digests(case, wanted.regions)


@triton.jit
def _encode(values, out, COUNT: tl.constexpr, FORMAT: tl.constexpr, LARGEST: tl.constexpr):
    index = tl.arange(0, COUNT)
    codes = codecs.encode(tl.load(values + index), FORMAT[0], FORMAT[1], FORMAT[2], FORMAT[3], LARGEST)
    tl.store(out + index, codes)


@triton.jit
def _decode(codes, out, COUNT: tl.constexpr, FORMAT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, codecs.decode(tl.load(codes + index), FORMAT[0], FORMAT[1], FORMAT[2], FORMAT[3]))


def numbers_of(form: codecs.Format) -> tuple[int, int, int, int]:
    return form.kind, form.exponent, form.mantissa, form.bias


def encoding(name: str) -> Encoding:
    plain = StorageDtype(name)
    if name not in ("i8", "i4"):
        return Encoding(storage_dtype=plain)
    scale = Quant(granularity=Granularity.TENSOR, scale_dtype=StorageDtype.F32, scale_location=ScaleLocation.LAYER_ATTR)
    return Encoding(storage_dtype=plain, quant=scale)


@pytest.mark.parametrize("name", [name for name, form in codecs.FORMATS.items() if form.bits < 32])
def test_every_code_is_decoded_as_the_reference_does(name):
    form = codecs.FORMATS[name]
    codes = np.arange(1 << form.bits, dtype=np.int32)
    found = torch.empty(len(codes), dtype=torch.float32, device=DEVICE)
    _decode[(1,)](torch.from_numpy(codes).to(DEVICE), found, len(codes), numbers_of(form))
    if name == "i4":
        wanted = ((codes ^ 8) - 8).astype(np.float32)
    else:
        stored = codes.astype(np.uint8 if form.bits <= 8 else np.uint16)
        wanted = stored.view(NUMPY_DTYPES[StorageDtype(name)]).astype(np.float32)
    np.testing.assert_array_equal(found.cpu().numpy(), wanted)


@pytest.mark.parametrize("name", codecs.FORMATS)
def test_numbers_of_every_kind_are_encoded_as_the_reference_does(name):
    """Every exponent and sign, ties, subnormals, infinities and NaN."""
    form, rng = codecs.FORMATS[name], np.random.default_rng(7)
    bits = rng.integers(0, 1 << 32, 1 << 14, dtype=np.uint64).astype(np.uint32)
    ties = (bits & 0xFFF80000) | (rng.integers(0, 2, len(bits)).astype(np.uint32) << 19)
    with np.errstate(over="ignore"):
        near = (rng.standard_normal(1 << 14) * form.largest / 2).astype(np.float32)
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), near, near[::-1]])
    found = torch.empty(len(values), dtype=torch.int32, device=DEVICE)
    _encode[(1,)](torch.from_numpy(values).to(DEVICE), found, len(values), numbers_of(form), form.largest)
    raw = encode(values.reshape(-1, 2), encoding(name), np.ones((1, 1), np.float32)).raw.reshape(-1)
    if form.bits == 4:
        wanted = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1).astype(np.int64)
    else:
        wanted = raw.view({8: np.uint8, 16: np.uint16, 32: np.uint32}[form.bits]).astype(np.int64)
    np.testing.assert_array_equal(found.cpu().numpy().astype(np.int64) & ((1 << form.bits) - 1), wanted)


def test_a_lowered_plan_is_the_same_after_json():
    for fields in json.loads(CASES_PATH.read_text(encoding="utf-8")):
        lowered = from_builtins(Lowered, fields["lowered"])
        assert json.loads(json.dumps(dataclasses.asdict(lowered))) == fields["lowered"]


def test_the_cases_of_the_bench_are_those_that_the_compiler_makes():
    assert CASES_PATH.read_text(encoding="utf-8") == as_json()


@few
@given(EVERY, seeds)
def test_a_plan_that_was_changed_is_refused(pair, seed):
    case = a_case(pair, seed)
    changed = type(case.plan)(
        **{name: getattr(case.plan, name) for name in case.plan.__struct_fields__} | {"fingerprint": "0" * 32}
    )
    with pytest.raises(BadInput, match="fingerprint"):
        lower(changed)
