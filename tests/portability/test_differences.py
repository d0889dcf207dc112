"""Every field in which two representations may differ, by its name, its kind, and what resolves it."""

import msgspec
import pytest
from hypothesis import given

from isthmus.portability.compiler import compile_plans
from isthmus.portability.differences import differences
from isthmus.state.encoding import Encoding, NibbleOrder, Quant
from isthmus.state.partition import Partition
from isthmus.state.plan import Outcome
from isthmus.state.representation import (
    Component,
    GroupKind,
    GroupRepresentation,
    KvOrder,
    Layout,
    attention,
)
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.sameness import placement_of
from tests.state.states import GROUP
from tests.strategies import encoding_of, pairs, quant_of

BF16 = encoding_of("bf16")
LATENT = (
    Component(name="latent", heads=1, count=32, encoding=BF16),
    Component(name="rope", heads=1, count=8, encoding=BF16),
)
MLA = GroupRepresentation(
    kind=GroupKind.MLA, layers=(0, 1), components=LATENT, block_size=64, layout=Layout.LBNHC, kv_order=KvOrder.PACKED_C
)


def side(*groups: GroupRepresentation, **partition) -> KVRepresentation:
    return KVRepresentation(groups=groups or (GROUP,), partition=Partition(**partition))


def group(**fields) -> GroupRepresentation:
    return msgspec.structs.replace(GROUP, **fields)


def mla(**fields) -> GroupRepresentation:
    return msgspec.structs.replace(MLA, **fields)


def stored(encoding: Encoding, **fields) -> GroupRepresentation:
    parts = attention(heads=4, head_size=16, head_size_v=16, encoding=encoding)
    return group(**{"components": parts, "kv_order": KvOrder.PACKED_C} | fields)


def i8(granularity="token_head", location="inline", scale_dtype="f32", **fields) -> Encoding:
    return encoding_of("i8", quant_of(granularity, location, scale_dtype, **fields))


def static(granularity="tensor", dtype="i8", **fields) -> Encoding:
    return encoding_of(dtype, quant_of(granularity, "layer_attr", **{"scale_values": "ab" * 8} | fields))


def latents(first: Encoding, **fields) -> GroupRepresentation:
    return mla(components=(msgspec.structs.replace(LATENT[0], encoding=first), LATENT[1]), **fields)


KEY, VALUE = GROUP.components
MOVE, CONVERT, BOTH = Outcome.REDISTRIBUTE, Outcome.CONVERT, Outcome.REDISTRIBUTE_CONVERT
DIRECT = Outcome.DIRECT
# one side, the other, (the field named, its kind, how it is resolved) each, and the plans' outcome
CHANGES = [
    (side(), side(), [], DIRECT),
    (side(), side(group(layout=Layout.LBHNC)), [("layout", "layout", "redistribute")], MOVE),
    (side(), side(group(kv_order=KvOrder.TWO_TENSORS)), [("kv_order", "layout", "redistribute")], MOVE),
    (side(), side(group(block_size=64)), [("block_size", "layout", "redistribute")], MOVE),
    (side(), side(group(page_size_padded=4096)), [("page_size_padded", "layout", "redistribute")], MOVE),
    (side(), side(group(sliding_window=9)), [("sliding_window", "layout", "redistribute")], MOVE),
    (
        side(group(layout=Layout.LBHNC)),
        side(group(layout=Layout.LBHNC, interior="x_packed:8")),
        [("interior", "layout", "redistribute")],
        MOVE,
    ),
    # other names for the same bytes
    (
        side(group(layout=Layout.BLHNC, kv_order=KvOrder.KV_OUTER)),
        side(group(layout=Layout.BLHNC, kv_order=KvOrder.TWO_SLOTS)),
        [("kv_order", "layout", "none")],
        DIRECT,
    ),
    (side(group(), tp_size=4), side(group(layout=Layout.LBHNC), tp_size=4), [("layout", "layout", "none")], DIRECT),
    (side(mla()), side(mla(row_bytes=80)), [], DIRECT),
    (
        side(mla()),
        side(mla(components=(LATENT[0], msgspec.structs.replace(LATENT[1], offset=64)))),
        [("row", "layout", "none")],
        DIRECT,
    ),
    # rows
    (side(mla()), side(mla(row_bytes=96)), [("row", "layout", "redistribute")], MOVE),
    (side(mla()), side(mla(components=LATENT[::-1])), [("row", "layout", "redistribute")], MOVE),
    (
        side(mla(row_bytes=96)),
        side(mla(row_bytes=96, components=(LATENT[0], msgspec.structs.replace(LATENT[1], offset=70)))),
        [("row", "layout", "redistribute")],
        MOVE,
    ),
    (
        side(latents(i8(), row_bytes=96)),
        side(latents(i8(scale_offset=60), row_bytes=96)),
        [("row", "layout", "redistribute")],
        MOVE,
    ),
    # scales
    (
        side(stored(i8())),
        side(stored(i8(location="side_pool"))),
        [("quant.scale_location", "layout", "redistribute")],
        MOVE,
    ),
    (
        side(stored(i8(location="side_pool"))),
        side(stored(i8(location="side_pool", scale_row_bytes=16))),
        [("quant.scale_row_bytes", "layout", "redistribute")],
        MOVE,
    ),
    (
        side(stored(i8())),
        side(stored(i8("block", block=4))),
        [("quant.granularity", "numeric", "convert")],
        CONVERT,
    ),
    (side(stored(i8())), side(stored(i8("block", block=16))), [("quant.granularity", "numeric", "none")], DIRECT),
    (
        side(stored(i8("block", block=4))),
        side(stored(i8("block", block=8))),
        [("quant.granularity", "numeric", "convert")],
        CONVERT,
    ),
    (
        side(stored(i8())),
        side(stored(i8(scale_dtype="f16"))),
        [("quant.scale_dtype", "numeric", "convert")],
        CONVERT,
    ),
    (
        side(stored(static())),
        side(stored(static(scale_values="cd" * 8))),
        [("quant.scale_values", "numeric", "convert")],
        CONVERT,
    ),
    (
        side(stored(static())),
        side(stored(static("head", scale_values="cd" * 8))),
        [("quant.granularity", "numeric", "convert"), ("quant.scale_values", "numeric", "convert")],
        CONVERT,
    ),
    (
        side(stored(encoding_of("f8_e4m3fn"))),
        side(stored(static(dtype="f8_e4m3fn", scale_values="ones"))),
        [("quant.granularity", "numeric", "none")],
        DIRECT,
    ),
    (
        side(stored(i8())),
        side(stored(i8(tensor_scale=True, scale_values="ab" * 8))),
        [("quant.granularity", "numeric", "convert"), ("quant.scale_values", "numeric", "convert")],
        CONVERT,
    ),
    # codes
    (side(stored(BF16)), side(stored(encoding_of("f16"))), [("storage_dtype", "numeric", "convert")], CONVERT),
    (
        side(stored(BF16)),
        side(stored(i8())),
        [("storage_dtype", "numeric", "convert"), ("quant.granularity", "numeric", "convert")],
        CONVERT,
    ),
    (
        side(stored(encoding_of("e2m1"))),
        side(stored(encoding_of("e2m1", nibble_order=NibbleOrder.HIGH_FIRST))),
        [("nibble_order", "numeric", "redistribute")],
        MOVE,
    ),
    (
        side(mla()),
        side(latents(encoding_of("f8_e4m3fn"))),
        [("latent.storage_dtype", "numeric", "convert"), ("row", "layout", "convert")],
        CONVERT,
    ),
    (
        side(),
        side(group(components=(msgspec.structs.replace(KEY, element_order="rope_pairs"), VALUE))),
        [("key.element_order", "layout", "redistribute")],
        MOVE,
    ),
    (
        side(stored(i8("block", block=4))),
        side(group(kv_order=KvOrder.PACKED_C, components=(
            msgspec.structs.replace(KEY, encoding=i8("block", block=4), element_order="rope_pairs"),
            msgspec.structs.replace(VALUE, encoding=i8("block", block=4)),
        ))),
        [("key.element_order", "layout", "redistribute"), ("key.quant.granularity", "numeric", "convert")],
        BOTH,
    ),
    # partitions
    (side(), side(tp_size=4), [("tp_size", "partition", "redistribute")], MOVE),
    (side(), side(pp_starts=(0, 1)), [("pp_size", "partition", "redistribute")], MOVE),
    (side(pp_starts=(0, 1)), side(pp_starts=(0, 2)), [("pp_starts", "partition", "redistribute")], MOVE),
    (
        side(tp_size=8),
        side(tp_size=8, dcp_size=2, dcp_interleave=4),
        [("dcp_size", "partition", "redistribute"), ("dcp_interleave", "partition", "redistribute")],
        MOVE,
    ),
    # several at once
    (
        side(),
        side(stored(encoding_of("f8_e4m3fn"), block_size=8, kv_order=GROUP.kv_order), tp_size=2),
        [
            ("storage_dtype", "numeric", "convert"),
            ("block_size", "layout", "redistribute"),
            ("tp_size", "partition", "redistribute"),
        ],
        BOTH,
    ),
    (
        side(stored(BF16)),
        side(stored(encoding_of("f16"), page_size_padded=8192)),
        [("storage_dtype", "numeric", "convert"), ("page_size_padded", "layout", "redistribute")],
        BOTH,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "named", "outcome"), CHANGES)
def test_each_change_is_named_resolved_and_planned(one, other, named, outcome):
    for pair in ((one, other), (other, one)):
        found = differences(*pair)
        assert [(d.name, d.kind, d.resolution) for d in found] == named
        assert all(d.producer != d.consumer for d in found)
        assert [plan.outcome for plan in compile_plans(*pair)] == [outcome]


REJECTED = [
    (group(kind=GroupKind.CROSS), [("kind", "gate", "reject")]),
    (group(tokens_per_state=2), [("tokens_per_state", "gate", "reject")]),
    (group(layers=(0, 1, 2)), [("layers", "gate", "reject")]),
    (group(layers=(1, 2)), [("layers", "gate", "reject")]),
    (mla(), [("layers", "gate", "reject")]),
    (group(components=attention(heads=2, head_size=16, head_size_v=16, encoding=BF16)),
     [("num_kv_heads", "gate", "reject")]),
    (group(components=attention(heads=4, head_size=8, head_size_v=8, encoding=BF16)),
     [("head_size", "gate", "reject")]),
    (group(components=attention(heads=4, head_size=16, head_size_v=16,
                                encoding=encoding_of("bf16", transform="hadamard:32"))),
     [("transform", "gate", "reject")]),
]  # fmt: skip


@pytest.mark.parametrize(("other", "named"), REJECTED)
def test_what_no_plan_resolves_is_rejected_by_its_name(other, named):
    for pair in ((side(), side(other)), (side(other), side())):
        found = [(d.name, d.kind, d.resolution) for d in differences(*pair)]
        assert [difference for difference in found if difference[2] == "reject"] == named


def test_a_difference_of_one_component_says_which_and_one_of_all_is_said_once():
    changed = msgspec.structs.replace(VALUE, encoding=encoding_of("f16"))
    (one,) = differences(side(), side(group(components=(KEY, changed))))
    assert (one.name, one.component) == ("value.storage_dtype", "value")
    (both,) = differences(side(), side(stored(encoding_of("f16"), kv_order=GROUP.kv_order)))
    assert (both.name, both.component) == ("storage_dtype", "")


def test_components_are_compared_by_name_in_whatever_order_they_are_listed():
    plain, other = stored(BF16), msgspec.structs.replace(VALUE, encoding=static(scale_values=""))
    found = differences(side(plain), side(msgspec.structs.replace(plain, components=(other, KEY))))
    assert ("value.quant.scale_values", "unknown") in [(d.name, d.resolution) for d in found]
    assert not [d for d in found if d.component == "key"]


def test_a_difference_in_one_group_of_several_says_which():
    second = group(layers=(2, 3), kind=GroupKind.SLIDING_WINDOW)
    one, two = side(GROUP, second), side(GROUP, msgspec.structs.replace(second, block_size=32))
    assert [d.name for d in differences(one, two)] == ["sliding_window.block_size"]
    assert [plan.outcome for plan in compile_plans(one, two)] == [Outcome.DIRECT, Outcome.REDISTRIBUTE]
    assert differences(two, two) == ()


def test_layers_that_are_grouped_differently_are_said_to_be():
    one, other = side(group(layers=(0, 1)), group(layers=(2, 3))), side(group(layers=(0, 2)), group(layers=(1, 3)))
    (found,) = differences(one, other)
    assert (found.field, found.resolution) == ("groups", "redistribute")
    assert {plan.outcome for plan in compile_plans(one, other)} == {Outcome.REDISTRIBUTE}


def test_static_scales_that_nobody_gave_are_unknown_even_where_both_name_one_encoding():
    unknown, known = stored(static(scale_values="")), stored(static())
    for pair in ((unknown, unknown), (unknown, known), (known, unknown), (unknown, stored(BF16))):
        found = [d for d in differences(*map(side, pair)) if d.resolution == "unknown"]
        assert {d.name for d in found} == {"key.quant.scale_values", "value.quant.scale_values"}
        assert all("unknown" in (d.producer, d.consumer) for d in found)
    tensor = stored(i8(tensor_scale=True))
    assert {d.resolution for d in differences(side(tensor), side(tensor))} == {"unknown"}


def test_bytes_without_a_meaning_are_unknown_unless_they_are_only_moved():
    unknown = stored(encoding_of("u8"))
    assert {d.resolution for d in differences(side(unknown), side(stored(BF16)))} == {"unknown"}
    moved = differences(side(unknown), side(msgspec.structs.replace(unknown, block_size=4)))
    assert [d.resolution for d in moved] == ["redistribute"]


def test_what_nobody_has_described_is_the_same_only_as_itself():
    def opaque() -> GroupRepresentation:
        return group(interior="opaque:x")

    assert differences(side(opaque()), side(opaque())) == ()
    same_object = opaque()
    for one, other in (
        (side(opaque()), side()),
        (side(opaque()), side(group(interior="opaque:y"))),
        (side(opaque()), side(msgspec.structs.replace(opaque(), block_size=4))),
        (side(same_object), side(same_object, tp_size=2)),
        (side(opaque()), side(opaque(), tp_size=2)),
    ):
        for pair in ((one, other), (other, one)):
            assert "unknown" in {d.resolution for d in differences(*pair)}


@given(pairs())
def test_two_sides_differ_in_nothing_only_where_they_are_the_same(pair):
    found = differences(*pair)
    if pair[0] == pair[1]:
        assert found == ()
    if not found:  # the padding of a row may be said to be none
        (one,), (other,) = (side_.groups for side_ in pair)
        assert placement_of(one, pair[0].partition) == placement_of(other, pair[1].partition)
    assert all(d.producer != d.consumer for d in found)
    names = [d.name for d in found]
    assert len(names) == len(set(names))


@given(pairs())
def test_differences_are_the_same_in_both_directions_but_for_the_sides(pair):
    there, back = differences(*pair), differences(*pair[::-1])
    assert {(d.field, d.producer, d.consumer) for d in there} == {(d.field, d.consumer, d.producer) for d in back}


FIELDS_NAMED = {
    "kind", "layers", "tokens_per_state", "block_size", "layout", "kv_order", "interior", "page_size_padded",
    "sliding_window", "row", "num_kv_heads", "head_size", "transform", "element_order", "storage_dtype", "nibble_order",
    "quant.granularity", "quant.scale_dtype", "quant.scale_location", "quant.scale_row_bytes", "quant.scale_values",
    "tp_size", "pp_size", "pp_starts", "dcp_size", "dcp_interleave",
}  # fmt: skip


def test_the_tables_name_every_field_there_is():
    """A field that is added to the types has to be added to the differences, and here."""
    named = {name.split(".", 1)[-1] if name.split(".")[0] in ("key", "latent") else name
             for *_, changes, _ in CHANGES for name, _, _ in changes}  # fmt: skip
    named |= {name for _, changes in REJECTED for name, _, _ in changes}
    assert named == FIELDS_NAMED
    said = {
        GroupRepresentation: {"components", "row_bytes"},  # compared part by part, and as `row`
        Component: {"name", "heads", "count", "encoding", "offset"},  # `num_kv_heads`, `head_size`, `row`
        Quant: {"block", "scale_offset", "tensor_scale", "zero_point"},  # in `quant.granularity`, `row`; never true
    }
    for kind, elsewhere in said.items():
        prefix = "quant." if kind is Quant else ""
        missing = {prefix + field for field in kind.__struct_fields__ if field not in elsewhere} - FIELDS_NAMED
        assert not missing
    assert set(Partition.__struct_fields__) <= FIELDS_NAMED
    assert set(Encoding.__struct_fields__) - {"quant"} <= FIELDS_NAMED
