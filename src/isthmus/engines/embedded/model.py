"""Loading a model from a local directory with transformers' own code, and saying what was loaded.

The network is never asked. `Identity` holds the digest of the weights as loaded, kept beside them so that the next
start need not read them twice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from isthmus.core.errors import ConfigInvalid
from isthmus.engines.embedded.attention import ATTENTION_NAME, PoolCache, register_attention
from isthmus.engines.embedded.config import EmbeddedConfig, context_length_of
from isthmus.engines.embedded.plan import StepPlan
from isthmus.engines.embedded.pool import PagedPool
from isthmus.engines.embedded.shape import ModelShape, read_model_shape
from isthmus.engines.embedded.weights import weights_digest
from isthmus.state.identity import Identity, WeightsRecord

__all__ = ["LOGIT_TILE", "LoadedModel", "load_model"]

LOGIT_TILE = 16
"""Rows of one product with the vocabulary, padded: like the step itself it has one shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in memory on `device`, what it is, and the tokens that end its answers."""

    network: Any  # a transformers *ForCausalLM
    shape: ModelShape
    identity: Identity
    context_length: int
    eos_token_ids: frozenset[int]
    device: torch.device

    def hidden_states(self, plan: StepPlan, pool: PagedPool) -> tuple[Tensor, PoolCache]:
        """Run one step: writes the rows' KV to the pool. Returns [step_tokens, hidden size], and what was written."""
        cache = PoolCache(pool, plan)
        output = self.network.model(
            input_ids=plan.input_ids,
            position_ids=plan.position_ids,
            past_key_values=cache,
            use_cache=True,
            step_cache=cache,
        )
        return output.last_hidden_state[0], cache

    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Logits of some rows of `hidden` [step_tokens, hidden size], in order: f32 [len(rows), vocabulary]."""
        padded = rows + [rows[0]] * (-len(rows) % LOGIT_TILE)
        picked = hidden.index_select(0, torch.tensor(padded, dtype=torch.int64, device=hidden.device))
        tiles = [self.network.lm_head(tile) for tile in torch.split(picked, LOGIT_TILE)]
        return torch.cat(tiles)[: len(rows)].to(torch.float32)


def load_model(config: EmbeddedConfig) -> LoadedModel:
    """Load `config.model`.

    Raises:
        ConfigInvalid: not a model directory, a wrong context length, or a device that is not there.
        Unsupported: a family or a rotary scaling that is not served.
    """
    shape = read_model_shape(config.model)
    context_length = context_length_of(config, shape)
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ConfigInvalid(f"device: got {config.device!r}, wanted cpu: torch sees no CUDA device", field="device")
    register_attention()
    disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr is for our own lines
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            config.model,
            dtype=getattr(torch, config.dtype),
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            use_safetensors=True,
        )
    except OSError as error:
        raise ConfigInvalid(f"model: {config.model} cannot be loaded: {error}", field="model") from None
    network.requires_grad_(False)
    network.train(False)
    digest = weights_digest(config.model, network, config.dtype)
    device = torch.device(config.device)
    return LoadedModel(
        network=network.to(device),
        shape=shape,
        identity=Identity(
            lineage=shape.lineage,
            weights=WeightsRecord(dtype=config.dtype, digest=digest),
            rope=shape.rope,
            architecture_digest=shape.architecture_digest,
        ),
        context_length=context_length,
        eos_token_ids=_eos_token_ids(config.model, network),
        device=device,
    )


def _eos_token_ids(path: Path, network: Any) -> frozenset[int]:
    """From generation_config.json where there is one (it knows the end of a chat turn), else from config.json."""
    if (path / "generation_config.json").exists():
        found = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    else:
        found = network.config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)
