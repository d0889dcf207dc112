"""The compiled plan: small, the same every time, and another one for any other pair."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from isthmus.portability.compiler import compile_plan
from isthmus.state.addressing import FIELD_NAMES
from isthmus.state.encoding import StorageDtype
from isthmus.state.plan import Cast, Dequantise, Quantise, RunAt, TransformPlan
from isthmus.state.representation import Partition
from tests.state.states import GROUP
from tests.strategies import ENCODINGS, pairs

ROOT = Path(__file__).parents[2]


def compiled(pair) -> TransformPlan:
    return compile_plan(*pair[0], *pair[1])


def skeleton(value: object) -> object:
    """A tree with its numbers taken out: what a plan's size is made of."""
    if isinstance(value, dict):
        return {key: skeleton(child) for key, child in value.items() if key != "fingerprint"}
    if isinstance(value, list | tuple):
        return [skeleton(child) for child in value]
    return "n" if isinstance(value, int) else value


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
        "import json; from tests.state.states import GROUP; from isthmus.state.representation import Partition; "
        "from isthmus.portability.compiler import compile_plan; "
        "print(json.dumps(compile_plan(GROUP, Partition(), GROUP, Partition(tp_size=2)).fingerprint))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    here = compile_plan(GROUP, Partition(), GROUP, Partition(tp_size=2))
    assert json.loads(found.stdout) == here.fingerprint


@given(pairs(), st.integers(1, 509), st.integers(1, 4096), st.integers(1, 4096))
def test_a_plan_does_not_grow_with_layers_or_blocks(pair, layers, ours, theirs):
    (producer, partition), (consumer, to_partition) = pair
    grown = compile_plan(
        msgspec.structs.replace(producer, layer_stop=producer.layer_start + layers, block_size=ours),
        partition,
        msgspec.structs.replace(consumer, layer_stop=consumer.layer_start + layers, block_size=theirs),
        to_partition,
    )
    found = skeleton(msgspec.to_builtins(grown))
    wanted = skeleton(msgspec.to_builtins(compiled(pair)))
    assert found | {"outcome": ""} == wanted | {"outcome": ""}


@given(pairs())
def test_parts_are_the_shards_that_meet_and_cover_every_head_once(pair):
    (group, partition), (_, to_partition) = pair
    plan = compiled(pair)
    assert len(plan.parts) <= partition.tp_size + to_partition.tp_size - 1
    heads = [head for part in plan.parts for head in range(part.head_start, part.head_stop)]
    assert sorted(heads) == list(range(group.num_kv_heads))
    for part in plan.parts:
        source, target = plan.producer_shards[part.producer_rank], plan.consumer_shards[part.consumer_rank]
        for runs, shard in ((part.gather, source), (part.scatter, target)):
            assert [run.field for run in runs] == list(shard.fields)
            assert all(run.num_heads == part.head_stop - part.head_start for run in runs)
            assert all(run.head + shard.head_start == part.head_start for run in runs)


@given(pairs())
def test_ops_lead_from_the_producers_encoding_to_the_consumers(pair):
    plan = compiled(pair)
    (ours, _), (theirs, _) = pair
    at = ours.storage_dtype
    for op in plan.ops:
        assert op.source is at if not isinstance(op, Quantise) else True
        match op:
            case Dequantise():
                at = StorageDtype.F32
            case Cast() | Quantise():
                at = op.target
    assert at is theirs.storage_dtype or (at is StorageDtype.F32 and theirs.storage_dtype is StorageDtype.F32)
    assert bool(plan.ops) == (ours.storage_dtype is not theirs.storage_dtype)


def test_a_plan_says_where_it_runs_and_why():
    plan = compile_plan(GROUP, Partition(), GROUP, Partition())
    assert plan.run_at is RunAt.CONSUMER
    assert "digest" in plan.run_at_reason


def test_the_scales_of_a_quantised_side_have_runs_of_their_own():
    for dtype, quant in ENCODINGS[4:]:
        quantised = msgspec.structs.replace(GROUP, storage_dtype=dtype, quant=quant)
        plan = compile_plan(GROUP, Partition(), quantised, Partition(tp_size=2))
        assert [run.field.name for run in plan.parts[0].gather] == list(FIELD_NAMES[:2])
        assert [run.field.name for run in plan.parts[0].scatter] == list(FIELD_NAMES)
