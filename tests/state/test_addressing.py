"""Where elements lie: each in one place, in its own block, with nothing between them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.state.addressing import FIELD_NAMES, Stride, address_shards
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, Partition
from tests.strategies import ENCODINGS, shapes, sides

EVERY = [
    pytest.param(layout, order, *encoding, tp, id=f"{layout}-{order}-{encoding[0]}-{i}-tp{tp}")
    for layout, order, (i, encoding), tp in itertools.product(Layout, KvOrder, enumerate(ENCODINGS), (1, 2, 4))
]


def group_of(layout, order, dtype, quant, **fields) -> GroupRepresentation:
    plain = {"layer_start": 3, "layer_stop": 6, "num_kv_heads": 4, "head_size": 6, "head_size_v": 6, "block_size": 5}
    return GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        **plain | fields,
        layout=layout,
        kv_order=order,
        storage_dtype=dtype,
        quant=quant,
    )


def row_starts(group, shard, field, num_blocks) -> np.ndarray:
    """Byte offset of each row of a field: [layer, block, token, head]."""
    extents = (group.num_layers, num_blocks, group.block_size, shard.head_stop - shard.head_start)
    strides = (field.layer_stride, field.block_stride, field.token_stride, field.head_stride)
    index = np.indices(extents)
    return field.offset.at(num_blocks) + sum(
        axis * stride.at(num_blocks) for axis, stride in zip(index, strides, strict=True)
    )


def check_places(group: GroupRepresentation, partition: Partition, num_blocks: int) -> None:
    """Each byte of each region belongs to exactly one row, and to a row of the block it lies in."""
    shards = address_shards(group, partition)
    assert [(s.rank, s.head_start) for s in shards] == [(r, s.head_start) for r, s in enumerate(shards)]
    assert [head for s in shards for head in range(s.head_start, s.head_stop)] == list(range(group.num_kv_heads))
    total = 0
    for shard in shards:
        rows = [np.zeros(region.size_bytes(num_blocks), dtype=np.uint8) for region in shard.regions]
        assert [field.name for field in shard.fields] == list(FIELD_NAMES[: 2 if group.quant is None else 4])
        for field in shard.fields:
            starts = row_starts(group, shard, field, num_blocks)
            region = shard.regions[field.region]
            at = starts[..., None] + np.arange(field.row_bytes)
            np.add.at(rows[field.region], at.reshape(-1), 1)
            block = at // region.block_bytes % num_blocks
            assert (block == np.arange(num_blocks)[None, :, None, None, None]).all()
        for region, counts in zip(shard.regions, rows, strict=True):
            assert (counts == 1).all()
            assert region.size_bytes(num_blocks) == region.outer * num_blocks * region.block_bytes
            total += counts.size
    assert total == group.bytes_per_token * group.block_size * num_blocks


@pytest.mark.parametrize(("layout", "order", "dtype", "quant", "tp"), EVERY)
def test_every_element_lies_in_one_place_and_in_its_own_block_without_gaps(layout, order, dtype, quant, tp):
    group = group_of(layout, order, dtype, quant)
    for num_blocks in (1, 3):
        check_places(group, Partition(tp_size=tp), num_blocks)


@given(shapes().flatmap(sides), st.integers(1, 5))
def test_the_same_holds_for_any_representation_and_pool(side, num_blocks):
    check_places(*side, num_blocks)


@pytest.mark.parametrize("order", [KvOrder.PACKED_C, KvOrder.TWO_TENSORS])
@pytest.mark.parametrize(("dtype", "quant"), ENCODINGS)
@pytest.mark.parametrize("layout", Layout)
def test_k_and_v_of_unequal_size_have_their_places_too(layout, order, dtype, quant):
    check_places(group_of(layout, order, dtype, quant, head_size=6, head_size_v=2), Partition(tp_size=2), 3)


def placement(group, partition, num_blocks=3):
    """Where every row is: (field, layer, block, token, head of the model) to (rank, region, byte)."""
    places = {}
    for shard in address_shards(group, partition):
        for field in shard.fields:
            starts = row_starts(group, shard, field, num_blocks)
            for (layer, block, token, head), start in np.ndenumerate(starts):
                region = shard.regions[field.region].id
                places[field.name, layer, block, token, head + shard.head_start] = (region, int(start), field.row_bytes)
    return places


DESCRIPTIONS = [
    (group_of(layout, order, dtype, quant), Partition(tp_size=tp))
    for layout, order, (dtype, quant), tp in itertools.product(Layout, KvOrder, [ENCODINGS[1], *ENCODINGS[4:]], (1, 2))
]


@given(st.lists(st.sampled_from(DESCRIPTIONS), min_size=2, max_size=2))
def test_two_addressings_are_equal_exactly_where_every_row_has_the_same_place(pair):
    one, other = pair
    same = placement(*one) == placement(*other)
    assert (address_shards(*one) == address_shards(*other)) == same
    if one == other:
        assert same


def test_names_that_differ_and_mean_the_same_places_are_these():
    """An axis of K and V just outside the heads is a doubled axis of heads. Nothing else here has two names."""
    plain = [(group, partition) for group, partition in DESCRIPTIONS if group.quant is None and partition.tp_size == 1]
    twins = {
        (str(a.layout), *sorted([str(a.kv_order), str(b.kv_order)]))
        for (a, one), (b, two) in itertools.combinations(plain, 2)
        if address_shards(a, one) == address_shards(b, two)
    }
    assert twins == {("LHBNC", "kv_outer", "two_slots"), ("BLHNC", "kv_outer", "two_slots")}


def test_a_stride_grows_with_the_pool_only_by_what_it_says():
    assert Stride(fixed=8, per_block=3).at(5) == 23
    assert Stride().at(1 << 24) == 0


def test_shards_that_do_not_divide_the_heads_are_refused_by_the_fields_name():
    group = group_of(Layout.LBNHC, KvOrder.PACKED_C, StorageDtype.BF16, None)
    with pytest.raises(ValueError, match=r"^tp_size: got 3, wanted a divisor of num_kv_heads = 4$"):
        address_shards(group, Partition(tp_size=3))
    with pytest.raises(ValueError, match="tp_size: got 8"):
        address_shards(group, Partition(tp_size=8))


def test_every_encoding_has_traits_that_fit_its_width():
    for dtype, traits in TRAITS.items():
        bits = int("".join(c for c in dtype.value.split("_")[0] if c.isdigit()))
        assert traits.itemsize == bits // 8
