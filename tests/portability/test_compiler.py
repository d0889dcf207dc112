"""The compiled plan: small, the same every time, and another one for any other pair."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import Unsupported
from isthmus.portability.alignment import Meeting, meetings
from isthmus.portability.compiler import compile_plan, compile_plans
from isthmus.state.encoding import Granularity, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.plan import Cast, Dequantise, Quantise, Rebias, Reorder, TransformPlan
from isthmus.state.representation import GroupKind, GroupRepresentation, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP
from tests.strategies import EMBEDDED_ENCODINGS, encoding_of, pairs, quant_of

ROOT = Path(__file__).parents[2]


def side(*groups: GroupRepresentation, **partition) -> KVRepresentation:
    return KVRepresentation(groups=groups or (GROUP,), partition=Partition(**partition))


def compiled(pair) -> TransformPlan:
    (plan,) = compile_plans(*pair)
    return plan


def with_encoding(encoding, group: GroupRepresentation = GROUP) -> GroupRepresentation:
    parts = attention(heads=4, head_size=16, head_size_v=16, encoding=encoding)
    return msgspec.structs.replace(group, components=parts)


@given(pairs())
def test_compiling_twice_gives_the_same_plan(pair):
    assert compiled(pair) == compiled(pair)
    assert len(compiled(pair).fingerprint) == 32


@given(pairs(), pairs())
def test_fingerprints_are_equal_exactly_for_equal_pairs(one, other):
    assert (compiled(one).fingerprint == compiled(other).fingerprint) == (one == other)


@given(pairs())
def test_a_fingerprint_depends_on_the_direction(pair):
    there, back = compiled(pair), compiled(pair[::-1])
    assert (there.fingerprint == back.fingerprint) == (pair[0] == pair[1])


def test_another_process_makes_the_same_fingerprint():
    code = (
        "import json; from tests.portability.test_compiler import compiled, side; "
        "print(json.dumps(compiled((side(), side(tp_size=2))).fingerprint))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert json.loads(found.stdout) == compiled((side(), side(tp_size=2))).fingerprint


def with_layers(representation: KVRepresentation, layers: int, block_size: int) -> KVRepresentation:
    (group,) = representation.groups
    group = msgspec.structs.replace(group, layers=tuple(range(layers)), block_size=block_size)
    return KVRepresentation(groups=(group,), partition=Partition(tp_size=representation.partition.tp_size))


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 509), st.integers(1, 4096))
def test_a_plan_does_not_grow_with_blocks_and_with_layers_only_by_their_numbers(ours, theirs, layers, block_size):
    sides = side(tp_size=ours), side(tp_size=theirs)
    grown = compiled((with_layers(sides[0], layers, block_size), with_layers(sides[1], layers, 16)))
    plain = compiled(sides)
    assert len(grown.parts) == len(plain.parts) <= ours + theirs
    for part, other in zip(grown.parts, plain.parts, strict=True):
        assert (len(part.gather), len(part.scatter)) == (len(other.gather), len(other.scatter))
        assert part.layers == part.producer_layers == part.consumer_layers == tuple(range(layers))


def test_the_largest_deployments_are_compiled_in_no_time_to_speak_of():
    """64 ranks in 64 stages to 64 in 64 others: by what meets, and not by all pairs of shards."""
    wide = msgspec.structs.replace(GROUP, layers=tuple(range(512)))
    sides = (
        side(wide, tp_size=64, pp_starts=tuple(range(0, 512, 8))),
        side(wide, tp_size=64, pp_starts=tuple(range(64))),
    )
    assert len(compiled(sides).parts) == 64 * (63 + 57)


@given(pairs())
def test_runs_are_of_the_shards_own_fields_and_heads(pair):
    plan = compiled(pair)
    shards = [{shard.rank: shard for shard in side} for side in (plan.producer_shards, plan.consumer_shards)]
    for part in plan.parts:
        at = (
            (part.producer_rank, part.gather, part.producer_layers),
            (part.consumer_rank, part.scatter, part.consumer_layers),
        )
        for (rank, runs, layers), held, group in zip(at, shards, (plan.producer, plan.consumer), strict=True):
            shard = held[rank]
            assert tuple(group.layers[shard.layer_start + layer] for layer in layers) == part.layers
            for run in runs:
                assert run.field in shard.fields
                assert run.field.head_start + run.head == run.head_start
                assert 0 <= run.head < run.head + run.num_heads <= run.field.heads


@given(pairs())
def test_ops_lead_from_the_producers_codes_to_the_consumers(pair):
    """Each op takes what the one before it gives; the last gives the consumer's codes."""
    plan = compiled(pair)
    for conversion in plan.conversions:
        at, scaled = conversion.source.storage_dtype, conversion.source.quant is not None
        for op in conversion.ops:
            match op:
                case Dequantise():
                    assert op.source is at
                    assert scaled
                    at, scaled = StorageDtype.F32, False
                case Cast():
                    assert op.source is at
                    assert not scaled
                    at = op.target
                case Quantise():
                    assert not scaled
                    at, scaled = op.target, True
                    assert op.granularity is conversion.target.quant.granularity
                case Rebias():
                    assert op.source is at
                    at = op.target
                case Reorder():
                    assert op.source != op.target
        assert (at, scaled) == (conversion.target.storage_dtype, conversion.target.quant is not None)
        if not conversion.ops:
            assert conversion.source == conversion.target


def test_the_scales_of_a_quantised_side_have_runs_of_their_own():
    for encoding in EMBEDDED_ENCODINGS[4:]:
        group = with_encoding(encoding)

        plan = compiled((side(), side(group, tp_size=2)))
        assert [run.field.name for run in plan.parts[0].gather] == ["key", "value"]
        assert [run.field.name for run in plan.parts[0].scatter] == ["key", "value", "key_scale", "value_scale"]


REFUSED = [
    ({"kind": GroupKind.CROSS}, "kind"),
    ({"tokens_per_state": 2}, "tokens_per_state"),
    ({"interior": "opaque:x"}, "interior"),
    ({"components": attention(heads=2, head_size=16, head_size_v=16, encoding=encoding_of("bf16"))}, "num_kv_heads"),
    ({"components": attention(heads=4, head_size=8, head_size_v=8, encoding=encoding_of("bf16"))}, "head_size"),
    ({"components": attention(heads=4, head_size=16, head_size_v=16,
                              encoding=encoding_of("bf16", transform="hadamard:32"))}, "transform"),
    ({"components": attention(heads=4, head_size=16, head_size_v=16, encoding=encoding_of("u8"))}, "storage_dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), REFUSED)
def test_what_no_operation_makes_equal_is_refused_by_the_fields_name(fields, named):
    other = side(msgspec.structs.replace(GROUP, **fields))
    for pair in ((side(), other), (other, side())):
        with pytest.raises(Unsupported) as caught:
            compile_plan(*pair, Meeting(0, 0, GROUP.layers))
        assert caught.value.field == named


def test_bytes_without_a_meaning_are_only_moved():
    unknown = with_encoding(encoding_of("u8"))
    plan = compiled((side(unknown), side(msgspec.structs.replace(unknown, block_size=4))))
    assert not plan.converts
    assert plan.lossless


def test_components_meet_by_name_in_whatever_order_they_are_listed():
    turned = msgspec.structs.replace(GROUP, components=GROUP.components[::-1])
    plan = compiled((side(), side(turned)))
    assert not plan.converts
    assert [run.field.name for run in plan.parts[0].scatter] == ["key", "value"]


def test_groups_meet_where_they_hold_the_same_components_of_the_same_layers():
    def held(*layers: int, name: str = "key") -> GroupRepresentation:
        parts = [msgspec.structs.replace(part, name=name) if part.name == "key" else part for part in GROUP.components]
        return msgspec.structs.replace(GROUP, layers=layers, components=tuple(parts))

    one, other = side(held(0, 1, 2), held(3, 4)), side(held(1, 3), held(0, 2, 4))
    assert meetings(one, other) == (
        (Meeting(0, 0, (1,)), Meeting(0, 1, (0, 2)), Meeting(1, 0, (3,)), Meeting(1, 1, (4,))),
        "",
    )
    assert meetings(one, side(held(0, 1, 2)))[1] == "producer holds key, value of layer 3, consumer does not"
    assert meetings(side(held(0)), side(held(0, name="index_key")))[1].startswith("consumer holds index_key, value")


QUANTISED = {
    "f8_e4m3fn token_head": encoding_of("f8_e4m3fn", quant_of("token_head", "inline")),
    "f8_e4m3fnuz token_head": encoding_of("f8_e4m3fnuz", quant_of("token_head", "side_pool")),
    "f8_e4m3 token_head": encoding_of("f8_e4m3", quant_of("token_head", "inline")),
    "f8_e4m3fn token_head bf16": encoding_of("f8_e4m3fn", quant_of("token_head", "inline", "bf16")),
    "f8_e4m3fn block": encoding_of("f8_e4m3fn", quant_of("block", "inline", block=8)),
}


def ops_between(one: str, other: str) -> list:
    plan = compiled((side(with_encoding(QUANTISED[one])), side(with_encoding(QUANTISED[other]))))
    return [type(op) for op in plan.conversion("key").ops]


def test_codes_of_one_family_keep_their_scale_where_it_can_take_up_the_bias():
    assert ops_between("f8_e4m3fn token_head", "f8_e4m3fnuz token_head") == [Rebias]
    assert ops_between("f8_e4m3fnuz token_head", "f8_e4m3fn token_head") == [Rebias]
    assert ops_between("f8_e4m3fn token_head", "f8_e4m3 token_head") == [Rebias]
    for other in ("f8_e4m3fn token_head bf16", "f8_e4m3fn block"):
        assert ops_between("f8_e4m3fnuz token_head", other) == [Dequantise, Quantise]


@pytest.mark.parametrize("granularity", Granularity)
def test_the_same_sharing_of_the_same_scales_is_no_conversion(granularity):
    place = "side_pool" if granularity in ("token_head", "block") else "layer_attr"
    values = {"scale_values": "ab" * 8} if place == "layer_attr" else {}
    block = {"block": 4} if granularity is Granularity.BLOCK else {}
    encoding = encoding_of("i8", quant_of(granularity, place, **values, **block))
    plan = compiled((side(with_encoding(encoding)), side(with_encoding(encoding), tp_size=2)))
    assert not plan.converts
    assert plan.lossless
