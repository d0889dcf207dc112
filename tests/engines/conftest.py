"""Tiny models, made once a session."""

from pathlib import Path

import pytest

from tests.engines.models import FAMILIES, save_tiny


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def llama(tiny_models) -> Path:
    return tiny_models["llama"]
