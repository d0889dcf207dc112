"""Every bound of a Runtime KV State, from both sides of it."""

import msgspec
import pytest

from isthmus.core import limits
from isthmus.core.errors import ManifestInvalid
from isthmus.state.identity import TokenRange
from isthmus.state.manifest import SCHEMA_VERSION, decode_manifest, encode_manifest
from isthmus.state.partition import Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP, IDENTITY, OWNERSHIP, a_state

GROUP_AT = ("representation", "groups", 0)
PARTITION_AT = ("representation", "partition")
KEY_AT = (*GROUP_AT, "components", 0)
ENCODING_AT = (*KEY_AT, "encoding")
INLINE = {"granularity": "token_head", "scale_dtype": "f32", "scale_location": "inline"}
ON_LAYER = INLINE | {"granularity": "tensor", "scale_location": "layer_attr"}
BLOCKED = INLINE | {"granularity": "block", "block": 4}
LONG = "n" * (limits.NAME_CHARS_MAX + 1)


def i8(quant: dict, **fields) -> dict:
    return {"storage_dtype": "i8", "quant": quant | fields}


BOUNDS = [
    # (path to a map, fields that are refused, the field named)
    (GROUP_AT, {"block_size": 0}, "block_size"),
    (GROUP_AT, {"block_size": limits.BLOCK_SIZE_TOKENS_MAX + 1}, "block_size"),
    (GROUP_AT, {"layers": []}, "layers"),
    (GROUP_AT, {"layers": [-1, 0]}, "layers"),
    (GROUP_AT, {"layers": [0, 0]}, "layers"),
    (GROUP_AT, {"layers": [1, 0]}, "layers"),
    (GROUP_AT, {"layers": [0, limits.LAYERS_MAX]}, "layers"),
    (GROUP_AT, {"components": []}, "components"),
    (GROUP_AT, {"kind": "mlx"}, "kind"),
    (GROUP_AT, {"kind": "mamba"}, "block_size"),
    (GROUP_AT, {"layout": "NHD"}, "layout"),
    (GROUP_AT, {"kv_order": "latent"}, "kv_order"),
    (GROUP_AT, {"interior": "shuffled"}, "interior"),
    (GROUP_AT, {"interior": "shuffled:0", "layout": "LBHNC"}, "interior"),
    (GROUP_AT, {"interior": "conv_sd:0", "kv_order": "two_slots"}, "interior"),
    (GROUP_AT, {"interior": "row\n"}, "interior"),
    (GROUP_AT, {"interior": "opaque:"}, "interior"),
    (GROUP_AT, {"row_bytes": -1}, "row_bytes"),
    (GROUP_AT, {"row_bytes": 64}, "row_bytes"),
    (GROUP_AT, {"kv_order": "packed_c", "row_bytes": 63}, "row_bytes"),
    (GROUP_AT, {"page_size_padded": limits.PAGE_BYTES_MAX + 1}, "page_size_padded"),
    (GROUP_AT, {"page_size_padded": 1}, "page_size_padded"),
    (GROUP_AT, {"sliding_window": -1}, "sliding_window"),
    (GROUP_AT, {"tokens_per_state": 0}, "tokens_per_state"),
    (GROUP_AT, {"tokens_per_state": limits.TOKENS_PER_STATE_MAX + 1}, "tokens_per_state"),
    (KEY_AT, {"name": "keys"}, "name"),
    (KEY_AT, {"name": "value"}, "components"),
    (KEY_AT, {"heads": 0}, "heads"),
    (KEY_AT, {"heads": limits.HEADS_MAX + 1}, "heads"),
    (KEY_AT, {"heads": 2}, "kv_order"),
    (KEY_AT, {"count": 0}, "count"),
    (KEY_AT, {"count": limits.HEAD_SIZE_MAX + 1}, "count"),
    (KEY_AT, {"count": 8}, "kv_order"),
    (KEY_AT, {"offset": -1}, "offset"),
    (KEY_AT, {"element_order": "pairs"}, "element_order"),
    (KEY_AT, {"count": 15, "element_order": "rope_pairs"}, "element_order"),
    (KEY_AT, {"count": 15, "encoding": {"storage_dtype": "e2m1"}}, "count"),
    (ENCODING_AT, {"storage_dtype": "fp8"}, "storage_dtype"),
    (ENCODING_AT, {"storage_dtype": "ue8m0"}, "storage_dtype"),
    (ENCODING_AT, {"storage_dtype": "i8"}, "quant"),
    (ENCODING_AT, {"storage_dtype": "i4"}, "quant"),
    (ENCODING_AT, {"nibble_order": "high_first"}, "nibble_order"),
    (ENCODING_AT, {"transform": "hadamard"}, "transform"),
    (ENCODING_AT, i8(INLINE, granularity="row"), "granularity"),
    (ENCODING_AT, i8(INLINE, granularity="tensor"), "scale_location"),
    (ENCODING_AT, i8(ON_LAYER, granularity="token_head"), "scale_location"),
    (ENCODING_AT, i8(INLINE, scale_location="interleaved"), "scale_location"),
    (ENCODING_AT, i8(INLINE, scale_dtype="f8_e5m2"), "scale_dtype"),
    (ENCODING_AT, i8(INLINE, block=4), "block"),
    (ENCODING_AT, i8(INLINE, granularity="block"), "block"),
    (ENCODING_AT, i8(BLOCKED, block=limits.HEAD_SIZE_MAX + 1), "block"),
    (ENCODING_AT, i8(BLOCKED, scale_location="interleaved", block=5), "block"),
    (ENCODING_AT, {"storage_dtype": "e2m1", "quant": BLOCKED | {"scale_location": "interleaved", "block": 1}}, "block"),
    (ENCODING_AT, i8(INLINE, scale_offset=-1), "scale_offset"),
    (ENCODING_AT, i8(ON_LAYER, scale_offset=16), "scale_offset"),
    (ENCODING_AT, i8(INLINE, scale_row_bytes=8), "scale_row_bytes"),
    (ENCODING_AT, i8(INLINE, scale_values="ones"), "scale_values"),
    (ENCODING_AT, i8(ON_LAYER, scale_values="some"), "scale_values"),
    (ENCODING_AT, i8(ON_LAYER, scale_values="ab" * 8 + "\n"), "scale_values"),
    (ENCODING_AT, i8(ON_LAYER, tensor_scale=True), "tensor_scale"),
    (ENCODING_AT, i8(INLINE, zero_point=True), "zero_point"),
    (PARTITION_AT, {"pp_starts": []}, "pp_starts"),
    (PARTITION_AT, {"pp_starts": [1]}, "pp_starts"),
    (PARTITION_AT, {"pp_starts": [0, 0]}, "pp_starts"),
    (PARTITION_AT, {"pp_starts": [0, limits.LAYERS_MAX]}, "pp_starts"),
    (PARTITION_AT, {"pp_starts": list(range(limits.PP_SIZE_MAX + 1))}, "pp_starts"),
    (PARTITION_AT, {"dcp_size": 0}, "dcp_size"),
    (PARTITION_AT, {"dcp_size": 3}, "dcp_size"),
    (PARTITION_AT, {"dcp_size": 2}, "dcp_size"),
    (PARTITION_AT, {"dcp_interleave": 0}, "dcp_interleave"),
    (("representation", "partition"), {"tp_size": 0}, "tp_size"),
    (("representation", "partition"), {"tp_size": limits.TP_SIZE_MAX + 1}, "tp_size"),
    (("representation", "partition"), {"tp_size": 3}, "tp_size"),
    (("representation",), {"groups": []}, "groups"),
    (("representation",), {"groups": [msgspec.to_builtins(GROUP)] * (limits.LAYER_GROUPS_MAX + 1)}, "groups"),
    (("representation",), {"groups": [msgspec.to_builtins(GROUP)] * 2}, "groups"),
    ((), {"groups": []}, "groups"),
    ((), {"tokens_digest": "g" * 64}, "tokens_digest"),
    ((), {"tokens_digest": "a" * 65}, "tokens_digest"),
    ((), {"tokens_digest": "a" * 64 + "\n"}, "tokens_digest"),
    (("groups", 0), {"block_ids": [1, 2]}, "block_ids"),
    (("groups", 0), {"block_ids": [1, 2, 3, 4]}, "block_ids"),
    (("groups", 0), {"block_ids": []}, "block_ids"),
    (("groups", 0), {"block_ids": [1, 2, 1]}, "block_ids"),
    (("groups", 0), {"block_ids": [1, 2, -1]}, "block_ids"),
    (("groups", 0), {"block_ids": [1, 2, 10]}, "block_ids"),
    (("groups", 0), {"block_ids": [1, 2, limits.BLOCKS_PER_POOL_MAX]}, "block_ids"),
    (("groups", 0), {"logical_digest": -1}, "logical_digest"),
    (("residency",), {"num_blocks": 0}, "num_blocks"),
    (("residency",), {"num_blocks": limits.BLOCKS_PER_POOL_MAX + 1}, "num_blocks"),
    (("residency",), {"tier": "tape"}, "tier"),
    (("ownership",), {"epoch": 0}, "epoch"),
    (("ownership",), {"lease_ms": 0}, "lease_ms"),
    (("ownership",), {"owner": ""}, "owner"),
    (("ownership",), {"owner": LONG}, "owner"),
    (("ownership",), {"tenant": ""}, "tenant"),
    (("ownership",), {"grant": "e" * 31}, "grant"),
    (("ownership",), {"grant": "e" * 33}, "grant"),
    (("ownership",), {"grant": "E" * 32}, "grant"),
    (("ownership",), {"grant": "e" * 64 + "\n"}, "grant"),
    (("token_range",), {"start": -1}, "start, stop"),
    (("token_range",), {"start": 40}, "start, stop"),
    (("token_range",), {"stop": limits.TOKENS_PER_REQUEST_MAX + 1}, "start, stop"),
    (("identity", "lineage"), {"base_model": ""}, "base_model"),
    (("identity", "lineage"), {"revision": ""}, "revision"),
    (("identity", "lineage"), {"revision": LONG}, "revision"),
    (("identity", "weights"), {"dtype": ""}, "dtype"),
    (("identity", "weights"), {"digest": "ab"}, "digest"),
    (("identity", "weights"), {"published": LONG}, "published"),
    (("identity", "rope"), {"theta": float("nan")}, "theta"),
    (("identity", "rope"), {"theta": float("inf")}, "theta"),
    (("identity", "rope"), {"theta": 0.0}, "theta"),
    (("identity", "rope"), {"rope_dim": -1}, "rope_dim"),
    (("identity", "rope"), {"style": "gptj"}, "style"),
    (("identity", "rope"), {"position_origin": -1}, "position_origin"),
]


def changed(path: tuple, fields: dict) -> bytes:
    tree = msgspec.to_builtins(a_state())
    part = tree
    for step in path:
        part = part[step]
    part.update(fields)
    return msgspec.msgpack.encode({"schema_version": SCHEMA_VERSION, "state": tree})


@pytest.mark.parametrize(("path", "fields", "named"), BOUNDS)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(path, fields, named):
    with pytest.raises(ManifestInvalid) as caught:
        decode_manifest(changed(path, fields))
    assert caught.value.field.endswith(named)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (("groups", 0), {"block_ids": [0, 9, 4]}),
        (("groups", 0), {"logical_digest": (1 << 64) - 1}),
        (("residency",), {"num_blocks": limits.BLOCKS_PER_POOL_MAX}),
        (("ownership",), {"epoch": (1 << 64) - 1, "tenant": "t" * limits.NAME_CHARS_MAX}),
        (PARTITION_AT, {"tp_size": limits.TP_SIZE_MAX}),
        (PARTITION_AT, {"pp_starts": list(range(limits.PP_SIZE_MAX))}),
        (PARTITION_AT, {"pp_starts": [0, limits.LAYERS_MAX - 1]}),
        (KEY_AT, {"count": 16, "element_order": "rope_pairs"}),
        (GROUP_AT, {"layers": [limits.LAYERS_MAX - 1]}),
        (GROUP_AT, {"layers": list(range(limits.LAYERS_MAX))}),
        (GROUP_AT, {"interior": "opaque:x"}),
        (GROUP_AT, {"kv_order": "packed_c", "row_bytes": 64}),
        (GROUP_AT, {"page_size_padded": 16 * 4 * 16}),
        (GROUP_AT, {"sliding_window": limits.TOKENS_PER_REQUEST_MAX, "tokens_per_state": 1}),
        (ENCODING_AT, {"storage_dtype": "f16", "transform": "hadamard:128"}),
    ],
)
def test_a_value_at_its_bound_is_read(path, fields):
    decode_manifest(changed(path, fields))


def test_a_refusal_says_what_came_and_what_would_be_right():
    with pytest.raises(ValueError, match=r"^block_size: got 0, wanted 1 to 4096 tokens$"):
        msgspec.structs.replace(GROUP, block_size=0)
    with pytest.raises(ValueError, match=r"wanted 3 blocks of 16 for tokens 0..40"):
        a_state(groups=(msgspec.structs.replace(a_state().groups[0], block_ids=(1, 2)),))
    with pytest.raises(ValueError, match=r"wanted 2 blocks of 16 for tokens 16..40"):
        a_state(token_range=TokenRange(start=16, stop=40))


def test_tokens_dealt_to_ranks_take_as_many_blocks_fewer():
    dealt = KVRepresentation(groups=(GROUP,), partition=Partition(tp_size=8, dcp_size=2, dcp_interleave=16))
    two = (msgspec.structs.replace(a_state().groups[0], block_ids=(1, 2)),)
    assert decode_manifest(encode_manifest(a_state(representation=dealt, groups=two))).groups == two
    with pytest.raises(ValueError, match=r"wanted 2 blocks of 16 for tokens 0..40"):
        a_state(representation=dealt)


@pytest.mark.parametrize(("window", "blocks"), [(1, 1), (9, 1), (10, 2), (25, 2), (26, 3), (100, 3)])
def test_a_window_takes_only_the_blocks_of_the_tokens_that_the_next_one_looks_at(window, blocks):
    """The next token, number 40, looks at itself and at `window` - 1 before it, in blocks of 16."""
    group = msgspec.structs.replace(GROUP, sliding_window=window)
    fields = {"representation": KVRepresentation(groups=(group,), partition=Partition())}
    held = msgspec.structs.replace(a_state().groups[0], block_ids=tuple(range(blocks)))
    a_state(groups=(held,), **fields)
    with pytest.raises(ValueError, match=rf"wanted {blocks} blocks"):
        a_state(groups=(msgspec.structs.replace(held, block_ids=tuple(range(blocks + 1))),), **fields)


def test_states_are_values_and_cannot_be_changed():
    for value, field in ((a_state(), "groups"), (GROUP, "block_size"), (IDENTITY, "adapter"), (OWNERSHIP, "epoch")):
        with pytest.raises(AttributeError):
            setattr(value, field, None)
        assert hash(value) == hash(msgspec.structs.replace(value))
