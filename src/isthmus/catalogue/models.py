"""Models that are known by name, and the packages that carry their weights."""

from functools import cache

from isthmus.catalogue.data_files import read_data
from isthmus.core.errors import UnknownModel
from isthmus.state.structs import WireStruct

__all__ = ["PACKAGED_MODEL", "KnownModel", "PackagedWeights", "known_model"]

PACKAGED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What is served where no model is named."""


class PackagedWeights(WireStruct, frozen=True, kw_only=True):
    """A Python package and the GGUF file in it."""

    package: str
    file: str


class KnownModel(WireStruct, frozen=True, kw_only=True):
    """A model's shape, in the words of its config.json. `source` says where it was read."""

    source: str
    revision: str
    model_type: str
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    packaged: PackagedWeights | None = None


@cache
def known_model(name: str) -> KnownModel:
    """A model by its base name. Raises UnknownModel where it is not in the catalogue."""
    found = read_data("models", KnownModel)
    if name not in found:
        raise UnknownModel(f"model: {name!r} is not known; known are {', '.join(sorted(found))}", field="model")
    return found[name]
