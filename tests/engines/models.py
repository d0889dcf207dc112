"""Tiny random models of each family as local directories, and an engine that writes down its logits."""

import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from isthmus.engines.embedded.config import config_of
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.request import EngineRequest, StepOutput
from isthmus.engines.embedded.scheduler import Active
from isthmus.handoff.request import Sampling

VOCABULARY = 160
DEVICE = os.environ.get("ISTHMUS_TEST_DEVICE", "cpu")
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}),
}


def save_tiny(family: str, folder: Path, *, seed: int = 0, **changes) -> Path:
    """A random model whose logits are far from uniform, in `folder`."""
    config_class, model_class, fields = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 96 if family == "llama" else 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": family == "llama",
            "isthmus_revision": "test",
            **fields,
            **changes,
        }
    )
    model_class(config).to(torch.float32).save_pretrained(folder)
    return folder


class RecordingEngine(EmbeddedEngine):
    """Keeps the logits of every token by request id."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.logits: dict[str, list[Tensor]] = {}

    def _advance(self, active: Active, logits: Tensor, finite: bool) -> StepOutput:
        self.logits.setdefault(active.request.request_id, []).append(logits.cpu().clone())
        return super()._advance(active, logits, finite)


def make_engine(path: Path, **fields) -> RecordingEngine:
    """An engine with a pool full of NaN: what nobody wrote must not matter."""
    config = config_of({"model": path, "num_blocks": 256, "device": DEVICE, **fields})
    engine = RecordingEngine.create(config)
    for region in engine.pool.regions:
        region.data.fill_(0xFF)
    return engine


def random_prompt(length: int, seed: int) -> tuple[int, ...]:
    """Token ids without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def ask(name: str, tokens: tuple[int, ...], blocks: tuple[int, ...], *, max_tokens: int = 1, **fields) -> EngineRequest:
    """A greedy request that runs to `max_tokens`."""
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return EngineRequest(request_id=name, token_ids=tokens, sampling=sampling, block_ids=blocks, **fields)


def run(engine: EmbeddedEngine) -> dict[str, list[StepOutput]]:
    """Step until there is nothing to do."""
    outputs: dict[str, list[StepOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def answer(outputs: list[StepOutput]) -> tuple[int, ...]:
    return tuple(output.token for output in outputs if output.token is not None)
