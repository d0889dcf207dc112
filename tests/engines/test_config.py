"""Configuration: each wrong field is named with what would be right; a representation follows from the right ones."""

import json

import pytest

from isthmus.core.errors import ConfigInvalid, Unsupported
from isthmus.engines.embedded.config import config_of, context_length_of, representation_of
from isthmus.engines.embedded.shape import read_model_shape
from isthmus.state.encoding import StorageDtype
from isthmus.state.identity import UNVERIFIED
from isthmus.state.representation import KvOrder, Layout, ScaleLocation


def test_fields_become_the_representation(llama):
    config = config_of(
        {
            "model": str(llama),
            "kv_layout": "HND",
            "kv_cache_dtype": "int8_per_token_head",
            "scale_location": "side_pool",
            "kv_order": "two_tensors",
            "block_size": 64,
            "tp_size": 2,
        }
    )
    representation = representation_of(config, read_model_shape(config.model))
    (group,) = representation.groups
    assert (group.layout, group.kv_order, group.block_size) == (Layout.LBHNC, KvOrder.TWO_TENSORS, 64)
    key = group.component("key")
    assert (group.num_layers, key.heads, key.count) == (2, 2, 16)
    assert key.encoding.storage_dtype is StorageDtype.I8
    assert key.encoding.quant is not None
    assert key.encoding.quant.scale_location is ScaleLocation.SIDE_POOL
    assert representation.partition.tp_size == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_layout", "NDH"),
        ("kv_cache_dtype", "fp4"),
        ("block_size", 0),
        ("device", "tpu"),
        ("step_tokens", 20),
        ("speed", 9),
    ],
)
def test_a_wrong_field_is_named(llama, field, value):
    with pytest.raises(ConfigInvalid, match=field) as caught:
        config_of({"model": llama, field: value})
    assert caught.value.field == field


def test_shards_that_do_not_divide_the_heads_are_refused_by_name(llama):
    config = config_of({"model": llama, "tp_size": 3})
    with pytest.raises(ConfigInvalid, match="a divisor or a multiple of num_kv_heads = 2") as caught:
        representation_of(config, read_model_shape(llama))
    assert caught.value.field == "tp_size"


def test_a_context_longer_than_the_model_is_refused(llama):
    with pytest.raises(ConfigInvalid, match="at most the model's 512"):
        context_length_of(config_of({"model": llama, "context_length": 513}), read_model_shape(llama))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        read_model_shape(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ConfigInvalid, match="not JSON"):
        read_model_shape(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2"},
        {"use_sliding_window": True},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    ],
)
def test_a_model_that_cannot_be_served_exactly_is_refused(llama, tmp_path, changes):
    fields = json.loads((llama / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(Unsupported, match="model: "):
        read_model_shape(tmp_path)


def test_lineage_comes_from_the_config_or_the_path(llama, tmp_path):
    assert read_model_shape(llama).lineage.base_model == "llama"
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    fields = json.loads((llama / "config.json").read_text())
    assert read_model_shape(llama).lineage.revision == fields.pop("isthmus_revision") == "test"
    for folder, named in ((snapshot, ("org/name", "abc123")), (tmp_path, (tmp_path.name, UNVERIFIED))):
        (folder / "config.json").write_text(json.dumps(fields))
        lineage = read_model_shape(folder).lineage
        assert (lineage.base_model, lineage.revision) == named
