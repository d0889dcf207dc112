"""Where elements lie: each unit in bytes of its own, in its own block; every head, layer and token on some shard."""

import itertools
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.state.addressing import address_shards, heads_of
from isthmus.state.digits import Axis, Digit, Stride, canonical, split
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.representation import STATE_KINDS, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import deal, row_at
from tests.state.states import GROUP
from tests.strategies import EMBEDDED_ENCODINGS, ROWS_TOGETHER, encoding_of, quant_of, shapes, sides


def check_places(representation: KVRepresentation, num_blocks: int) -> int:
    """No byte belongs to two rows, and each row lies in its own block. Returns how many bytes belong to none."""
    free = 0
    for group, shards in zip(representation.groups, representation.address(), strict=True):
        for shard in shards:
            used = [np.zeros(region.size_bytes(num_blocks), dtype=np.uint8) for region in shard.regions]
            for field in shard.fields:
                region = shard.regions[field.region]
                extents = (shard.layer_stop - shard.layer_start, num_blocks, group.block_size, field.heads)
                for layer, block, token, head in np.ndindex(*extents):
                    at = row_at(field, num_blocks, layer, block, token, head)
                    assert len(at) == field.row_bytes
                    assert (at // region.block_bytes % num_blocks == block).all()
                    used[field.region][at] += 1
            assert all(region.max() == 1 for region in used)
            free += sum(int((region == 0).sum()) for region in used)
    return free


def padded(group: GroupRepresentation) -> bool:
    """Whether a description says that some bytes belong to nothing."""
    quants = [part.encoding.quant for part in group.components]
    said = any(q is not None and (q.scale_row_bytes or q.scale_offset is not None) for q in quants)
    return bool(said or group.row_bytes or group.page_size_padded or any(p.offset for p in group.components))


@given(shapes().flatmap(sides), st.integers(1, 3))
def test_every_unit_lies_in_bytes_of_its_own_and_in_its_own_block(representation, num_blocks):
    free = check_places(representation, num_blocks)
    assert free == 0 or padded(representation.groups[0])


@given(shapes().flatmap(sides))
def test_every_head_of_every_layer_is_held_as_often_as_the_partition_says(representation):
    (group,), partition = representation.groups, representation.partition
    (shards,) = representation.address()
    held = Counter(
        (field.name, layer, head, shard.dcp_rank)
        for shard in shards
        for field in shard.fields
        for layer in group.layers[shard.layer_start : shard.layer_stop]
        for head in range(field.head_start, field.head_start + field.heads)
    )
    for part in group.components:
        names = [part.name] + [f"{part.name}_scale"] * bool(part.encoding.scales_per_row(part.count))
        copies = max(1, partition.tp_size // (part.heads * partition.dcp_size))
        wanted = itertools.product(names, group.layers, range(part.heads), range(partition.dcp_size))
        for place in wanted:
            assert held.pop(place) == copies
    assert not held


@given(shapes().flatmap(sides))
def test_ranks_and_stages_hold_what_they_are_said_to(representation):
    (group,), partition = representation.groups, representation.partition
    (shards,) = representation.address()
    assert len({shard.rank for shard in shards}) == len(shards)
    bounds = [*partition.pp_starts, 1 << 30]
    for shard in shards:
        stage, tp_rank = divmod(shard.rank, partition.tp_size)
        layers = group.layers[shard.layer_start : shard.layer_stop]
        assert all(bounds[stage] <= layer < bounds[stage + 1] for layer in layers)
        assert shard.dcp_rank == tp_rank % partition.dcp_size
        assert all(region.id.startswith(f"g0.tp{shard.rank}.") for region in shard.regions)
        assert len({region.id for region in shard.regions}) == len(shard.regions)
        for field in shard.fields:
            part = group.component(field.name.removesuffix("_scale"))
            assert (field.head_start, field.head_start + field.heads) == heads_of(
                part.heads, partition.tp_size, tp_rank
            )


@given(shapes().flatmap(sides))
def test_a_pools_bytes_are_those_of_a_token_times_its_slots_where_nothing_is_padded_or_held_twice(representation):
    (group,), partition = representation.groups, representation.partition
    (shards,) = representation.address()
    blocks = 3
    total = sum(region.size_bytes(blocks) for shard in shards for region in shard.regions)
    copies = {max(1, partition.tp_size // part.heads) // partition.dcp_size for part in group.components}
    slots = blocks * group.block_size
    per_row = group.bytes_per_sequence if group.kind in STATE_KINDS else group.bytes_per_token * group.tokens_per_state
    if partition.dcp_size > 1:
        slots *= partition.dcp_size
    if padded(group):
        assert total >= per_row * slots
    elif len(copies) == 1:
        assert total == per_row * slots * copies.pop()


@given(
    st.integers(1, 6).flatmap(lambda size: st.tuples(st.just(size), st.sampled_from([1, 2, 3, 5, 6]))),
    st.sampled_from([1, 2, 3, 4]),
)
def test_rows_dealt_to_ranks_are_each_rank_s_own_rows_in_order(sizes, ranks):
    """The dealing by hand that the kernels' tests rest on: no slot twice, and a block fills before the next."""
    block_size, interleave = sizes
    group = msgspec.structs.replace(GROUP, block_size=block_size * interleave)
    dealt = deal(group, Partition(tp_size=ranks, dcp_size=ranks, dcp_interleave=interleave), 60)
    assert len(set(dealt)) == 60
    for rank in range(ranks):
        mine = [one.entry * group.block_size + one.slot for one in dealt if one.rank == rank]
        assert mine == list(range(len(mine)))


def test_names_that_differ_and_mean_the_same_places_are_these():
    """An axis over K and V just outside the heads is a doubled axis of heads. Nothing else here has two names."""
    plain = [msgspec.structs.replace(GROUP, layout=a, kv_order=b) for a, b in itertools.product(Layout, KvOrder)]
    twins = {
        (a.layout.value, b.layout.value, *sorted([a.kv_order.value, b.kv_order.value]))
        for a, b in itertools.combinations(plain, 2)
        if _same(address_shards(a, Partition()), address_shards(b, Partition()))
    }
    assert twins == {("LHBNC", "LHBNC", "kv_outer", "two_slots"), ("BLHNC", "BLHNC", "kv_outer", "two_slots")}


def _same(one, other) -> bool:
    return all(
        a.regions == b.regions and all(_placed(x) == _placed(y) for x, y in zip(a.fields, b.fields, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _placed(field) -> tuple:
    return field.name, field.offset, canonical(field.digits)


@pytest.mark.parametrize("encoding", EMBEDDED_ENCODINGS, ids=lambda e: e.storage_dtype.value)
@pytest.mark.parametrize("order", [KvOrder.PACKED_C, KvOrder.TWO_TENSORS, KvOrder.TWO_SLOTS])
@pytest.mark.parametrize("layout", Layout)
def test_k_and_v_of_unequal_size_have_their_places_too_or_are_refused(layout, order, encoding):
    group = {"components": attention(heads=4, head_size=6, head_size_v=2, encoding=encoding)}
    apart = encoding.quant is not None and encoding.quant.scale_location == "segregated"
    if layout not in ROWS_TOGETHER and (apart or order is KvOrder.TWO_SLOTS):
        with pytest.raises(ValueError, match=r"^layout: got"):
            KVRepresentation(groups=(make(layout, order, **group),), partition=Partition(tp_size=2))
    else:
        check_places(KVRepresentation(groups=(make(layout, order, **group),), partition=Partition(tp_size=2)), 3)


def make(layout: Layout, order: KvOrder, **fields) -> GroupRepresentation:
    return msgspec.structs.replace(GROUP, **{"block_size": 5, "layout": layout, "kv_order": order} | fields)


I8 = encoding_of("i8", quant_of("token_head", "inline"))
MISFITS = [
    ({}, {"tp_size": 3}, "tp_size"),
    ({}, {"tp_size": 6}, "tp_size"),
    ({}, {"tp_size": 4, "dcp_size": 2}, "dcp_size"),
    ({}, {"tp_size": 8, "dcp_size": 2, "dcp_interleave": 3}, "dcp_interleave"),
    ({"page_size_padded": 4}, {}, "page_size_padded"),
    ({"interior": "x_packed:4"}, {}, "layout"),
    ({"interior": "x_packed:0", "layout": Layout.LBHNC}, {}, "interior"),
    ({"interior": "nz:3", "layout": Layout.LBHNC}, {}, "interior"),
    ({"interior": "shuffled:4", "layout": Layout.LBHNC, "block_size": 6}, {}, "block_size"),
    ({"interior": "isa_packed:amx", "layout": Layout.LBHNC, "block_size": 8}, {}, "block_size"),
    ({"interior": "conv_sd:0", "kv_order": KvOrder.TWO_SLOTS}, {}, "interior"),
    ({"interior": "conv_sd:4"}, {}, "interior"),
]


@pytest.mark.parametrize(("fields", "partition", "named"), MISFITS)
def test_what_does_not_fit_together_is_refused_by_the_fields_name(fields, partition, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        KVRepresentation(groups=(msgspec.structs.replace(GROUP, **fields),), partition=Partition(**partition))


def test_fields_of_one_row_may_not_lie_over_each_other():
    key, value = GROUP.components
    for parts in (
        (key, msgspec.structs.replace(value, offset=16)),
        (msgspec.structs.replace(key, offset=2), msgspec.structs.replace(value, offset=0)),
        (
            msgspec.structs.replace(key, encoding=encoding_of("i8", quant_of("token_head", "inline", scale_offset=4))),
            msgspec.structs.replace(value, encoding=I8),
        ),
    ):
        with pytest.raises(ValueError, match=r"^offset: got"):
            KVRepresentation(groups=(make(Layout.LBNHC, KvOrder.PACKED_C, components=parts),), partition=Partition())


def test_scales_of_components_with_other_heads_do_not_share_a_side_pool():
    encoding = encoding_of("i8", quant_of("token_head", "side_pool"))
    key, value = (msgspec.structs.replace(part, encoding=encoding) for part in GROUP.components)
    parts = (key, msgspec.structs.replace(value, heads=2))
    with pytest.raises(ValueError, match=r"^kv_order: got 'two_slots'"):
        KVRepresentation(groups=(make(Layout.LBNHC, KvOrder.TWO_SLOTS, components=parts),), partition=Partition())
    apart = KVRepresentation(groups=(make(Layout.LBNHC, KvOrder.TWO_TENSORS, components=parts),), partition=Partition())
    assert check_places(apart, 2) == 0


def test_a_stride_grows_with_the_pool_only_by_what_it_says():
    assert Stride(fixed=8, per_block=3).at(5) == 23
    assert Stride().at(1 << 24) == 0


digits = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 5)), min_size=1, max_size=4)


def summed(parts: list[tuple[int, int]]) -> tuple[Digit, ...]:
    """Digits of one axis, of these extents and strides."""
    divisor, found = 1, []
    for extent, stride in parts:
        found.append(Digit(axis=Axis.UNIT, divisor=divisor, extent=extent, stride=Stride(stride)))
        divisor *= extent
    return tuple(found)


def function(parts: tuple[Digit, ...], extent: int) -> list[int]:
    return [sum(i // d.divisor % d.extent * d.stride.fixed for d in parts) for i in range(extent)]


@given(digits, digits)
def test_two_sums_of_digits_have_one_canonical_form_exactly_where_they_are_the_same_function(one, other):
    extents = [int(np.prod([extent for extent, _ in parts])) for parts in (one, other)]
    a, b = summed(one), summed(other)
    same = extents[0] == extents[1] and function(a, extents[0]) == function(b, extents[1])
    assert (canonical(a) == canonical(b)) == same
    assert function(canonical(a), extents[0]) == function(a, extents[0])


@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.integers(1, 9))
def test_a_digit_split_in_two_is_the_same_function(lower, upper, stride):
    digit = Digit(axis=Axis.UNIT, divisor=1, extent=lower * upper, stride=Stride(stride))
    assert function(split(digit, lower), lower * upper) == function((digit,), lower * upper)


def test_every_encoding_has_traits_that_fit_its_width():
    widths = {"ue8m0": 8, "e2m1": 4}
    for dtype, traits in TRAITS.items():
        bits = widths.get(dtype.value) or int("".join(c for c in dtype.value.split("_")[0] if c.isdigit()))
        assert traits.bits == bits
        assert traits.size(8) == bits
    assert set(TRAITS) == set(StorageDtype)
