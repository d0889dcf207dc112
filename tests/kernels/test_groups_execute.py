"""Hybrid models: layers that one side groups one way and the other side another, and ranks that share or deal rows."""

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.core.errors import BadInput, Unsupported
from isthmus.kernels import reference
from isthmus.kernels.binding import bind, bind_side
from isthmus.portability.compiler import compile_plans
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import deal, meaning_of
from tests.kernels.cases import cases_of
from tests.state.states import GROUP
from tests.strategies import Shape, groups, partitions, shapes, valid

seeds = st.integers(0, 2**32 - 1)


@st.composite
def split_sides(draw, shape: Shape, layers: tuple[int, ...]) -> KVRepresentation:
    """Layers of one shape dealt to one, two or three groups of unlike forms."""
    count = draw(st.integers(1, min(3, len(layers))))
    homes = draw(st.lists(st.integers(0, count - 1), min_size=len(layers), max_size=len(layers)))
    held = [tuple(layer for layer, home in zip(layers, homes, strict=True) if home == at) for at in range(count)]
    found = [draw(groups(Shape(shape.kind, part, shape.parts, shape.tokens_per_state))) for part in held if part]
    partition = draw(partitions(found[0]))
    return valid(lambda: KVRepresentation(groups=tuple(found), partition=partition))


@st.composite
def hybrid_pairs(draw) -> tuple[KVRepresentation, KVRepresentation]:
    """The same layers of attention and, sometimes, layers of another kind beside them."""
    layers = tuple(sorted(draw(st.sets(st.integers(0, 5), min_size=2, max_size=4))))
    shape = draw(shapes((GroupKind.FULL_ATTENTION, GroupKind.MLA, GroupKind.SLIDING_WINDOW)))
    sides = [draw(split_sides(shape, layers)) for _ in range(2)]
    if draw(st.booleans()):
        kind = draw(st.sampled_from([GroupKind.INDEXER, GroupKind.GDN]))
        other = draw(shapes((kind,)))
        names = {part.name for part in shape.parts}
        assert not names & {part.name for part in other.parts}
        sides = [_with(draw, side, other) for side in sides]
    return sides[0], sides[1]


def _with(draw, side: KVRepresentation, shape: Shape) -> KVRepresentation:
    more = draw(groups(shape))
    held = (more, *side.groups) if draw(st.booleans()) else (*side.groups, more)
    return valid(lambda: KVRepresentation(groups=held, partition=side.partition))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(hybrid_pairs(), seeds)
def test_layers_that_are_grouped_differently_all_arrive_once_each(pair, seed):
    cases = cases_of(pair, seed)
    wanted = {(layer, part.name) for group in pair[1].groups for layer in group.layers for part in group.components}
    moved = [(layer, part.name) for case in cases for layer in case.layers for part in case.plan.consumer.components]
    assert sorted(moved) == sorted(wanted)
    for case in cases:
        scales = case.scales("producer"), case.scales("consumer")
        reference.execute(case.plan, case.binding, case.source.regions, case.target.regions, *scales)
    for case in cases:  # after all of them: none wrote over another's rows
        arrived = case.target.get(case.binding.rows, case.layers)
        for part in case.plan.producer.components:
            if case.plan.conversion(part.name).lossless:
                other = case.plan.consumer.component(part.name)
                before = meaning_of(part, case.data, case.layers)
                np.testing.assert_array_equal(meaning_of(other, arrived, case.layers), before)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(hybrid_pairs(), seeds)
def test_every_consumers_rank_gets_all_that_it_holds_and_from_one_rank_each(pair, seed):
    """Every (layer, head, token) of a field of a consumer's shard is written exactly once, replicas too."""
    for case in cases_of(pair, seed):
        plan, binding = case.plan, case.binding
        for shard in plan.consumer_shards:
            layers = plan.consumer.layers[shard.layer_start : shard.layer_stop]
            mine = np.nonzero(binding.consumer.dcp_rank == shard.dcp_rank)[0].tolist()
            for field in shard.fields:
                held = {
                    (layer, head, token)
                    for layer in layers
                    if layer in case.layers
                    for head in range(field.head_start, field.head_start + field.heads)
                    for token in mine
                }
                written = [
                    (layer, runs.head_start + head, token)
                    for part in plan.parts
                    if part.consumer_rank == shard.rank
                    for runs in part.scatter
                    if runs.field.name == field.name
                    for layer in part.layers
                    for head in range(runs.num_heads)
                    for token in binding.tokens_of(part).tolist()
                ]
                assert len(written) == len(set(written))
                assert set(written) == held


def test_neighbouring_consumers_of_one_head_ask_different_producers_that_hold_it():
    parts = tuple(msgspec.structs.replace(part, heads=2) for part in GROUP.components)
    two_heads = msgspec.structs.replace(GROUP, components=parts)
    sides = [KVRepresentation(groups=(two_heads,), partition=Partition(tp_size=8)) for _ in range(2)]
    (plan,) = compile_plans(*sides)
    assert {part.consumer_rank: part.producer_rank for part in plan.parts} == {rank: rank for rank in range(8)}


def attention_at(layers: tuple[int, ...], **fields) -> GroupRepresentation:
    return msgspec.structs.replace(GROUP, layers=layers, **fields)


def test_what_one_side_holds_and_the_other_does_not_is_refused_by_the_layer_and_its_holder():
    one = KVRepresentation(groups=(attention_at((0, 1)),), partition=Partition())
    more = KVRepresentation(groups=(attention_at((0, 1)), attention_at((4,))), partition=Partition())
    for pair, said in (((one, more), "consumer holds key, value of layer 4"), ((more, one), "producer holds")):
        with pytest.raises(Unsupported, match=said) as caught:
            compile_plans(*pair)
        assert caught.value.field == "layers"


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 30), st.integers(1, 20), st.integers(0, 12))
def test_rows_are_bound_to_the_blocks_and_ranks_that_dealing_them_one_by_one_gives(units, ranks, start, length, window):
    interleave = 1 + units % 3
    group = msgspec.structs.replace(GROUP, block_size=units * interleave, sliding_window=window)
    partition = Partition(tp_size=ranks, dcp_size=ranks, dcp_interleave=interleave if ranks > 1 else 1)
    tokens = TokenRange(start=start, stop=start + length)
    rows = group.held(tokens)
    dealt = deal(group, partition, rows.stop)
    first = dealt[rows.start].entry
    table = list(range(40, 40 + dealt[-1].entry + 5))
    side = bind_side(group, partition, tokens, rows, table, 1000)
    assert side.blocks.tolist() == [table[one.entry - first] for one in dealt[rows.start :]]
    assert side.slots.tolist() == [one.slot for one in dealt[rows.start :]]
    assert side.dcp_rank.tolist() == [one.rank for one in dealt[rows.start :]]


def test_a_block_table_that_does_not_fit_is_refused():
    sides = KVRepresentation(groups=(GROUP,), partition=Partition())
    (plan,) = compile_plans(sides, sides)
    good = {"producer_blocks": [1, 2, 3], "consumer_blocks": [3, 2, 1]}
    counts = {"producer_num_blocks": 4, "consumer_num_blocks": 4}
    tokens = TokenRange(start=0, stop=40)
    assert bind(plan, tokens, **good, **counts).rows == tokens
    for wrong in ([1, 2], [1, 2, 4], [1, 2, -1], [1, 2, 1]):
        for side in good:
            with pytest.raises(BadInput, match="block_ids") as caught:
                bind(plan, tokens, **good | {side: wrong}, **counts)
            assert caught.value.field == "block_ids"
