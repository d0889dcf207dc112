"""The KV that transformers computes for the same tokens: what vLLM's has to be."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

_FP8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def toward_zero(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To an 8-bit type as vLLM's CPU kernel does it: what does not fit is cut off."""
    nearest = values.to(dtype)
    away = nearest.float().abs() > values.float().abs()
    codes = nearest.view(torch.uint8)
    return torch.where(away, codes - 1, codes).view(dtype)


class _Stored(DynamicCache):
    """Attention sees K and V as the cache stores them, as it does in vLLM."""

    def __init__(self, config: Any, storage: torch.dtype | None):
        super().__init__(config=config)
        self.storage = storage

    def update(self, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.storage is not None:
            key, value = (toward_zero(each, self.storage).to(each.dtype) for each in (key, value))
        return super().update(key, value, *args, **kwargs)


def computed_kv(model: Path, dtype: str, kv_cache_dtype: str, tokens: list[int]) -> dict[str, np.ndarray]:
    """`key` (RoPE applied) and `value` as f32 [L, T, H, D], with the arithmetic in `dtype`."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    cache = _Stored(network.config, _FP8.get(kv_cache_dtype))
    with torch.inference_mode():
        network(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return {
        "key": np.stack([layer.keys[0].transpose(0, 1).float().numpy() for layer in cache.layers]),
        "value": np.stack([layer.values[0].transpose(0, 1).float().numpy() for layer in cache.layers]),
    }


def make_llama(folder: Path, *, head_dim: int) -> None:
    """A small Llama with random weights."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=4 * head_dim,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
