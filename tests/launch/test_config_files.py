"""A model by its folder: what config.json must say, and how what it does not say is refused."""

import json

import pytest

from isthmus.core.errors import BadInput, Rejected
from isthmus.engines.launch.describe import describe
from isthmus.portability.check import check
from tests.launch.lines import vllm

LLAMA = {
    "model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "hidden_size": 512, "max_position_embeddings": 4096, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip


def line(folder, config, place="@h100,vllm=0.33") -> str:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return vllm(place=place, model=str(folder))


def test_a_folder_with_a_config_is_a_model(tmp_path):
    found = describe(line(tmp_path, LLAMA))
    group = found.representation.groups[0]
    assert (group.num_layers, group.num_kv_heads, group.components[0].count) == (4, 2, 64)
    assert describe(vllm(model=str(tmp_path / "config.json"))).representation == found.representation


def test_two_folders_whose_weights_nobody_compared_are_not_one_model(tmp_path):
    sides = []
    for name in "ab":
        (tmp_path / name).mkdir()
        sides.append(describe(line(tmp_path / name, LLAMA)))
    assert check(*sides).verdict.outcome.value == "reject"
    assert check(sides[0], sides[0]).verdict.outcome.value == "direct"


def test_a_folder_with_its_base_said_is_a_form_of_that_model(tmp_path):
    found = describe(line(tmp_path, LLAMA, "@h100,vllm=0.33,base=meta-llama/Llama-3.1-8B,revision=abc"))
    assert (found.identity.lineage.base_model, found.identity.lineage.revision) == ("meta-llama/Llama-3.1-8B", "abc")


@pytest.mark.parametrize("field", ["num_attention_heads", "num_hidden_layers", "hidden_size", "model_type"])
def test_a_config_without_a_field_that_matters_is_refused_by_its_name(tmp_path, field):
    with pytest.raises(Rejected, match=field):
        describe(line(tmp_path, {key: value for key, value in LLAMA.items() if key != field}))


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"num_attention_heads": "eight"}, {"num_key_value_heads": 3},
        {"num_key_value_heads": -2}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 1.5}, {"hidden_size": None},
        {"model_type": "no_such_family"}, {"model_type": ["llama"]}, {"head_dim": 10**6}, {"rope_theta": "much"},
        {"torch_dtype": "float7"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_with_a_field_that_cannot_be_is_refused(tmp_path, change):
    with pytest.raises(Rejected):
        describe(line(tmp_path, LLAMA | change))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"x"', "{'a': 1}", "\0", "[" * 100_000, '{"a":' * 100_000, '{"x": NaN}'],
    ids=lambda text: text[:12] or "empty",
)  # fmt: skip
def test_what_is_no_object_in_json_is_refused(tmp_path, text):
    with pytest.raises(Rejected):
        describe(line(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BadInput, match="not JSON"):
        describe(vllm(model=str(tmp_path)))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"config\.json"):
        describe(vllm(model=str(tmp_path)))
    with pytest.raises(BadInput, match=r"config\.json"):
        describe(vllm(model=str(tmp_path / "nowhere" / "config.json")))


def test_a_config_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(BadInput, match="larger than"):
        describe(line(tmp_path, json.dumps(LLAMA | {"x": "y" * (1 << 20)})))
