"""Shapes against facts written by hand, and configs that are wrong."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.catalogue.models import config_of, model_names, model_shape
from isthmus.catalogue.shapes import ConvSection, StateShape, shape_of
from isthmus.core.errors import BadInput, Unsupported
from isthmus.core.limits import HEAD_SIZE_MAX, HEADS_MAX, LAYERS_MAX

EVERY = None
"""All layers of the model."""


def described(name):
    """kind -> (layers, kv heads, head size, head size of values, window, tokens per row)"""
    return {
        f"{one.kind}/{one.tokens_per_state}" if one.tokens_per_state > 1 else one.kind: (
            one.layers,
            one.num_kv_heads,
            one.head_size,
            one.head_size_v,
            one.sliding_window,
        )
        for one in model_shape(name).layers
    }


# layers, attention heads, KV heads, head size: all layers full attention
FULL = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (30, 9, 3, 64),
    "meta-llama/Llama-3.1-8B": (32, 32, 8, 128),
    "meta-llama/Llama-3.1-70B-Instruct": (80, 64, 8, 128),
    "meta-llama/Llama-3.1-405B": (126, 128, 8, 128),
    "meta-llama/Llama-3.2-1B": (16, 32, 8, 64),
    "meta-llama/Llama-3.2-3B": (28, 24, 8, 128),
    "meta-llama/Llama-3.3-70B-Instruct": (80, 64, 8, 128),
    "Qwen/Qwen2.5-7B-Instruct": (28, 28, 4, 128),
    "Qwen/Qwen2.5-72B-Instruct": (80, 64, 8, 128),
    "Qwen/Qwen3-0.6B": (28, 16, 8, 128),
    "Qwen/Qwen3-8B": (36, 32, 8, 128),
    "Qwen/Qwen3-14B": (40, 40, 8, 128),
    "Qwen/Qwen3-32B": (64, 64, 8, 128),
    "Qwen/Qwen3-30B-A3B": (48, 32, 4, 128),
    "Qwen/Qwen3-235B-A22B": (94, 64, 4, 128),
    "zai-org/GLM-4.5": (92, 96, 8, 128),
    "zai-org/GLM-4.5-Air": (46, 96, 8, 128),
    "MiniMaxAI/MiniMax-M2": (62, 48, 8, 128),
    "mistralai/Mistral-7B-v0.3": (32, 32, 8, 128),
    "mistralai/Mistral-Small-24B-Instruct-2501": (40, 32, 8, 128),
    "mistralai/Mixtral-8x7B-v0.1": (32, 32, 8, 128),
    "microsoft/phi-4": (40, 40, 10, 128),
    "microsoft/Phi-4-mini-instruct": (32, 24, 8, 128),
}


@pytest.mark.parametrize("name", FULL)
def test_models_of_full_attention(name):
    layers, heads, kv_heads, size = FULL[name]
    shape = model_shape(name)
    assert shape.num_attention_heads == heads
    assert shape.num_hidden_layers == layers
    assert described(name) == {"full_attention": (tuple(range(layers)), kv_heads, size, size, 0)}


def test_mistral_7b_first_had_a_window():
    assert described("mistralai/Mistral-7B-v0.1") == {"sliding_window": (tuple(range(32)), 8, 128, 128, 4096)}


def test_gpt_oss_alternates_from_a_window():
    assert described("openai/gpt-oss-120b") == {
        "sliding_window": (tuple(range(0, 36, 2)), 8, 64, 64, 128),
        "full_attention": (tuple(range(1, 36, 2)), 8, 64, 64, 0),
    }


def test_gemma_2_alternates_and_gemma_3_has_every_sixth_layer_full():
    assert described("google/gemma-2-27b-it") == {
        "sliding_window": (tuple(range(0, 46, 2)), 16, 128, 128, 4096),
        "full_attention": (tuple(range(1, 46, 2)), 16, 128, 128, 0),
    }
    full = (5, 11, 17, 23, 29)
    assert described("google/gemma-3-4b-it") == {
        "sliding_window": (tuple(layer for layer in range(34) if layer not in full), 4, 256, 256, 1024),
        "full_attention": (full, 4, 256, 256, 0),
    }


def test_gemma_4_has_other_heads_where_attention_is_full():
    full = (5, 11, 17, 23, 29)
    assert described("google/gemma-4-26B-A4B") == {
        "sliding_window": (tuple(layer for layer in range(30) if layer not in full), 8, 256, 256, 1024),
        "full_attention": (full, 2, 512, 512, 0),
    }


def test_llama_4_sees_chunks_in_three_layers_of_four():
    full = tuple(range(3, 48, 4))
    assert described("meta-llama/Llama-4-Scout-17B-16E-Instruct") == {
        "chunked_local": (tuple(layer for layer in range(48) if layer not in full), 8, 128, 128, 8192),
        "full_attention": (full, 8, 128, 128, 0),
    }


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("deepseek-ai/DeepSeek-V2", 60),
        ("deepseek-ai/DeepSeek-V2-Lite", 27),
        ("deepseek-ai/DeepSeek-V3", 61),
        ("deepseek-ai/DeepSeek-R1", 61),
        ("moonshotai/Kimi-K2-Instruct", 61),
        ("moonshotai/Kimi-K2.5", 61),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", 61),
    ],
)
def test_models_of_mla(name, layers):
    assert described(name) == {"mla": (tuple(range(layers)), 1, 576, 512, 0)}
    (only,) = model_shape(name).layers
    assert (only.kv_lora_rank, only.qk_rope_head_dim) == (512, 64)
    assert (model_shape(name).rope.rope_dim, model_shape(name).rope.style) == (64, "interleaved")


@pytest.mark.parametrize(
    ("name", "layers", "indexed"),
    [
        ("deepseek-ai/DeepSeek-V3.2", 61, tuple(range(61))),
        ("deepseek-ai/DeepSeek-V3.2-Exp", 61, tuple(range(61))),
        ("zai-org/GLM-5", 78, tuple(range(78))),
        ("zai-org/GLM-5.2", 78, (0, 1, *range(2, 78, 4))),
    ],
)
def test_models_with_an_indexer(name, layers, indexed):
    assert described(name) == {
        "mla": (tuple(range(layers)), 1, 576, 512, 0),
        "indexer": (indexed, 1, 128, 128, 0),
    }


def test_deepseek_v4_keeps_a_window_and_compressed_rows():
    sparse, heavy = tuple(range(2, 43, 2)), tuple(range(3, 43, 2))
    assert described("deepseek-ai/DeepSeek-V4-Flash") == {
        "sliding_window_mla": (tuple(range(43)), 1, 512, 512, 128),
        "mla/4": (sparse, 1, 512, 512, 0),
        "indexer/4": (sparse, 1, 128, 128, 0),
        "mla/128": (heavy, 1, 512, 512, 0),
    }
    latent = model_shape("deepseek-ai/DeepSeek-V4-Pro").layers[0]
    assert (latent.kv_lora_rank, latent.qk_rope_head_dim) == (448, 64)


def test_qwen3_next_has_a_delta_net_in_three_layers_of_four():
    shape = model_shape("Qwen/Qwen3-Next-80B-A3B-Instruct")
    assert shape.layers_of("full_attention") == tuple(range(3, 48, 4))
    assert described(shape.name)["full_attention"] == (tuple(range(3, 48, 4)), 2, 256, 256, 0)
    state = next(one.state for one in shape.layers if one.kind == "gdn")
    assert state == StateShape(
        conv_kernel=4,
        sections=(
            ConvSection(name="conv_b", heads=16, head_channels=128),
            ConvSection(name="conv_c", heads=16, head_channels=128),
            ConvSection(name="conv_x", heads=32, head_channels=128),
        ),
        ssm_heads=32,
        ssm_head_dim=128,
        ssm_state_size=128,
    )
    assert shape.rope.rope_dim == 64


def test_nemotron_h_has_layers_that_keep_nothing():
    shape = model_shape("nvidia/Nemotron-H-8B-Base-8K")
    assert shape.layers_of("full_attention") == (7, 18, 29, 40)
    assert len(shape.layers_of("mamba")) == 24
    state = next(one.state for one in shape.layers if one.kind == "mamba")
    assert state == StateShape(
        conv_kernel=4,
        sections=(
            ConvSection(name="conv_x", heads=128, head_channels=64),
            ConvSection(name="conv_b", heads=8, head_channels=128),
            ConvSection(name="conv_c", heads=8, head_channels=128),
        ),
        ssm_heads=128,
        ssm_head_dim=64,
        ssm_state_size=128,
    )
    assert (shape.rope.rope_dim, shape.rope.theta) == (0, 1.0)
    large = model_shape("nvidia/Nemotron-H-56B-Base-8K")
    assert (large.num_hidden_layers, len(large.layers_of("mamba")), len(large.layers_of("full_attention"))) == (
        118,
        54,
        10,
    )
    nano = model_shape("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    assert nano.layers_of("full_attention") == (5, 12, 19, 26, 33, 42)
    assert described(nano.name)["full_attention"][1:3] == (2, 128)


def test_lightning_attention_has_no_convolution():
    shape = model_shape("MiniMaxAI/MiniMax-M1-80k")
    assert shape.layers_of("full_attention") == tuple(range(7, 80, 8))
    state = next(one.state for one in shape.layers if one.kind == "mamba")
    assert state == StateShape(conv_kernel=0, sections=(), ssm_heads=64, ssm_head_dim=128, ssm_state_size=128)


def test_kimi_k3_has_delta_attention_and_latents_that_are_not_rotated():
    shape = model_shape("moonshotai/Kimi-K3")
    assert shape.layers_of("mla") == (*range(3, 92, 4), 92)
    state = next(one.state for one in shape.layers if one.kind == "gdn")
    assert [(one.name, one.heads) for one in state.sections] == [("conv_b", 96), ("conv_c", 96), ("conv_x", 96)]
    assert shape.rope.rope_dim == 0


def test_how_keys_are_rotated():
    llama = model_shape("meta-llama/Llama-3.1-8B").rope
    assert (llama.theta, llama.rope_dim, llama.style) == (500_000.0, 128, "neox")
    assert json.loads(llama.scaling) == {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 8192,
    }
    assert model_shape("Qwen/Qwen3-32B").rope.scaling == ""
    assert model_shape("zai-org/GLM-4.5").rope.rope_dim == 64
    assert model_shape("MiniMaxAI/MiniMax-M2").rope.rope_dim == 64
    phi = model_shape("microsoft/Phi-4-mini-instruct").rope
    assert phi.rope_dim == 96
    assert json.loads(phi.scaling)["original_max_position_embeddings"] == 4096
    gemma = model_shape("google/gemma-3-4b-it").rope
    assert gemma.theta == 1_000_000.0
    assert json.loads(gemma.scaling)["sliding_attention"]["rope_theta"] == 10_000


LLAMA = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "hidden_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def test_what_a_llama_leaves_out_is_what_its_class_takes():
    shape = shape_of("mine", LLAMA)
    (only,) = shape.layers
    assert (only.num_kv_heads, only.head_size) == (8, 64)
    assert (shape.base_model, shape.revision, shape.rope.theta) == ("mine", "main", 10_000.0)


def test_both_spellings_of_rope_and_dtype_say_the_same():
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
    before = LLAMA | {"rope_theta": 500000, "rope_scaling": scaling | {"type": "llama3"}}
    after = {name: value for name, value in LLAMA.items() if name != "torch_dtype"} | {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3"} | {k: float(v) for k, v in scaling.items()},
    }
    assert shape_of("mine", before) == shape_of("mine", after)


def test_both_spellings_of_two_rotations_say_the_same():
    gemma = config_of("google/gemma-3-12b-it")
    after = {name: value for name, value in gemma.items() if name != "rope_scaling"} | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
    }
    assert shape_of("mine", gemma) == shape_of("mine", after)


def test_a_model_that_sees_has_its_language_model_inside():
    inside = {name: value for name, value in LLAMA.items() if name != "torch_dtype"}
    config = {"model_type": "llava", "torch_dtype": "bfloat16", "hidden_size": 7, "text_config": inside}
    assert shape_of("mine", config) == shape_of("mine", LLAMA)


def test_layer_types_of_the_config_come_first():
    qwen = config_of("Qwen/Qwen3-0.6B") | {
        "layer_types": ["full_attention", "sliding_attention"] * 14,
        "sliding_window": 1024,
    }
    assert shape_of("mine", qwen).layers_of("sliding_window") == tuple(range(1, 28, 2))


def test_a_window_as_long_as_the_context_is_full_attention():
    assert shape_of("mine", config_of("mistralai/Mistral-7B-v0.1") | {"sliding_window": 32768}).layers_of(
        "full_attention"
    ) == tuple(range(32))


@pytest.mark.parametrize(
    ("record", "dtype"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "mixed"),
        ({"config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 8}}}}, "int8"),
        ({"config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 4, "group_size": 16}}}}, "nvfp4"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_what_quantisers_write(record, dtype):
    assert shape_of("mine", LLAMA | {"quantization_config": record}).weights_dtype == dtype


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": LAYERS_MAX + 1}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers"),
        ({"head_dim": HEAD_SIZE_MAX + 1}, "head_dim"),
        ({"hidden_size": None}, "hidden_size"),
        ({"torch_dtype": None}, "torch_dtype"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "rope_scaling"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": None}, "model_type"),
        ({"text_config": 3}, "text_config"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.bits"),
        ({"hidden_act": ["silu"] * 5000}, "architecture"),
    ],
)
def test_a_wrong_field_is_named(change, field):
    with pytest.raises(BadInput, match="wanted") as caught:
        shape_of("mine", LLAMA | change)
    assert caught.value.field == field
    assert f"config.json: {field}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "rwkv"}, "rwkv"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
    ],
)
def test_attention_that_is_not_described_is_refused(change, named):
    with pytest.raises(Unsupported, match=named):
        shape_of("mine", LLAMA | change)


def test_mistral_must_say_whether_it_has_a_window():
    config = config_of("mistralai/Mistral-7B-v0.3")
    del config["sliding_window"]
    with pytest.raises(BadInput, match="sliding_window: missing"):
        shape_of("mine", config)


def test_a_compression_that_is_not_known_is_refused():
    config = config_of("deepseek-ai/DeepSeek-V4-Flash") | {"compress_ratios": [0, 16] * 22}
    with pytest.raises(Unsupported, match="16"):
        shape_of("mine", config)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 4096, "full_attention", "default", "yarn", "llama", "M*", ""])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


def places(config, path=()):
    """Where something stands in a config, lists of numbers as wholes."""
    for name, value in config.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_a_damaged_config_gives_a_shape_or_an_error_that_names_a_field(data):
    config = copy.deepcopy(config_of(data.draw(st.sampled_from(model_names()))))
    config |= data.draw(st.dictionaries(st.sampled_from(EXTRA), ANYTHING, max_size=2))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(sorted(places(config))))
        inside = config
        for name in path:
            inside = inside.get(name) if isinstance(inside, dict) else None
        if not isinstance(inside, dict):
            continue
        if data.draw(st.booleans()):
            inside.pop(last, None)
        else:
            inside[last] = data.draw(ANYTHING)
    if data.draw(st.booleans()):
        config = {"model_type": "outer", "text_config": config}
    try:
        shape = shape_of("damaged", config)
    except (BadInput, Unsupported) as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert error.field
        assert len(str(error)) < 2000
        return
    assert shape.num_hidden_layers <= LAYERS_MAX
    for one in shape.layers:
        assert one.layers[-1] < shape.num_hidden_layers
        assert one.num_kv_heads <= HEADS_MAX
        assert max(one.head_size, one.head_size_v) <= HEAD_SIZE_MAX
    assert 0 <= shape.rope.rope_dim <= HEAD_SIZE_MAX


EXTRA = [
    "layer_types",
    "layers_block_type",
    "indexer_types",
    "index_topk_pattern",
    "no_rope_layers",
    "rope_parameters",
    "rope_scaling",
    "rotary_dim",
    "partial_rotary_factor",
    "quantization_config",
    "expert_dtype",
    "sliding_window",
    "use_sliding_window",
    "original_max_position_embeddings",
    "dtype",
    "hidden_act",
    "text_config",
]
