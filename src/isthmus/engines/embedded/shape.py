"""What a model is, read from its directory's config.json alone: sizes, lineage, positions. Imports no torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.core.errors import ConfigInvalid, Unsupported
from isthmus.state.identity import UNVERIFIED, ModelLineage, RopeState

__all__ = ["MODEL_TYPES", "REVISION_FIELD", "ModelShape", "read_model_shape"]

REVISION_FIELD = "isthmus_revision"
MODEL_TYPES = ("llama", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose frequencies are fixed. `dynamic` and `longrope` change them with the longest sequence of a
batch, so that a request's KV would depend on its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder with full attention in every layer, and what its KV means."""

    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    lineage: ModelLineage
    rope: RopeState
    architecture_digest: str


def read_model_shape(path: Path) -> ModelShape:
    """Read `path`/config.json.

    Raises:
        ConfigInvalid: there is no such file, or a size is missing.
        Unsupported: another family, sliding windows, or a rotary scaling that depends on the batch.
    """
    fields = _read_config(path)
    model_type = str(fields.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise Unsupported(
            f"model: got model_type {model_type!r}, wanted one of {', '.join(MODEL_TYPES)}", field="model"
        )
    if fields.get("use_sliding_window") or "sliding_attention" in (fields.get("layer_types") or ()):
        raise Unsupported(
            f"model: {path.name} has sliding windows, wanted full attention in every layer", field="model"
        )
    try:
        heads = int(fields["num_attention_heads"])
        head_dim = int(fields.get("head_dim") or int(fields["hidden_size"]) // heads)
        return ModelShape(
            model_type=model_type,
            num_layers=int(fields["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(fields.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            vocab_size=int(fields["vocab_size"]),
            max_position_embeddings=int(fields["max_position_embeddings"]),
            lineage=_lineage(path, fields),
            rope=_rope(fields, head_dim),
            architecture_digest=_architecture_digest(fields),
        )
    except KeyError as error:
        raise ConfigInvalid(f"model: {path / 'config.json'} has no {error.args[0]!r}", field="model") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise ConfigInvalid(
            f"model: {path} has no config.json, wanted a local Hugging Face model directory", field="model"
        ) from None
    except ValueError as error:
        raise ConfigInvalid(f"model: {path / 'config.json'} is not JSON: {error}", field="model") from None
    if not isinstance(fields, dict):
        raise ConfigInvalid(f"model: {path / 'config.json'} is not a JSON object", field="model")
    return fields


def _lineage(path: Path, fields: dict[str, Any]) -> ModelLineage:
    """From the config, else from a hub cache's path (models--ORG--NAME/snapshots/REVISION), else the folder's name.

    A revision is taken from the path or from `isthmus_revision` in config.json; without either it is unverified.
    """
    resolved = path.resolve()
    name, revision = resolved.name, UNVERIFIED
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        revision = resolved.name
        name = resolved.parent.parent.name.removeprefix("models--").replace("--", "/")
    recorded = str(fields.get("_name_or_path") or "")
    if recorded and not recorded.startswith(("/", ".", "~")):
        name = recorded
    return ModelLineage(base_model=name, revision=str(fields.get(REVISION_FIELD) or revision))


_COMPUTED_WITH = (
    "attention_bias",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "rms_norm_eps",
)
"""What the representation does not say already (layers, KV heads and head sizes it names one by one)."""


def _architecture_digest(fields: dict[str, Any]) -> str:
    """Over the settings that the families' code computes with, as the config names them."""
    record = {name: fields[name] for name in _COMPUTED_WITH if fields.get(name) is not None}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _rope(fields: dict[str, Any], head_dim: int) -> RopeState:
    """Both spellings: `rope_parameters` (transformers 5), `rope_theta` with `rope_scaling` (before)."""
    record = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = record.pop("rope_theta", None) or fields.get("rope_theta") or 10_000.0
    rope_type = record.pop("rope_type", None) or record.pop("type", None) or "default"
    record.pop("type", None)
    if rope_type not in ROPE_TYPES:
        raise Unsupported(f"model: got rope_type {rope_type!r}, wanted one of {', '.join(ROPE_TYPES)}", field="model")
    scaling = ""
    if rope_type != "default":
        canonical = json.dumps({"rope_type": rope_type, **record}, sort_keys=True)
        scaling = hashlib.sha256(canonical.encode()).hexdigest()
    partial = float(record.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0)
    return RopeState(
        applied=True, theta=float(theta), rope_dim=int(head_dim * partial), style="neox", scaling_digest=scaling
    )
