"""A model's shape from its config.json: what each layer keeps, how keys are rotated, and what else makes KV differ.

`shape_of` serves the catalogue's entries and a user's own config.json alike. What a model's attention is, by
`model_type`, is in `families.py`; what is not described there is refused, not guessed.
"""

from collections.abc import Mapping

import msgspec

from isthmus.catalogue.config_fields import POSITIONS_MAX, Fields, bad, canonical, named
from isthmus.catalogue.families import FAMILIES, NOTHING_KEPT, Family, layer_count, layer_types
from isthmus.catalogue.rope_shapes import rope_of
from isthmus.catalogue.shape_types import ConvSection, LayerShape, ModelShape, RopeShape, StateShape
from isthmus.catalogue.weight_dtypes import weights_dtype_of
from isthmus.core.errors import BadInput, Unsupported
from isthmus.core.limits import HEADS_MAX, NAME_CHARS_MAX

__all__ = ["ConvSection", "LayerShape", "ModelShape", "RopeShape", "StateShape", "shape_of"]

DTYPES = {"bfloat16": "bf16", "float16": "f16", "half": "f16", "float32": "f32", "float": "f32"}
OUTSIDE = ("torch_dtype", "dtype", "quantization_config", "expert_dtype")
"""Fields that may stand beside `text_config` and speak of it."""

SETTINGS = {
    "norm_eps": ("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "layer_norm_eps", "norm_eps"),
    "hidden_act": ("hidden_activation", "hidden_act", "mlp_hidden_act"),
    "num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts"),
    "routed_scaling_factor": ("routed_scaling_factor",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "query_pre_attn_scalar": ("query_pre_attn_scalar",),
    "swiglu_limit": ("swiglu_limit",),
    "index_topk": ("index_topk",),
    "indexer_rope_interleave": ("indexer_rope_interleave",),
    "llama_4_scaling": ("llama_4_scaling",),
    "attn_output_gate": ("attn_output_gate",),
}
"""Settings that change what is computed with the same weights, and how configs spell them."""

NOT_DESCRIBED = {
    "num_kv_shared_layers": "layers that use the keys of others",
    "is_encoder_decoder": "cross attention",
}


def shape_of(
    name: str,
    config: Mapping[str, object],
    *,
    base_model: str = "",
    revision: str = "main",
    weights_dtype: str = "",
) -> ModelShape:
    """The shape of the model `name` whose config.json holds `config`.

    `base_model` is the model whose weights these are, in whatever precision ('' for `name` itself); `weights_dtype`
    says what the weights are stored in where the config does not (its `quantization_config` otherwise).

    Raises:
        BadInput: a field is missing or out of range; the error names it and says what to give.
        Unsupported: the model's attention is not described here.
    """
    if not 1 <= len(name) <= NAME_CHARS_MAX or len(base_model) > NAME_CHARS_MAX:
        raise BadInput(f"model: got a name of {len(name)} characters, wanted 1 to {NAME_CHARS_MAX}", field="model")
    text = _language_model(config)
    model_type = named("model_type", text.get("model_type"))
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise Unsupported(
            f"config.json: model_type: {model_type!r} is not described; known are {known}", field="model_type"
        )
    fields = Fields(text, _missing(family, text))
    _refuse_what_is_not_described(fields)
    try:
        layers = _layers(family, fields)
        dtype = _dtype(fields)
        return ModelShape(
            name=name,
            base_model=base_model or name,
            revision=revision,
            model_type=model_type,
            dtype=dtype,
            weights_dtype=weights_dtype or weights_dtype_of(fields) or dtype,
            num_hidden_layers=layer_count(family, fields),
            num_attention_heads=fields.integer("num_attention_heads", HEADS_MAX),
            max_position_embeddings=fields.integer("max_position_embeddings", POSITIONS_MAX),
            rope=rope_of(family, fields, layers),
            architecture=_architecture(family, fields),
            layers=layers,
        )
    except ValueError as error:
        raise BadInput(f"config.json: {error}", field=str(error).partition(":")[0]) from None


def _language_model(config: Mapping[str, object]) -> dict[str, object]:
    """The fields of the language model, which a model that also sees has in `text_config`."""
    inner = config.get("text_config")
    if inner is None:
        return dict(config)
    if not isinstance(inner, Mapping):
        raise bad("text_config", inner, "an object")
    outside = {name: config[name] for name in OUTSIDE if config.get(name) is not None}
    return outside | {name: value for name, value in inner.items() if value is not None or name not in outside}


def _missing(family: Family, text: Mapping[str, object]) -> Mapping[str, object]:
    if not family.kv_heads_as_heads:
        return family.missing
    return {"num_key_value_heads": text.get("num_attention_heads"), **family.missing}


def _refuse_what_is_not_described(fields: Fields) -> None:
    for name, why in NOT_DESCRIBED.items():
        if fields.get(name):
            raise Unsupported(f"config.json: {name}: {why}: not described", field=name)
    if fields.get("use_bidirectional_attention") in (True, "all"):
        raise Unsupported("config.json: use_bidirectional_attention: not described", field="model_type")


def _layers(family: Family, fields: Fields) -> tuple[LayerShape, ...]:
    """What all layers keep, in the order of their first layers; like things of several types of layer are one."""
    types = layer_types(family, fields, layer_count(family, fields))
    found: dict[LayerShape, list[int]] = {}
    for kind in dict.fromkeys(types):
        if kind in NOTHING_KEPT:
            continue
        build = family.kinds.get(kind)
        if build is None:
            raise Unsupported(
                f"config.json: layer_types: {kind!r} is not described for this model_type, "
                f"wanted of {', '.join(sorted(family.kinds))}",
                field="layer_types",
            )
        for shape in build(fields, tuple(layer for layer, one in enumerate(types) if one == kind)):
            found.setdefault(msgspec.structs.replace(shape, layers=(0,)), []).extend(shape.layers)
    if not found:
        raise bad("layer_types", types, "a layer that keeps something")
    shapes = [msgspec.structs.replace(shape, layers=tuple(sorted(set(layers)))) for shape, layers in found.items()]
    return tuple(sorted(shapes, key=lambda shape: shape.layers[0]))


def _dtype(fields: Fields) -> str:
    name = fields.which("torch_dtype", "dtype") or "torch_dtype"
    word = fields.get(name)
    found = DTYPES.get(word.removeprefix("torch.")) if isinstance(word, str) else None
    if found is None:
        raise bad(name, word, "bfloat16, float16 or float32")
    return found


def _architecture(family: Family, fields: Fields) -> str:
    record = {name: fields.get(name) for name in family.settings}
    for setting, spellings in SETTINGS.items():
        name = fields.which(*spellings)
        if name:
            record[setting] = fields.get(name)
    return canonical("architecture", record)
