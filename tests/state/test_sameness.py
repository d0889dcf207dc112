"""Two descriptions are the same exactly where they put every element into the same bits with the same meaning."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.state.encoding import Encoding, Granularity
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupKind, GroupRepresentation, KvOrder, Layout
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.sameness import meaning_of, placement_of, same_placement
from tests.byhand import row_at
from tests.state.states import GROUP
from tests.strategies import (
    SCALES,
    Part,
    Shape,
    encoding_of,
    encodings,
    pairs,
    partitions,
    quant_of,
    shapes,
    sides,
    valid,
)

POOLS = (2, 5)


def spots(representation: KVRepresentation) -> dict:
    """(pool, field, layer, block, token, head, element, rank) to (region, byte, nibble): every element there is."""
    (group,), (shards,) = representation.groups, representation.address()
    found = {}
    for num_blocks in POOLS:
        for shard in shards:
            for field in shard.fields:
                bits, region = field.unit_bytes * 8, shard.regions[field.region].id
                per_unit = field.count // field.units
                high_first = group.component(field.name.removesuffix("_scale")).encoding.nibble_order
                for layer in range(shard.layer_start, shard.layer_stop):
                    for block in range(2):
                        for token in range(group.block_size):
                            for head in range(field.heads):
                                row = row_at(field, num_blocks, layer - shard.layer_start, block, token, head)
                                units = row[:: field.unit_bytes]
                                nibbles = (high_first, per_unit) if per_unit > 1 else None
                                where = (region, bits, nibbles, tuple(units.tolist()))
                                at = (group.layers[layer], block, token, field.head_start + head)
                                found[num_blocks, field.name, *at, shard.rank, shard.dcp_rank] = where
    return found


def shared(part: Component) -> object:
    """What a component's bytes mean: its codes, and which of two layers', tokens', heads' elements share a scale."""
    encoding, quant = part.encoding, part.encoding.quant
    codes = (encoding.storage_dtype, encoding.transform, part.element_order)
    if quant is None:
        return codes
    group = {
        Granularity.TENSOR: lambda token, head, element: (),
        Granularity.HEAD: lambda token, head, element: (head,),
        Granularity.CHANNEL: lambda token, head, element: (head, element),
        Granularity.TOKEN_HEAD: lambda token, head, element: (token, head),
        Granularity.BLOCK: lambda token, head, element: (token, head, element // quant.block),
    }[quant.granularity]
    in_pool = quant.granularity in (Granularity.TOKEN_HEAD, Granularity.BLOCK)
    one = quant.scale_values == "ones"
    if one and not in_pool and encoding.traits.exponent_bits:
        return codes
    every = [(t, h, e) for t in range(2) for h in range(part.heads) for e in range(part.count)]
    first = {group(*at): index for index, at in reversed(list(enumerate(every)))}
    classes = tuple(first[group(*at)] for at in every)
    static = "" if in_pool and (not quant.tensor_scale or one) else quant.scale_values
    return (*codes, classes, quant.scale_dtype if in_pool else None, in_pool, static)


def same_by_hand(one: KVRepresentation, other: KVRepresentation) -> bool:
    (a,), (b,) = one.groups, other.groups
    said = ("kind", "layers", "block_size", "sliding_window", "tokens_per_state")
    if any(getattr(a, field) != getattr(b, field) for field in said) or one.partition != other.partition:
        return False
    meanings = [{part.name: shared(part) for part in group.components} for group in (a, b)]
    return meanings[0] == meanings[1] and spots(one) == spots(other)


def same(one: KVRepresentation, other: KVRepresentation) -> bool:
    return placement_of(one.groups[0], one.partition) == placement_of(other.groups[0], other.partition)


def changed(draw, group: GroupRepresentation) -> GroupRepresentation:
    """Another description of the same group: with another name somewhere, which may or may not matter."""
    match draw(st.sampled_from(["layout", "order", "both", "interior", "padding", "offsets", "turned", "scales"])):
        case "layout":
            fields = {"layout": draw(st.sampled_from(Layout))}
        case "order":
            fields = {"kv_order": draw(st.sampled_from(KvOrder)), "row_bytes": 0}
        case "both":
            fields = {"kv_order": draw(st.sampled_from(KvOrder)), "layout": draw(st.sampled_from(Layout))}
        case "interior":
            names = ["row", "x_packed:2", "nz:2", "shuffled:1", "x_packed:1", "isa_packed:vec", "nz:1"]
            fields = {"interior": draw(st.sampled_from(names))}
        case "padding":
            fields = {"row_bytes": sum(part.row_bytes for part in group.components)}
        case "offsets":
            sizes = [part.row_bytes for part in group.components]
            offsets = [sum(sizes[:at]) for at in range(len(sizes))]
            placed = zip(group.components, offsets, strict=True)
            fields = {"components": tuple(msgspec.structs.replace(part, offset=offset) for part, offset in placed)}
        case "turned":
            fields = {"components": group.components[::-1]}
        case "scales":
            part = group.components[-1]
            own = draw(encodings(Part(part.name, part.heads, part.count, part.encoding.transform)))
            last = valid(lambda: msgspec.structs.replace(part, encoding=own))
            fields = {"components": (*group.components[:-1], last)}
    return valid(lambda: msgspec.structs.replace(group, **fields))


@st.composite
def tiny_shapes(draw) -> Shape:
    """Shapes with extents of one, where names collide."""
    layers = draw(st.sampled_from([(0,), (0, 3)]))
    heads = draw(st.sampled_from([1, 1, 2]))
    size = draw(st.sampled_from([2, 2, 4]))
    parts = draw(
        st.sampled_from(
            [(Part("key", heads, size), Part("value", heads, size)), (Part("latent", 1, size),), (Part("ssm", 1, 2),)]
        )
    )
    kinds = {"key": GroupKind.FULL_ATTENTION, "latent": GroupKind.MLA, "ssm": GroupKind.GDN}
    return Shape(kinds[parts[0].name], layers, parts)


@st.composite
def near_pairs(draw) -> tuple[KVRepresentation, KVRepresentation]:
    """Two descriptions of one group that differ in a name or two."""
    shape = draw(st.one_of(tiny_shapes(), tiny_shapes(), shapes()))
    one = draw(sides(shape))
    group = one.groups[0]
    if shape.kind is not GroupKind.GDN and draw(st.booleans()):
        group = msgspec.structs.replace(group, block_size=1)
        one = valid(lambda: KVRepresentation(groups=(group,), partition=one.partition))
    for _ in range(draw(st.integers(1, 2))):
        group = changed(draw, group)
    partition = one.partition if draw(st.integers(0, 4)) else draw(partitions(group))
    return one, valid(lambda: KVRepresentation(groups=(group,), partition=partition))


@settings(max_examples=5 * settings().max_examples)
@given(near_pairs())
def test_descriptions_are_the_same_exactly_where_every_element_is_in_the_same_bits(pair):
    assert same(*pair) == same_by_hand(*pair)


@settings(max_examples=2 * settings().max_examples)
@given(pairs())
def test_the_same_holds_for_any_two_descriptions_of_one_shape(pair):
    assert same(*pair) == same_by_hand(*pair)
    assert same(pair[0], pair[0])


@settings(max_examples=2 * settings().max_examples)
@given(near_pairs())
def test_the_same_places_are_the_same_bytes_whatever_they_mean(pair):
    one, other = pair
    (a,), (b,) = one.groups, other.groups

    def bytes_only(found):
        """Slots of blocks, not tokens: to which rank a token is dealt is no matter of bytes."""
        return {key[:-1]: (where[0], where[1], where[3]) for key, where in found.items()}

    ranks = [(side.partition.tp_size, side.partition.pp_starts) for side in pair]
    alike = ranks[0] == ranks[1] and a.layers == b.layers and a.block_size == b.block_size
    dtypes = [{part.name: part.encoding.storage_dtype for part in group.components} for group in (a, b)]
    by_hand = alike and dtypes[0] == dtypes[1] and bytes_only(spots(one)) == bytes_only(spots(other))
    assert same_placement(a, one.partition, b, other.partition) == by_hand


@settings(max_examples=2 * settings().max_examples)
@given(st.data())
def test_two_encodings_mean_the_same_exactly_where_the_same_elements_share_the_same_scales(data):
    part = Part("key", data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 4])))
    some = encodings(part, ()) if data.draw(st.booleans()) else encodings(part, _SIDE)
    one, other = data.draw(some), data.draw(some)
    if data.draw(st.booleans()):
        other = _like(one, other)
    a, b = (Component(name="key", heads=part.heads, count=part.count, encoding=e) for e in (one, other))
    nibbles = one.nibble_order is other.nibble_order
    wanted = shared(a) == shared(b) and nibbles
    assert (meaning_of(one, part.heads, part.count) == meaning_of(other, part.heads, part.count)) == wanted


_SIDE = (quant_of("token_head", "side_pool").scale_location,)


def _like(one: Encoding, other: Encoding) -> Encoding:
    """The other's scales with the codes of the one."""
    return valid(lambda: msgspec.structs.replace(other, storage_dtype=one.storage_dtype, nibble_order=one.nibble_order))


@pytest.mark.parametrize("scale_dtype", SCALES)
def test_a_scale_on_the_layer_means_its_value_however_it_is_stored_there(scale_dtype):
    said, plain = (
        encoding_of("f8_e4m3fn", quant_of("tensor", "layer_attr", dtype, scale_values="ab" * 8))
        for dtype in (scale_dtype, "f32")
    )
    assert meaning_of(said, 4, 16) == meaning_of(plain, 4, 16)


def test_scales_that_are_all_one_are_none_for_floating_point_codes_only():
    ones = {"scale_values": "ones"}
    for dtype in ("f8_e4m3fn", "bf16", "e2m1"):
        encoding = encoding_of(dtype, quant_of("head", "layer_attr", **ones))
        assert meaning_of(encoding, 4, 16) == encoding_of(dtype)
    int8 = encoding_of("i8", quant_of("tensor", "layer_attr", **ones))
    assert meaning_of(int8, 4, 16) == int8


def test_opaque_descriptions_are_the_same_only_where_all_of_them_is():
    opaque = msgspec.structs.replace(GROUP, interior="opaque:x")
    assert same_placement(opaque, Partition(), opaque, Partition())
    for other, partition in (
        (opaque, Partition(tp_size=2)),
        (msgspec.structs.replace(opaque, interior="opaque:y"), Partition()),
        (GROUP, Partition()),
    ):
        assert not same_placement(opaque, Partition(), other, partition)
        assert placement_of(opaque, Partition()) != placement_of(other, partition)


def test_a_known_pair_of_names_for_the_same_bytes():
    slots = msgspec.structs.replace(GROUP, layout=Layout.BLHNC, kv_order=KvOrder.TWO_SLOTS)
    outer = msgspec.structs.replace(slots, kv_order=KvOrder.KV_OUTER)
    assert placement_of(slots, Partition()) == placement_of(outer, Partition())
    assert placement_of(slots, Partition(tp_size=2)) == placement_of(outer, Partition(tp_size=2))
    assert placement_of(slots, Partition()) != placement_of(GROUP, Partition())
