"""Any pair of representations: the plan, run by the reference, against decoding and encoding every row by hand."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.core.errors import BadInput
from isthmus.kernels import reference
from isthmus.portability.alignment import Meeting
from isthmus.portability.compiler import compile_plan
from isthmus.state.encoding import StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.plan import Conversion, Rebias, Reorder
from isthmus.state.representation import Component, GroupKind, GroupRepresentation, KvOrder, Layout
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import Pool, Rows, meaning_of, moved, rewritten, scale_of
from tests.formats import F32, table
from tests.kernels.cases import Case, a_case
from tests.strategies import ATTENTION_KINDS, encoding_of, pairs, quant_of

seeds = st.integers(0, 2**32 - 1)
MLA = (GroupKind.MLA, GroupKind.SLIDING_WINDOW_MLA, GroupKind.INDEXER)
STATES = (GroupKind.MAMBA, GroupKind.GDN)
EVERY = st.one_of(pairs(ATTENTION_KINDS), pairs(MLA), pairs(STATES))
checked = settings(
    max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def execute(case: Case) -> reference.Counts:
    """Run the plan on the case's own pools."""
    scales = case.scales("producer"), case.scales("consumer")
    return reference.execute(case.plan, case.binding, case.source.regions, case.target.regions, *scales)


def assert_equal(found: Pool, wanted: Pool) -> None:
    for shard, expected in zip(found.regions, wanted.regions, strict=True):
        for region, bytes_ in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region, bytes_)


def only_moves(conversion: Conversion) -> bool:
    return all(isinstance(op, Reorder) for op in conversion.ops)


def by_hand(case: Case) -> tuple[Rows, dict[str, int]]:
    """What the consumer's rows must be, and how many elements saturate; but for components that are rebiased."""
    wanted: Rows = {}
    saturated: dict[str, int] = {}
    for part in case.plan.producer.components:
        conversion, other = case.plan.conversion(part.name), case.plan.consumer.component(part.name)
        if only_moves(conversion):
            wanted |= moved(part, other, case.data)
        elif not any(isinstance(op, Rebias) for op in conversion.ops):
            rows, beyond = rewritten(other, meaning_of(part, case.data, case.layers), case.layers)
            wanted |= rows
            partition = case.plan.consumer_partition
            saturated[part.name] = int(beyond.sum()) * max(1, partition.tp_size // (part.heads * partition.dcp_size))
    return wanted, saturated


@checked
@given(EVERY, seeds)
def test_reference_equals_decoding_by_one_description_and_encoding_by_the_other(pair, seed):
    """Bit for bit, every replica, and no byte more: what is no row of the plan stays as it was."""
    case = a_case(pair, seed)
    target = case.target.copy()
    counts = execute(case)
    wanted, saturated = by_hand(case)
    rebiased = case.target.get(case.binding.rows, case.layers)
    target.put(case.binding.rows, case.layers, rebiased | wanted)
    assert_equal(case.target, target)
    for name, count in saturated.items():
        assert counts.saturated.get(name, 0) == count
    assert not any(counts.not_a_number.values())


@checked
@given(EVERY, seeds)
def test_what_arrives_is_what_was_there_within_the_bound_unless_it_is_counted(pair, seed):
    case = a_case(pair, seed)
    counts = execute(case)
    arrived = case.target.get(case.binding.rows, case.layers)
    for part in case.plan.producer.components:
        other, conversion = case.plan.consumer.component(part.name), case.plan.conversion(part.name)
        before = meaning_of(part, case.data, case.layers)
        after = meaning_of(other, arrived, case.layers)
        if conversion.lossless:
            np.testing.assert_array_equal(after, before)
        outside = ~(np.abs(after.astype(np.float64) - before) <= allowed(conversion, other, arrived, before, case))
        assert int(outside.sum()) <= counts.saturated.get(part.name, 0)


def allowed(conversion: Conversion, other, arrived: Rows, before: np.ndarray, case: Case) -> np.ndarray:
    """The bound on every element, in the model's order."""
    loss, magnitude = conversion.loss, np.abs(before.astype(np.float64))
    scale = scale_of(other, arrived, case.layers, before).astype(np.float64)
    return (
        magnitude * loss.relative + loss.absolute + peak(other, magnitude) * loss.per_row_max + loss.per_scale * scale
    )


def peak(part, magnitude: np.ndarray) -> np.ndarray:
    """max|what shares a scale in the pool| for every element, in the model's order."""
    quant = part.encoding.quant
    each = quant.block if quant is not None and quant.block else part.count
    stored = np.arange(part.count)
    if part.element_order == "rope_pairs":
        stored = stored % (part.count // 2) * 2 + stored // (part.count // 2)
    found = np.empty_like(magnitude)
    for block in range(0, part.count, each):
        chosen = (stored // each) == block // each
        found[..., chosen] = magnitude[..., chosen].max(axis=-1, keepdims=True)
    return found


@checked
@given(EVERY, seeds)
def test_there_and_back_is_the_identity_where_both_ways_lose_nothing(pair, seed):
    case = a_case(pair, seed)
    back = compile_plan(pair[1], pair[0], Meeting(0, 0, case.layers))
    if not (case.plan.lossless and back.lossless):
        return
    execute(case)
    returned = Pool(**{f: getattr(case.source, f) for f in case.source.__dataclass_fields__ if f != "regions"},
                    regions=[[np.full_like(r, 0xA5) for r in shard] for shard in case.source.regions])  # fmt: skip
    reference.execute(
        back,
        case.swapped(),
        case.target.regions,
        returned.regions,
        case.scales("consumer"),
        case.scales("producer"),
    )
    if not (case.plan.converts or back.converts):
        assert_equal(returned, case.source)
    found = returned.get(case.binding.rows, case.layers)
    for part in case.plan.producer.components:
        after = meaning_of(part, found, case.layers)
        np.testing.assert_array_equal(after, meaning_of(part, case.data, case.layers))


@checked
@given(EVERY, seeds)
def test_what_a_lossless_cast_widened_is_narrowed_to_the_same_bytes(pair, seed):
    case = a_case(pair, seed)
    back = compile_plan(pair[1], pair[0], Meeting(0, 0, case.layers))
    parts = [
        part
        for part in case.plan.producer.components
        if part.encoding.quant is None and case.plan.conversion(part.name).lossless
    ]
    execute(case)
    source = case.source.copy()
    scales = case.scales("consumer"), case.scales("producer")
    reference.execute(back, case.swapped(), case.target.regions, source.regions, *scales)
    found = source.get(case.binding.rows, case.layers)
    for part in parts:
        if part.encoding.quant is None and case.plan.consumer.component(part.name).encoding.quant is None:
            np.testing.assert_array_equal(meaning_of(part, found, case.layers),
                                          meaning_of(part, case.data, case.layers))  # fmt: skip


def one_component(dtype: str, quant=None, *, count=8, heads=1, **fields) -> KVRepresentation:
    part = Component(name="latent", heads=heads, count=count, encoding=encoding_of(dtype, quant), **fields)
    group = GroupRepresentation(
        kind=GroupKind.MLA, layers=(0, 1), components=(part,), block_size=4, layout=Layout.LBNHC,
        kv_order=KvOrder.PACKED_C,
    )  # fmt: skip
    return KVRepresentation(groups=(group,), partition=Partition())


DIGEST = {"scale_values": "ab" * 8}


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel"])
def test_scales_on_the_layer_are_asked_for_where_they_are_needed_and_only_there(granularity):
    static = quant_of(granularity, "layer_attr", **DIGEST)
    case = a_case((one_component("i8", static), one_component("bf16")), 0)
    with pytest.raises(BadInput, match="producer's latent has static scales of digest abab") as caught:
        reference.execute(case.plan, case.binding, case.source.regions, case.target.regions)
    assert caught.value.field == "quant.scale_values"
    execute(case)
    turned = one_component("i8", static, element_order="rope_pairs")
    for other in (one_component("i8", static), turned):
        if granularity == "channel" and other is turned:
            continue  # other elements share a scale then
        same = a_case((one_component("i8", static), other), 0)
        reference.execute(same.plan, same.binding, same.source.regions, same.target.regions)
        assert_same_meaning(same)


def assert_same_meaning(case: Case) -> None:
    arrived = case.target.get(case.binding.rows, case.layers)
    for part in case.plan.producer.components:
        other = case.plan.consumer.component(part.name)
        before = meaning_of(part, case.data, case.layers)
        np.testing.assert_array_equal(meaning_of(other, arrived, case.layers), before)


def test_a_value_too_large_for_f16_is_counted_and_becomes_the_largest():
    case = a_case((one_component("bf16"), one_component("f16")), 3)
    values = np.array([65504, 65536, -70000, 1e30, -3e38, 1.5, 0, 65519], dtype=F32)
    rows = case.data["latent"].view("<u2").reshape(2, -1, 1, 8)
    rows[...] = (values.view(np.uint32) >> 16).astype("<u2")
    case.source.put(case.binding.rows, case.layers, {"latent": rows.view(np.uint8)})
    counts = execute(case)
    found = case.target.get(case.binding.rows, case.layers)["latent"].view("<f2")
    assert np.isfinite(found).all()
    bf16 = (values.view(np.uint32) >> 16 << 16).view(F32)
    beyond = np.abs(bf16) >= 65520
    np.testing.assert_array_equal(np.abs(found[0, 0, 0][beyond]), 65504)
    np.testing.assert_array_equal(found[0, 0, 0][~beyond], bf16[~beyond])
    assert counts.saturated["latent"] == int(beyond.sum()) * rows.shape[0] * rows.shape[1]


@pytest.mark.parametrize("scales", ["token_head", "none"])
@pytest.mark.parametrize(("one", "other"), [("f8_e4m3fn", "f8_e4m3fnuz"), ("f8_e4m3fnuz", "f8_e4m3fn")])
def test_e4m3fn_and_e4m3fnuz_are_exact_where_the_value_is_in_both(one, other, scales):
    """With a scale for each row the exponent's bias goes there, so that all of e4m3fn is in e4m3fnuz."""
    quant = quant_of("token_head", "inline") if scales == "token_head" else None
    case = a_case((one_component(one, quant, count=256), one_component(other, quant, count=256)), 5)
    codes = np.arange(256, dtype=np.uint8)
    codes[[0x7F, 0xFF] if one == "f8_e4m3fn" else [0x80]] = 0  # no numbers
    case.data["latent"][...] = codes
    case.source.put(case.binding.rows, case.layers, case.data)
    execute(case)
    part, target = case.plan.producer.components[0], case.plan.consumer.components[0]
    before = meaning_of(part, case.data, case.layers)
    after = meaning_of(target, case.target.get(case.binding.rows, case.layers), case.layers)
    if scales == "token_head":
        exact = np.ones(256, bool) if one == "f8_e4m3fn" else code_in_both(codes, one, other)
    else:
        exact = code_in_both(codes, one, other)
    assert exact.sum() > 200
    np.testing.assert_array_equal(after[..., exact], before[..., exact])


def code_in_both(codes: np.ndarray, one: str, other: str) -> np.ndarray:
    return np.isin(table(StorageDtype(one))[codes], table(StorageDtype(other)))
