"""One tiny model for all hand-offs: 4 KV heads, so that 1, 2 and 4 shards are different things."""

from pathlib import Path

import pytest

from tests.engines.models import save_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_tiny("llama", folder, num_attention_heads=8, num_key_value_heads=4)
