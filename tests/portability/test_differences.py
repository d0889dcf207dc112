"""Where two representations differ, by name, and the verdict that follows from it."""

import msgspec
import pytest
from hypothesis import given

from isthmus.core.errors import GateRefused, Unsupported
from isthmus.portability.compiler import compile_plan
from isthmus.portability.differences import differences
from isthmus.portability.verdict import judge, plans_or_refuse
from isthmus.state.encoding import StorageDtype
from isthmus.state.plan import Outcome
from isthmus.state.representation import KvOrder, Layout, Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP, IDENTITY
from tests.strategies import ENCODINGS, pairs

INLINE, SIDE_POOL = (quant for _, quant in ENCODINGS[4:])
MOVED = Outcome.REDISTRIBUTE
# what is changed, (the field named, how it is resolved) each, and the outcome
CHANGES = [
    ({}, [], Outcome.DIRECT),
    ({"layout": Layout.LBHNC}, [("layout", "redistribute")], MOVED),
    ({"kv_order": KvOrder.TWO_TENSORS}, [("kv_order", "redistribute")], MOVED),
    ({"block_size": 64}, [("block_size", "redistribute")], MOVED),
    ({"tp_size": 4}, [("tp_size", "redistribute")], MOVED),
    ({"storage_dtype": StorageDtype.F16}, [("storage_dtype", "convert")], Outcome.CONVERT),
    (
        {"storage_dtype": StorageDtype.I8, "quant": INLINE},
        [("storage_dtype", "convert"), ("quant.granularity", "convert")],
        Outcome.CONVERT,
    ),
    (
        {"storage_dtype": StorageDtype.F8_E4M3FN, "block_size": 8, "tp_size": 2},
        [("block_size", "redistribute"), ("storage_dtype", "convert"), ("tp_size", "redistribute")],
        Outcome.REDISTRIBUTE_CONVERT,
    ),
    ({"num_kv_heads": 2}, [("num_kv_heads", "reject")], Outcome.REJECT),
    ({"layer_stop": 3}, [("layer_stop", "reject")], Outcome.REJECT),
    ({"layer_start": 1}, [("layer_start", "reject")], Outcome.REJECT),
    ({"head_size": 32, "head_size_v": 32}, [("head_size", "reject"), ("head_size_v", "reject")], Outcome.REJECT),
]


def side(tp_size: int = 1, **fields) -> KVRepresentation:
    group = msgspec.structs.replace(GROUP, **fields)
    return KVRepresentation(groups=(group,), partition=Partition(tp_size=tp_size))


def verdict(one: KVRepresentation, other: KVRepresentation):
    return judge((IDENTITY, one), (IDENTITY, other))


@pytest.mark.parametrize(("change", "named", "outcome"), CHANGES)
def test_each_change_is_named_resolved_and_judged(change, named, outcome):
    for one, other in ((side(), side(**change)), (side(**change), side())):
        found = differences(one, other)
        assert [(d.field, d.resolution) for d in found] == named
        assert all(d.producer != d.consumer for d in found)
        assert verdict(one, other).outcome is outcome


def test_scales_that_lie_elsewhere_are_only_moved():
    ours = side(storage_dtype=StorageDtype.I8, quant=INLINE)
    theirs = side(storage_dtype=StorageDtype.I8, quant=SIDE_POOL)
    (difference,) = differences(ours, theirs)
    assert (difference.field, difference.producer, difference.consumer) == (
        "quant.scale_location",
        "inline",
        "side_pool",
    )
    found = verdict(ours, theirs)
    assert (found.outcome, found.lossless) == (Outcome.REDISTRIBUTE, True)


@given(pairs())
def test_an_outcome_is_what_its_differences_say(pair):
    one, other = (KVRepresentation(groups=(group,), partition=partition) for group, partition in pair)
    found, resolutions = verdict(one, other), {d.resolution for d in differences(one, other)}
    assert "reject" not in resolutions
    assert (
        found.outcome
        is {
            frozenset(): Outcome.DIRECT,
            frozenset({"redistribute"}): Outcome.REDISTRIBUTE,
            frozenset({"convert"}): Outcome.CONVERT,
            frozenset({"redistribute", "convert"}): Outcome.REDISTRIBUTE_CONVERT,
        }[frozenset(resolutions)]
    )
    assert (found.outcome is Outcome.DIRECT) == (one == other)
    assert found.plans[0].outcome is found.outcome
    assert found.producer_bytes_per_token == one.bytes_per_token


@pytest.mark.parametrize(
    ("change", "named"), [(change, named) for change, named, outcome in CHANGES if outcome is Outcome.REJECT]
)
def test_what_no_plan_resolves_is_refused_by_its_names_and_never_planned(change, named):
    found = verdict(side(), side(**change))
    assert found.plans == ()
    assert not found.lossless
    with pytest.raises(Unsupported, match="no plan resolves") as caught:
        plans_or_refuse(found)
    assert all(field in str(caught.value) for field, _ in named)
    with pytest.raises(Unsupported) as caught:
        compile_plan(GROUP, Partition(), msgspec.structs.replace(GROUP, **change), Partition())
    assert caught.value.field == named[0][0]


def test_another_number_of_groups_is_refused():
    two = KVRepresentation(
        groups=(GROUP, msgspec.structs.replace(GROUP, layer_start=2, layer_stop=4)), partition=Partition()
    )
    found = verdict(side(), two)
    assert found.outcome is Outcome.REJECT
    assert [d.field for d in found.differences] == ["groups"]
    assert [d.field for d in differences(two, two)] == []


def test_a_difference_in_one_group_of_several_says_which():
    second = msgspec.structs.replace(GROUP, layer_start=2, layer_stop=4)
    other = msgspec.structs.replace(second, block_size=32)
    one = KVRepresentation(groups=(GROUP, second), partition=Partition())
    two = KVRepresentation(groups=(GROUP, other), partition=Partition())
    assert [d.field for d in differences(one, two)] == ["groups[1].block_size"]
    assert verdict(one, two).outcome is Outcome.REDISTRIBUTE
    assert [plan.outcome for plan in verdict(one, two).plans] == [Outcome.DIRECT, Outcome.REDISTRIBUTE]


def test_representations_that_fit_do_not_excuse_another_model():
    other = msgspec.structs.replace(IDENTITY, adapter="org/lora")
    found = judge((IDENTITY, side()), (other, side()))
    assert (found.outcome, found.plans) == (Outcome.REJECT, ())
    with pytest.raises(GateRefused, match="adapter"):
        plans_or_refuse(found)
