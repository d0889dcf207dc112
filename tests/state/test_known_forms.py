"""Forms that engines are known to keep KV in, against arithmetic written out by hand. Sources are named by version."""

import itertools

import numpy as np
import pytest

from isthmus.state.encoding import ScaleLocation
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import row_at
from tests.strategies import encoding_of, quant_of

BLOCKS = 5
BF16, E4M3 = encoding_of("bf16"), encoding_of("f8_e4m3fn")


def a_group(components, *, kind="full_attention", layers=(0, 1), **fields) -> GroupRepresentation:
    plain = {"block_size": 64, "layout": Layout.LBNHC, "kv_order": KvOrder.PACKED_C}
    return GroupRepresentation(kind=GroupKind(kind), layers=layers, components=tuple(components), **plain | fields)


def part(name: str, count: int, encoding, heads: int = 1, **fields) -> Component:
    return Component(name=name, heads=heads, count=count, encoding=encoding, **fields)


def row(group, name, *, layer=0, block=0, token=0, head=0, rank=0, partition=None) -> tuple[str, np.ndarray]:
    """The region and the bytes of one row, in a pool of BLOCKS."""
    (shards,) = KVRepresentation(groups=(group,), partition=partition or Partition()).address()
    field = shards[rank].field(name)
    region = shards[rank].regions[field.region].id
    return region.partition(".tp")[2], row_at(field, BLOCKS, layer, block, token, head)


def run(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


def bytes_of(group, name, **at) -> list[int]:
    return row(group, name, **at)[1].tolist()


def blocks_of(count: int, scale: str, location: str, dtype="f8_e4m3fn", **fields):
    return encoding_of(dtype, quant_of("block", location, scale, block=count, **fields))


def size_of(group: GroupRepresentation) -> list[int]:
    (shards,) = KVRepresentation(groups=(group,), partition=Partition()).address()
    return [region.size_bytes(BLOCKS) for region in shards[0].regions]


MLA_ROWS = {  # the name of a row: its components, its bytes, and the byte of each field
    "bf16": ([part("latent", 512, BF16), part("rope", 64, BF16)], 1152, {"latent": 0, "rope": 1024}),
    "f8": ([part("latent", 512, E4M3), part("rope", 64, E4M3)], 576, {"latent": 0, "rope": 512}),
    # vllm 0.33.0, flashmla_sparse.py: 512 e4m3, then an f32 scale for each 128, then 64 bf16
    "fp8_ds_mla": (
        [part("latent", 512, blocks_of(128, "f32", "inline")), part("rope", 64, BF16)],
        656,
        {"latent": 0, "latent_scale": 512, "rope": 528},
    ),
    "fp8_ds_mla, said by offsets": (
        [
            part("rope", 64, BF16, offset=528),
            part("latent", 512, blocks_of(128, "f32", "inline", scale_offset=512), offset=0),
        ],
        656,
        {"latent": 0, "latent_scale": 512, "rope": 528},
    ),
}


@pytest.mark.parametrize("name", MLA_ROWS)
@pytest.mark.parametrize("layout", [Layout.LBNHC, Layout.LBHNC])
def test_rows_of_latents_are_of_these_bytes_one_after_another(name, layout):
    components, row_bytes, offsets = MLA_ROWS[name]
    group = a_group(components, kind="mla", layout=layout)
    assert group.bytes_per_token == 2 * row_bytes
    assert size_of(group) == [2 * BLOCKS * 64 * row_bytes]
    for field, offset in offsets.items():
        for layer, block, token in ((0, 0, 0), (0, 0, 63), (1, 4, 17)):
            start = ((layer * BLOCKS + block) * 64 + token) * row_bytes + offset
            found = bytes_of(group, field, layer=layer, block=block, token=token)
            assert found == run(start, len(found))


def test_a_row_of_584_bytes_keeps_its_scales_after_the_rows_of_the_page():
    """448 e4m3 and 64 bf16 in rows of 576 bytes; 7 ue8m0 (one for each 64) in 8 bytes after all 64 rows; the page is
    rounded up to whole rows of 576 bytes.
    """
    latent = blocks_of(64, "ue8m0", "segregated", scale_row_bytes=8)
    group = a_group(
        [part("latent", 448, latent), part("rope", 64, BF16)], kind="mla", row_bytes=576, page_size_padded=65 * 576
    )
    page = 65 * 576
    for layer, block, token in ((0, 0, 0), (0, 3, 63), (1, 4, 10)):
        start, at = (layer * BLOCKS + block) * page, {"layer": layer, "block": block, "token": token}
        assert bytes_of(group, "latent", **at) == run(start + token * 576, 448)
        assert bytes_of(group, "rope", **at) == run(start + token * 576 + 448, 128)
        assert bytes_of(group, "latent_scale", **at) == run(start + 64 * 576 + token * 8, 7)
    assert size_of(group) == [2 * BLOCKS * page]


def test_an_indexers_page_is_64_rows_of_128_bytes_and_then_64_scales_of_4():
    key = encoding_of("f8_e4m3fn", quant_of("token_head", "segregated"))
    group = a_group([part("index_key", 128, key)], kind="indexer")
    for block, token in ((0, 0), (0, 63), (4, 9)):
        start = block * 64 * 132
        assert bytes_of(group, "index_key", block=block, token=token) == run(start + token * 128, 128)
        assert bytes_of(group, "index_key_scale", block=block, token=token) == run(start + 8192 + token * 4, 4)
    assert group.bytes_per_token == 2 * 132


def test_segregated_scales_of_several_heads_follow_the_order_of_the_rows():
    key = encoding_of("i8", quant_of("token_head", "segregated", "f16"))
    components = [part("key", 8, key, heads=3), part("value", 8, key, heads=3)]
    for layout, order in ((Layout.LBNHC, lambda n, h: n * 3 + h), (Layout.LBHNC, lambda n, h: h * 4 + n)):
        group = a_group(components, block_size=4, layout=layout)
        for block, token, head in itertools.product(range(2), range(4), range(3)):
            start, at = block * 4 * 3 * 20, {"block": block, "token": token, "head": head}
            assert bytes_of(group, "key", **at) == run(start + order(token, head) * 16, 8)
            assert bytes_of(group, "value", **at) == run(start + order(token, head) * 16 + 8, 8)
            assert bytes_of(group, "key_scale", **at) == run(start + 192 + order(token, head) * 4, 2)
            assert bytes_of(group, "value_scale", **at) == run(start + 192 + order(token, head) * 4 + 2, 2)


def test_segregated_scales_of_slots_follow_all_slots_of_the_page_in_their_order():
    """Three heads of K and two of V: all rows, then K's scales, then V's."""
    encoding = encoding_of("i8", quant_of("token_head", "segregated"))
    components = [part("key", 8, encoding, heads=3), part("value", 6, encoding, heads=2)]
    group = a_group(components, block_size=4, layout=Layout.LBHNC, kv_order=KvOrder.TWO_SLOTS)
    page = 4 * (3 * 8 + 2 * 6 + 5 * 4)
    for block, token, head in ((0, 0, 0), (1, 3, 1), (3, 2, 1)):
        at = {"layer": 1, "block": block, "token": token, "head": head}
        start = (BLOCKS + block) * page
        assert bytes_of(group, "key", **at) == run(start + (head * 4 + token) * 8, 8)
        assert bytes_of(group, "value", **at) == run(start + 4 * 24 + (head * 4 + token) * 6, 6)
        assert bytes_of(group, "key_scale", **at) == run(start + 4 * 36 + (head * 4 + token) * 4, 4)
        assert bytes_of(group, "value_scale", **at) == run(start + 4 * 48 + (head * 4 + token) * 4, 4)


def test_llama_cpps_q8_0_is_an_f16_scale_and_32_codes_in_34_bytes():
    q8_0 = blocks_of(32, "f16", "interleaved", "i8")
    group = a_group([part("key", 128, q8_0, heads=2), part("value", 64, q8_0, heads=2)], block_size=1)
    row_bytes = 34 * 4 + 34 * 2
    for token, head in ((0, 0), (3, 1)):
        start, at = (token * 2 + head) * row_bytes, {"block": token, "head": head}
        assert bytes_of(group, "key", **at) == [start + 34 * (e // 32) + 2 + e % 32 for e in range(128)]
        assert bytes_of(group, "key_scale", **at) == [start + 34 * i + b for i in range(4) for b in range(2)]
        start += 34 * 4
        assert bytes_of(group, "value", **at) == [start + 34 * (e // 32) + 2 + e % 32 for e in range(64)]


def test_per_token_head_int8_has_a_scale_after_k_and_one_after_v():
    """vllm 0.33.0, triton_attn.py: f32 inline."""
    int8 = encoding_of("i8", quant_of("token_head", "inline"))
    group = a_group(attention(heads=8, head_size=128, head_size_v=128, encoding=int8), block_size=16)
    start = (2 * 16 + 5) * 8 * 264 + 3 * 264
    places = {"key": (0, 128), "key_scale": (128, 4), "value": (132, 128), "value_scale": (260, 4)}
    for name, (offset, length) in places.items():
        assert bytes_of(group, name, block=2, token=5, head=3) == run(start + offset, length)


def test_nvfp4_has_slots_for_k_and_v_of_half_a_head_and_a_sixteenth():
    """vllm 0.33.0, flashinfer.py: 2 * kv_heads slots of head_size / 2 + head_size / 16 bytes."""
    nvfp4 = blocks_of(16, "f8_e4m3fn", "inline", "e2m1", tensor_scale=True)
    group = a_group(
        attention(heads=4, head_size=128, head_size_v=128, encoding=nvfp4),
        block_size=16,
        layout=Layout.LBHNC,
        kv_order=KvOrder.TWO_SLOTS,
    )
    for name, slot in (("key", 3), ("value", 4 + 3)):
        start = ((1 * BLOCKS + 2) * 8 + slot) * 16 * 72 + 9 * 72
        at = {"layer": 1, "block": 2, "token": 9, "head": 3}
        assert bytes_of(group, name, **at) == run(start, 64)
        assert bytes_of(group, f"{name}_scale", **at) == run(start + 64, 8)


def test_trt_llms_pool_is_pages_layers_two_heads_tokens_elements():
    group = a_group(
        attention(heads=4, head_size=64, head_size_v=64, encoding=BF16),
        block_size=32,
        layout=Layout.BLHNC,
        kv_order=KvOrder.KV_OUTER,
    )
    flat = np.arange(BLOCKS * 2 * 2 * 4 * 32 * 64).reshape(BLOCKS, 2, 2, 4, 32, 64)
    for which, name in enumerate(("key", "value")):
        found = bytes_of(group, name, layer=1, block=3, token=17, head=2)
        assert found == run(int(flat[3, 1, which, 2, 17, 0]) * 2, 128)


def test_sglangs_default_is_a_tensor_for_k_and_one_for_v_in_slots():
    group = a_group(
        attention(heads=4, head_size=64, head_size_v=64, encoding=BF16), block_size=1, kv_order=KvOrder.TWO_TENSORS
    )
    for name in ("key", "value"):
        region, found = row(group, name, layer=1, block=4, head=2)
        assert region == f"0.{name}"
        assert found.tolist() == run(((1 * BLOCKS + 4) * 4 + 2) * 128, 128)


def test_a_side_pool_is_a_dense_row_of_all_scales_in_a_region_of_its_own():
    side = encoding_of("i8", quant_of("token_head", "side_pool"))
    components = attention(heads=2, head_size=8, head_size_v=8, encoding=side)
    for order, names in ((KvOrder.PACKED_C, ["kv", "scale"]), (KvOrder.TWO_TENSORS, ["key_scale", "value_scale"])):
        group = a_group(components, block_size=4, kv_order=order)
        for at, name in enumerate(("key_scale", "value_scale")):
            region, found = row(group, name, layer=1, block=2, token=3, head=1)
            width = 8 if order is KvOrder.PACKED_C else 4
            start = (((1 * BLOCKS + 2) * 4 + 3) * 2 + 1) * width + (4 * at if width == 8 else 0)
            assert (region, found.tolist()) == (f"0.{names[1] if width == 8 else name}", run(start, 4))


STATE = [part(name, taps * channels, BF16, heads) for name, taps, channels, heads in
         (("conv_x", 4, 8, 2), ("conv_b", 4, 3, 1), ("conv_c", 4, 3, 1))]  # fmt: skip
SSM = part("ssm", 32, encoding_of("f32"), heads=2)


def test_a_convolutions_state_lies_as_channels_by_taps_or_as_taps_by_channels():
    """DS: every section's channels one after another, taps within; SD: taps outside, all sections' channels within."""
    ds = a_group([*STATE, SSM], kind="mamba", block_size=1, kv_order=KvOrder.TWO_SLOTS)
    sd = a_group([*STATE, SSM], kind="mamba", block_size=1, kv_order=KvOrder.TWO_SLOTS, interior="conv_sd:4")
    channels, block = 2 * 8 + 3 + 3, 22 * 4 * 2 + 2 * 128
    first = {"conv_x": 0, "conv_b": 16, "conv_c": 19}
    for name, heads, each in (("conv_x", 2, 8), ("conv_b", 1, 3), ("conv_c", 1, 3)):
        for head in range(heads):
            places = [(first[name] + head * each + c, tap, b) for c in range(each) for tap in range(4) for b in (0, 1)]
            start = (1 * BLOCKS + 3) * block
            by_channel = [start + (c * 4 + tap) * 2 + b for c, tap, b in places]
            by_tap = [start + (tap * channels + c) * 2 + b for c, tap, b in places]
            assert bytes_of(ds, name, layer=1, block=3, head=head) == by_channel
            assert bytes_of(sd, name, layer=1, block=3, head=head) == by_tap
    for group in (ds, sd):
        start = (1 * BLOCKS + 3) * block + channels * 4 * 2
        assert bytes_of(group, "ssm", layer=1, block=3, head=1) == run(start + 128, 128)
        assert (group.bytes_per_token, group.bytes_per_sequence) == (0, 2 * block)


def test_a_single_section_has_its_taps_too():
    group = a_group([STATE[0]], kind="gdn", block_size=1, kv_order=KvOrder.TWO_SLOTS, interior="conv_sd:4")
    assert bytes_of(group, "conv_x", head=1)[:6] == [16, 17, 48, 49, 80, 81]
    assert size_of(group) == [2 * BLOCKS * 128]


def test_states_padded_to_an_attention_page_lie_at_its_pace():
    group = a_group([*STATE, SSM], kind="mamba", block_size=1, kv_order=KvOrder.TWO_SLOTS, page_size_padded=4096)
    assert bytes_of(group, "conv_x", layer=1, block=3)[0] == (1 * BLOCKS + 3) * 4096


AXES = ["L", "B", "N", "H"]


@pytest.mark.parametrize("order", KvOrder)
@pytest.mark.parametrize("layout", Layout)
def test_plain_rows_are_a_dense_array_with_its_axes_in_the_order_that_the_names_say(layout, order):
    sizes = {"L": 2, "B": BLOCKS, "N": 4, "H": 3}
    group = a_group(attention(heads=3, head_size=6, head_size_v=6, encoding=BF16), block_size=4, layout=layout,
                    kv_order=order)  # fmt: skip
    axes = list(layout.value[:-1])
    if order in (KvOrder.KV_OUTER, KvOrder.KV_OUTERMOST):
        axes.insert(axes.index("L") + (order is KvOrder.KV_OUTER), "2")
    extents = [{**sizes, "2": 2, "H": 6 if order is KvOrder.TWO_SLOTS else 3}[axis] for axis in axes]
    row_elements = 12 if order is KvOrder.PACKED_C else 6
    flat = np.arange(int(np.prod(extents)) * row_elements).reshape(*extents, row_elements)
    for which, name in enumerate(("key", "value")):
        for layer, block, token, head in np.ndindex(2, BLOCKS, 4, 3):
            slot = head + 3 * which if order is KvOrder.TWO_SLOTS else head
            index = {"L": layer, "B": block, "N": token, "H": slot, "2": which}
            elements = flat[tuple(index[axis] for axis in axes)]
            wanted = elements[6 * which : 6 * which + 6] if order is KvOrder.PACKED_C else elements
            region, found = row(group, name, layer=layer, block=block, token=token, head=head)
            assert region == ("0." + (name if order is KvOrder.TWO_TENSORS else "kv"))
            assert found.tolist() == run(int(wanted[0]) * 2, 12)


def test_ranks_beyond_the_heads_hold_each_head_several_times():
    group = a_group(attention(heads=2, head_size=8, head_size_v=8, encoding=BF16), layers=(0, 3, 7))
    (shards,) = KVRepresentation(groups=(group,), partition=Partition(tp_size=4, pp_starts=(0, 2, 5, 7))).address()
    held = {shard.rank: (shard.field("key").head_start, shard.layer_start, shard.layer_stop) for shard in shards}
    assert held == {
        **{rank: (rank // 2, 0, 1) for rank in range(4)},
        **{4 + rank: (rank // 2, 1, 2) for rank in range(4)},
        **{12 + rank: (rank // 2, 2, 3) for rank in range(4)},
    }


def test_where_scales_lie_is_one_of_these():
    assert {place.value for place in ScaleLocation} == {
        "layer_attr", "inline", "interleaved", "segregated", "side_pool",
    }  # fmt: skip
