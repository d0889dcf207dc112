"""One CA for the session: making keys takes time."""

from pathlib import Path

import pytest

from tests.security.authority import Authority
from tests.serve.conftest import reference, smollm2

__all__ = ["authority", "reference", "smollm2", "strangers"]


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return Authority(Path(tmp_path_factory.mktemp("ca")) / "certs")


@pytest.fixture(scope="session")
def strangers(tmp_path_factory) -> Authority:
    """Another CA, of the same deployment's name."""
    return Authority(Path(tmp_path_factory.mktemp("strangers")) / "certs")
