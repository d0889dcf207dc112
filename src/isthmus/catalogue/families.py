"""What the families of models are: facts of their config classes in transformers, by `model_type`.

A config.json leaves out what its class takes anyway. So a family says what published configs leave out, which layers
are of which kind where the config does not say, and how keys are rotated. What is not said there is asked of the
config: nothing is guessed. Source: transformers 5.23.0, models/*/configuration_*.py and modeling_*.py, unless said.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from isthmus.catalogue import layer_shapes as keeps
from isthmus.catalogue.config_fields import Fields, bad
from isthmus.core.errors import Unsupported
from isthmus.core.limits import LAYERS_MAX

__all__ = ["FAMILIES", "Family", "layer_count", "layer_types"]

Rotation = Literal["one", "by_layer_type", "main_and_compress", "none"]
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
INDEXED, CSA, HCA = "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention"
NOTHING_KEPT = ("mlp", "moe")
OTHER_NAMES = {
    "attention": FULL,
    "mamba": LINEAR,
    "deepseek_sparse_attention": INDEXED,
}
"""What earlier configs called a layer type (configuration_utils.py, _LEGACY_LAYER_TYPE_REMAP)."""
LETTERS = {"M": LINEAR, "*": FULL, "E": "moe", "-": "mlp"}
"""Of `hybrid_override_pattern` (models/nemotron_h/configuration_nemotron_h.py)."""


def _all_full(fields: Fields, count: int) -> list[str]:
    return [FULL] * count


def _all_indexed(fields: Fields, count: int) -> list[str]:
    return [INDEXED] * count


def _every(name: str, absent: int, one: str, others: str) -> "Chooser":
    """Each so manyth layer is of one type, as the field `name` says."""

    def choose(fields: Fields, count: int) -> list[str]:
        each = fields.integer_or(name, absent, LAYERS_MAX)
        return [others if (layer + 1) % each else one for layer in range(count)]

    return choose


def _alternating(fields: Fields, count: int) -> list[str]:
    return [SLIDING if layer % 2 == 0 else FULL for layer in range(count)]


def _if_window(fields: Fields, count: int) -> list[str]:
    return [SLIDING if fields.get("sliding_window") is not None else FULL] * count


def _if_window_is_said(fields: Fields, count: int) -> list[str]:
    """Mistral: a window of null is none, but a config that does not speak of it has one."""
    if not fields.says("sliding_window"):
        raise bad("sliding_window", None, "tokens, or null for none")
    return _if_window(fields, count)


def _five_to_one(fields: Fields, count: int) -> list[str]:
    """Gemma 4: its last layer is always full."""
    return [FULL if layer % 6 == 5 or layer == count - 1 else SLIDING for layer in range(count)]


def _from_max_window_layers(fields: Fields, count: int) -> list[str]:
    if not fields.switch("use_sliding_window"):
        return [FULL] * count
    first = fields.integer("max_window_layers", LAYERS_MAX, least=0)
    return [SLIDING if layer >= first else FULL for layer in range(count)]


def _no_window(fields: Fields, count: int) -> list[str]:
    if fields.switch("use_sliding_window"):
        raise Unsupported("config.json: use_sliding_window: true is not described for this model_type", field="model")
    return [FULL] * count


def _rope_or_not(fields: Fields, count: int) -> list[str]:
    """Llama 4: layers without rotation see all tokens, the others a chunk."""
    if fields.get("no_rope_layers"):
        rotated = fields.integers("no_rope_layers", 1)
        if len(rotated) < count:
            raise bad("no_rope_layers", rotated, f"0 or 1 for each of {count} layers")
        return [CHUNKED if one else FULL for one in rotated[:count]]
    return _every("no_rope_layer_interval", 4, FULL, CHUNKED)(fields, count)


def _by_compress_ratio(fields: Fields, count: int) -> list[str]:
    """DeepSeek V4. The list goes on with the layers that predict further tokens."""
    known = {0: SLIDING, 4: CSA, 128: HCA}
    ratios = fields.integers("compress_ratios", 1 << 16)
    if len(ratios) < count:
        raise bad("compress_ratios", ratios, f"one for each of {count} layers")
    odd = sorted(set(ratios[:count]) - set(known))
    if odd:
        raise Unsupported(f"config.json: compress_ratios: {odd[0]} is not described, wanted 0, 4 or 128", field="model")
    return [known[ratio] for ratio in ratios[:count]]


def _by_pattern(fields: Fields, count: int) -> list[str]:
    if fields.get("layers_block_type") is not None:
        return fields.texts("layers_block_type")
    pattern = fields.text("hybrid_override_pattern")
    if not set(pattern) <= set(LETTERS):
        raise bad("hybrid_override_pattern", pattern, f"letters of {''.join(LETTERS)}")
    return [LETTERS[letter] for letter in pattern]


def _by_attn_type(fields: Fields, count: int) -> list[str]:
    """MiniMax-M1: 0 lightning attention, 1 full attention (configuration_minimax_m1.py of the repository)."""
    return [FULL if one else LINEAR for one in fields.integers("attn_type_list", 1)]


def _by_kda_layers(fields: Fields, count: int) -> list[str]:
    """Kimi Linear counts layers from 1."""
    linear = Fields(fields.record("linear_attn_config"), {}, within="linear_attn_config.")
    kinds: dict[int, str] = {}
    for name, kind in (("full_attn_layers", FULL), ("kda_layers", LINEAR)):
        for layer in linear.integers(name, count):
            if layer == 0 or layer in kinds:
                raise bad(f"linear_attn_config.{name}", layer, f"each of the layers 1 to {count} once")
            kinds[layer] = kind
    if len(kinds) != count:
        raise bad("linear_attn_config", sorted(kinds), f"each of the layers 1 to {count} once")
    return [kinds[layer] for layer in range(1, count + 1)]


Chooser = Callable[[Fields, int], list[str]]
"""The types of all layers where `layer_types` does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One `model_type`.

    kinds: what a layer of each type keeps. types: which layer is of which type, where the config does not say.
    missing: what a config may leave out. kv_heads_as_heads: without `num_key_value_heads` there are as many as
    attention heads. settings: what it computes with, beside what `shapes.SETTINGS` names for all.
    """

    kinds: Mapping[str, keeps.Builder]
    types: Chooser = _all_full
    missing: Mapping[str, object] = field(default_factory=dict)
    kv_heads_as_heads: bool = False
    rotation: Rotation = "one"
    interleaved: bool = False
    settings: tuple[str, ...] = ()


def layer_count(family: Family, fields: Fields) -> int:
    """How many layers there are. Raises BadInput."""
    if fields.get("num_hidden_layers") is None and family.types is _by_pattern:
        count = len(_by_pattern(fields, 0))
        if not 1 <= count <= LAYERS_MAX:
            raise bad("layers_block_type", count, f"1 to {LAYERS_MAX} layers")
        return count
    return fields.integer("num_hidden_layers", LAYERS_MAX)


def layer_types(family: Family, fields: Fields, count: int) -> list[str]:
    """The type of each layer, in transformers' words of today.

    Raises:
        BadInput: there is not one for each layer.
    """
    said = fields.get("layer_types") is not None
    found = fields.texts("layer_types") if said else family.types(fields, count)
    if len(found) != count:
        raise bad("layer_types", found, f"one for each of num_hidden_layers = {count}")
    return [OTHER_NAMES.get(one, one) for one in found]


_LLAMA = {FULL: keeps.full}
_WINDOWS = {FULL: keeps.full, SLIDING: keeps.sliding}
_MLA = {FULL: keeps.mla}
_DSA = {INDEXED: keeps.indexed, FULL: keeps.mla}
_GDN = {FULL: keeps.full, LINEAR: keeps.gated_delta}
_BASE_THETA = {"rope_theta": 10_000.0}

_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_QWEN3_NEXT = Family(
    kinds=_GDN,
    types=_every("full_attention_interval", 4, FULL, LINEAR),
    missing=_BASE_THETA | {"partial_rotary_factor": 0.25},
)
_DEEPSEEK_V3 = Family(kinds=_MLA, missing=_BASE_THETA | {"rope_interleave": True}, interleaved=True)
_MINIMAX_M1 = Family(
    kinds={FULL: keeps.full, LINEAR: keeps.lightning}, types=_by_attn_type, missing={"torch_dtype": "bfloat16"}
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(kinds=_LLAMA, missing=_BASE_THETA, kv_heads_as_heads=True),
    "llama4_text": Family(
        kinds={FULL: keeps.full, CHUNKED: keeps.chunked},
        types=_rope_or_not,
        missing={
            "rope_theta": 500_000.0,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        interleaved=True,
        settings=("use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale"),
    ),
    "mistral": Family(kinds=_WINDOWS, types=_if_window_is_said, missing=_BASE_THETA),
    "mixtral": Family(kinds=_WINDOWS, types=_if_window, missing={"rope_theta": 1_000_000.0}),
    "phi3": Family(kinds=_WINDOWS, types=_if_window, missing=_BASE_THETA, kv_heads_as_heads=True),
    "qwen2": Family(kinds=_WINDOWS, types=_from_max_window_layers, missing=_BASE_THETA),
    "qwen3": Family(kinds=_WINDOWS, types=_from_max_window_layers, missing=_BASE_THETA | {"head_dim": 128}),
    "qwen3_moe": Family(kinds=_LLAMA, types=_no_window, missing=_BASE_THETA),
    "qwen3_vl_text": Family(kinds=_LLAMA, missing={"rope_theta": 500_000.0, "head_dim": 128}),
    "qwen3_vl_moe_text": Family(kinds=_LLAMA, missing={"rope_theta": 500_000.0}),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma2": Family(kinds=_WINDOWS, types=_alternating, missing=_BASE_THETA),
    "gemma3_text": Family(
        kinds=_WINDOWS,
        types=_every("sliding_window_pattern", 6, FULL, SLIDING),
        missing=_GEMMA3,
        rotation="by_layer_type",
    ),
    "gemma4_text": Family(
        kinds={FULL: keeps.global_full, SLIDING: keeps.sliding},
        types=_five_to_one,
        missing={"global_head_dim": 512},
        rotation="by_layer_type",
    ),
    # The published checkpoints do not say their dtype: their weights that are not mxfp4 are bf16.
    "gpt_oss": Family(
        kinds=_WINDOWS,
        types=_alternating,
        missing={"rope_theta": 150_000.0, "swiglu_limit": 7.0, "torch_dtype": "bfloat16"},
    ),
    "glm4": Family(kinds=_LLAMA, missing=_BASE_THETA | {"partial_rotary_factor": 0.5}, interleaved=True),
    "glm4_moe": Family(kinds=_LLAMA, missing=_BASE_THETA | {"partial_rotary_factor": 0.5}),
    "glm_moe_dsa": Family(kinds=_DSA, types=_all_indexed, missing=_BASE_THETA, interleaved=True),
    "deepseek_v2": Family(kinds=_MLA, missing=_BASE_THETA, interleaved=True),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "deepseek_v32": Family(kinds=_DSA, types=_all_indexed, missing=_BASE_THETA, interleaved=True),
    "deepseek_v4": Family(
        kinds={
            SLIDING: keeps.sliding_latent,
            CSA: keeps.compressed(4, with_indexer=True),
            HCA: keeps.compressed(128, with_indexer=False),
        },
        types=_by_compress_ratio,
        missing=_BASE_THETA | {"compress_rope_theta": 160_000.0},
        rotation="main_and_compress",
        interleaved=True,
    ),
    # vLLM 0.33.0, models/kimi_k3/nvidia/model.py:739: its full attention rotates nothing.
    "kimi_linear": Family(kinds={FULL: keeps.mla, LINEAR: keeps.kimi_delta}, types=_by_kda_layers, rotation="none"),
    "minimax_m1": _MINIMAX_M1,
    "minimax_text_01": _MINIMAX_M1,
    "minimax_m2": Family(kinds=_LLAMA, missing={"rope_theta": 5_000_000.0, "torch_dtype": "bfloat16"}),
    # modeling_nemotron_h.py: its attention rotates nothing, whatever the config says of RoPE.
    "nemotron_h": Family(
        kinds={FULL: keeps.full, LINEAR: keeps.mamba2},
        types=_by_pattern,
        missing={"head_dim": 128},
        rotation="none",
    ),
}
