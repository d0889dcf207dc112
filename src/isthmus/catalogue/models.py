"""Models that are known by name: their configs, their shapes, and the packages that carry their weights."""

import difflib
from collections.abc import Mapping
from functools import cache

from isthmus.catalogue.data_files import read_data
from isthmus.catalogue.shapes import LayerShape, ModelShape, shape_of
from isthmus.core.errors import UnknownModel
from isthmus.state.structs import WireStruct

__all__ = [
    "PACKAGED_MODEL",
    "KnownModel",
    "PackagedWeights",
    "config_of",
    "known_model",
    "layers_of",
    "model_names",
    "model_shape",
]

PACKAGED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What is served where no model is named."""

NAMES_SUGGESTED = 3
ALIKE = 0.5
"""How like a name must be (difflib's ratio) to be suggested."""


class PackagedWeights(WireStruct, frozen=True, kw_only=True):
    """A Python package and the GGUF file in it."""

    package: str
    file: str


class KnownModel(WireStruct, frozen=True, kw_only=True):
    """A model of the catalogue, as its entry says; `data/models.yaml` explains the fields."""

    source: str
    revision: str = "main"
    base_model: str = ""
    config_of: str = ""
    weights_dtype: str = ""
    aliases: tuple[str, ...] = ()
    packaged: PackagedWeights | None = None
    config: Mapping[str, object] = {}


@cache
def _entries() -> dict[str, KnownModel]:
    return read_data("models", KnownModel)


@cache
def _names() -> dict[str, str]:
    """Entries' names by every spelling, in lower case."""
    found = {alias.lower(): name for name, entry in _entries().items() for alias in entry.aliases}
    return found | {name.lower(): name for name in _entries()}


def model_names() -> tuple[str, ...]:
    """The names of all models that are known, in order."""
    return tuple(sorted(_entries()))


def _entry_name(name: str) -> str:
    """The entry that `name` means. Raises UnknownModel."""
    found = _names().get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), _names(), NAMES_SUGGESTED, ALIKE)
        hint = f"the nearest names are {', '.join(_names()[one] for one in near)}" if near else "none is like it"
        raise UnknownModel(f"model: {name!r} is not known; {hint}; or give its config.json", field="model")
    return found


def known_model(name: str) -> KnownModel:
    """A model by its name or another name of its repository, in any case.

    Raises:
        UnknownModel: it is not in the catalogue; the error names the nearest ones.
    """
    return _entries()[_entry_name(name)]


def config_of(name: str) -> dict[str, object]:
    """What is known of a model's config.json. Raises UnknownModel."""
    entry = known_model(name)
    behind = entry.config_of or (entry.base_model if entry.base_model in _entries() else "")
    return (config_of(behind) if behind else {}) | dict(entry.config)


@cache
def model_shape(name: str) -> ModelShape:
    """The shape of a model by its name, in any case.

    Raises:
        UnknownModel: it is not in the catalogue; the error names the nearest ones.
    """
    found = _entry_name(name)
    entry = _entries()[found]
    return shape_of(
        found,
        config_of(found),
        base_model=entry.base_model,
        revision=entry.revision,
        weights_dtype=entry.weights_dtype,
    )


def layers_of(name: str) -> tuple[LayerShape, ...]:
    """What the layers of a model keep. Raises UnknownModel."""
    return model_shape(name).layers
