"""Which model directory to serve: the one named, or the packaged SmolLM2, de-quantised once into the cache."""

import os
from pathlib import Path

from isthmus.core.errors import ConfigInvalid

__all__ = ["cache_folder", "model_path"]


def cache_folder() -> Path:
    """`$ISTHMUS_CACHE`, or `.cache/isthmus` below the current folder."""
    return Path(os.environ.get("ISTHMUS_CACHE", ".cache/isthmus")).resolve()


def model_path(named: Path | None) -> Path:
    """A local Hugging Face directory.

    Raises:
        ConfigInvalid: the one named is not there; or none is named, and the packaged one is not prepared.
    """
    if named is not None:
        path = named.expanduser().resolve()
        if not (path / "config.json").is_file():
            raise ConfigInvalid(f"model: {path} has no config.json; name a local Hugging Face directory", field="model")
        return path
    path = cache_folder() / "smollm2"
    if not (path / "config.json").is_file():
        raise ConfigInvalid(f"model: {path} is not prepared; run `isthmus model`, or set `model`", field="model")
    return path
