"""Every bound of a Runtime KV State, from both sides of it."""

import msgspec
import pytest

from isthmus.core import limits
from isthmus.core.errors import ManifestInvalid
from isthmus.state.identity import TokenRange
from isthmus.state.manifest import decode_manifest
from tests.state.states import GROUP, IDENTITY, OWNERSHIP, a_state

I8 = {"storage_dtype": "i8"}
QUANT = {"granularity": "token_head", "scale_dtype": "f32", "scale_location": "inline"}
GROUP_AT = ("representation", "groups", 0)
LONG = "n" * (limits.NAME_CHARS_MAX + 1)
BOUNDS = [
    # (path to a map, fields that are refused, the field named)
    (GROUP_AT, {"block_size": 0}, "block_size"),
    (GROUP_AT, {"block_size": limits.BLOCK_SIZE_TOKENS_MAX + 1}, "block_size"),
    (GROUP_AT, {"layer_start": -1}, "layer_start, layer_stop"),
    (GROUP_AT, {"layer_stop": 0}, "layer_start, layer_stop"),
    (GROUP_AT, {"layer_stop": limits.LAYERS_MAX + 1}, "layer_start, layer_stop"),
    (GROUP_AT, {"num_kv_heads": 0}, "num_kv_heads"),
    (GROUP_AT, {"num_kv_heads": limits.HEADS_MAX + 1}, "num_kv_heads"),
    (GROUP_AT, {"head_size": 0}, "head_size"),
    (GROUP_AT, {"head_size": limits.HEAD_SIZE_MAX + 1}, "head_size"),
    (GROUP_AT, {"head_size_v": limits.HEAD_SIZE_MAX + 1}, "head_size_v"),
    (GROUP_AT, {"head_size_v": 8}, "kv_order"),
    (GROUP_AT, {"interior": "shuffled"}, "interior"),
    (GROUP_AT, {"interior": "row\n"}, "interior"),
    (GROUP_AT, {"storage_dtype": "f8_e4m3fnuz"}, "storage_dtype"),
    (GROUP_AT, {"kind": "mla"}, "kind"),
    (GROUP_AT, {"quant": QUANT}, "quant"),
    (GROUP_AT, I8, "quant"),
    (GROUP_AT, I8 | {"quant": QUANT | {"granularity": "tensor"}}, "granularity"),
    (GROUP_AT, I8 | {"quant": QUANT | {"scale_dtype": "f16"}}, "quant.scale_dtype"),
    (("representation", "partition"), {"tp_size": 0}, "tp_size"),
    (("representation", "partition"), {"tp_size": limits.TP_SIZE_MAX + 1}, "tp_size"),
    (("representation", "partition"), {"tp_size": 3}, "tp_size"),
    (("representation",), {"groups": []}, "groups"),
    (("representation",), {"groups": [msgspec.to_builtins(GROUP)] * (limits.LAYER_GROUPS_MAX + 1)}, "groups"),
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
    (("ownership",), {"grant": "e" * 32 + "\n"}, "grant"),
    (("token_range",), {"start": -1}, "start, stop"),
    (("token_range",), {"start": 40}, "start, stop"),
    (("token_range",), {"stop": limits.TOKENS_PER_REQUEST_MAX + 1}, "start, stop"),
    (("identity", "lineage"), {"base_model": ""}, "base_model"),
    (("identity", "lineage"), {"revision": ""}, "revision"),
    (("identity", "lineage"), {"revision": LONG}, "revision"),
    (("identity", "weights"), {"dtype": ""}, "dtype"),
    (("identity", "weights"), {"digest": "ab"}, "digest"),
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
    return msgspec.msgpack.encode({"schema_version": 1, "state": tree})


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
        (("representation", "partition"), {"tp_size": 4}),
        (GROUP_AT, {"head_size": limits.HEAD_SIZE_MAX, "head_size_v": limits.HEAD_SIZE_MAX}),
        (GROUP_AT, {"layer_start": limits.LAYERS_MAX - 1, "layer_stop": limits.LAYERS_MAX}),
        (GROUP_AT, {"kv_order": "packed_c", "head_size_v": 8}),
        (GROUP_AT, I8 | {"quant": QUANT}),
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


def test_states_are_values_and_cannot_be_changed():
    for value, field in ((a_state(), "groups"), (GROUP, "block_size"), (IDENTITY, "adapter"), (OWNERSHIP, "epoch")):
        with pytest.raises(AttributeError):
            setattr(value, field, None)
        assert hash(value) == hash(msgspec.structs.replace(value))
