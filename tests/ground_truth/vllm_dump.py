"""Runs vLLM on the CPU, in this process, and writes out the memory of its KV cache. For the Python of `.venv-engines`.

    python vllm_dump.py ORDERS.json

ORDERS.json holds {prompts, cases: [{folder, model, num_blocks, settings}]}: token ids of the prompts, and settings by
the names that the flags of `vllm serve` have. The prompts run one after another, so that the last one gets blocks which
the others gave back, in no plain order. Its block table is noted when it gives them back. A folder gets `facts.json`,
and `storage-N.npy` for each allocation: its bytes as they lie, not those of a view of it.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}

import numpy as np
import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def main() -> None:
    orders = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for case in orders["cases"]:
        _dump(orders["prompts"], case)
        gc.collect()
        cleanup_dist_env_and_memory()


def _dump(prompts: list[list[int]], case: dict[str, Any]) -> None:
    llm = LLM(
        model=case["model"],
        skip_tokenizer_init=True,
        num_gpu_blocks_override=case["num_blocks"],
        kv_cache_memory_bytes=256 << 20,
        max_model_len=max(map(len, prompts)) + 8,
        max_num_seqs=1,
        enforce_eager=True,
        disable_log_stats=True,
        **case["settings"],
    )
    core = llm.llm_engine.engine_core.engine_core
    tables: list[list[int]] = []
    _note_blocks(core.scheduler.kv_cache_manager, tables)
    once = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    for prompt in prompts:
        llm.generate({"prompt_token_ids": prompt}, once, use_tqdm=False)
    folder = Path(case["folder"])
    folder.mkdir(parents=True)
    facts = _facts(llm.llm_engine.vllm_config, folder) | {"block_ids": tables[-1]}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _note_blocks(manager: Any, tables: list[list[int]]) -> None:
    """Have the manager note a request's block ids, in the order of its tokens, before it takes them back."""
    free = manager.free

    def noting(request: Any) -> None:
        (ids,) = manager.get_block_ids(request.request_id)
        tables.append(list(ids))
        free(request)

    manager.free = noting


def _facts(config: Any, folder: Path) -> dict[str, Any]:
    """What vLLM knows of its cache; writes the allocations on the way."""
    storages: list[int] = []
    layers = []
    for name, layer in config.compilation_config.static_forward_context.items():
        cache = layer.kv_cache
        storage = cache.untyped_storage()
        if storage.data_ptr() not in storages:
            everything = torch.empty(0, dtype=torch.uint8).set_(storage)
            np.save(folder / f"storage-{len(storages)}.npy", everything.numpy())
            storages.append(storage.data_ptr())
        layers.append(
            {
                "name": name,
                "storage": storages.index(storage.data_ptr()),
                "offset_bytes": cache.storage_offset() * cache.element_size(),
                "shape": list(cache.shape),
                "strides": list(cache.stride()),
                "torch_dtype": str(cache.dtype).removeprefix("torch."),
                "isa": layer.isa,
                "attn_backend": layer.attn_backend.get_name(),
                "k_scale": layer._k_scale_float,
                "v_scale": layer._v_scale_float,
            }
        )
    return {
        "vllm": vllm.__version__,
        "layout": config.cache_config.get_resolved_kv_cache_layout().name,
        "block_size": config.cache_config.block_size,
        "kv_cache_dtype": config.cache_config.cache_dtype,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "num_blocks": config.cache_config.num_gpu_blocks,
        "layers": layers,
    }


if __name__ == "__main__":
    main()
