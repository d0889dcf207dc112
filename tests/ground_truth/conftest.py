"""vLLM's memory, dumped once for all cases by a process of its own environment, and what transformers computes."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ground_truth.transformers_kv import computed_kv, make_llama
from tests.ground_truth.vllm_cases import CASES, HEAD_80, PROMPTS, TOKENS, VLLM_PYTHON, Case

VLLM_SECONDS_MAX = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmDump:
    """What vLLM says of its cache, and the one allocation that holds it, as a flat uint8 array."""

    facts: dict[str, Any]
    storage: np.ndarray


@pytest.fixture(scope="session")
def vllm_dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VllmDump]:
    """By the case's name."""
    assert VLLM_PYTHON.exists(), "run `make test-engines`"
    make_llama(HEAD_80, head_dim=80)
    folder = tmp_path_factory.mktemp("vllm")
    orders = {"prompts": PROMPTS, "cases": [_order(case, folder / case.name) for case in CASES]}
    (folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
    command = [str(VLLM_PYTHON), str(Path(__file__).with_name("vllm_dump.py")), str(folder / "orders.json")]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=VLLM_SECONDS_MAX, check=False)
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    return {case.name: _read(folder / case.name) for case in CASES}


def _order(case: Case, folder: Path) -> dict[str, Any]:
    # vLLM keeps block 0 to itself. Of the second prompt's blocks two have to be some that the first one gave back.
    blocks = -(-(TOKENS + 1) // (case.block_size or 128))
    return {
        "folder": str(folder),
        "model": str(case.model),
        "num_blocks": 2 * blocks - 1,
        "settings": case.settings,
    }


def _read(folder: Path) -> VllmDump:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    (storage,) = folder.glob("storage-*.npy")
    return VllmDump(facts=facts, storage=np.load(storage, allow_pickle=False))


@pytest.fixture(scope="session")
def vllm_expected(vllm_dumps: dict[str, VllmDump]) -> dict[str, dict[str, np.ndarray]]:
    """What transformers computes, by the case's name: `key` and `value` as f32 [L, T, H, D]."""
    facts = {name: dump.facts for name, dump in vllm_dumps.items()}
    return {
        case.name: computed_kv(case.model, facts[case.name]["dtype"], facts[case.name]["kv_cache_dtype"], PROMPTS[-1])
        for case in CASES
    }
