"""The models that chaos serves: a tiny random Llama, made once and kept in the cache, or the packaged SmolLM2.

The tiny one computes in a millisecond, so that faults and not arithmetic fill the time. Its weights are drawn wide, so
that its logits are far from uniform and a greedy answer is one answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.core.clock import ManualClock
from isthmus.core.errors import BadInput

__all__ = ["CONTEXT_LENGTH", "KV_HEADS", "MODELS", "Reference", "answer_alone", "prepare"]

KV_HEADS = {"tiny": 2, "smollm2": 3}
MODELS = tuple(KV_HEADS)

VOCABULARY = 160
SPECIAL = 3  # pad, begin, end
CONTEXT_LENGTH = 512
PROMPT_LENGTHS = (5, 12, 16, 17, 31, 40, 64, 65, 97, 130, 200, 260)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A prompt and its greedy answer by one engine alone."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def prepare(name: str, cache: Path) -> Path:
    """The model's directory, made if it is not there."""
    if name == "smollm2":
        from isthmus.engines.embedded.prepare import prepare_smollm2

        return prepare_smollm2(cache)
    if name != "tiny":
        raise BadInput(f"--model: got {name!r}, wanted one of {', '.join(MODELS)}", field="model")
    folder = cache / "tiny-llama"
    if not (folder / "tokenizer.json").is_file():
        _make_tiny(folder)
    return folder


def answer_alone(model: Path, *, count: int, tokens: int, num_blocks: int = 512) -> tuple[Reference, ...]:
    """`count` prompts of many lengths, and what one engine that prefills and decodes by itself answers."""
    from isthmus.engines.embedded.config import EmbeddedConfig
    from isthmus.engines.embedded.engine import EmbeddedEngine
    from isthmus.engines.embedded.generate import generate
    from isthmus.engines.embedded.shape import read_model_shape
    from isthmus.handoff.request import Sampling

    prompts = _prompts(count, min(VOCABULARY, read_model_shape(model).vocab_size))
    engine = EmbeddedEngine.create(EmbeddedConfig(model=model, num_blocks=num_blocks, context_length=CONTEXT_LENGTH))
    answers = generate(engine, prompts, Sampling(max_tokens=tokens, ignore_eos=True))
    return tuple(
        Reference(prompt=prompt, answer=tuple(answer.token_ids))
        for prompt, answer in zip(prompts, answers, strict=True)
    )


def _prompts(count: int, vocabulary: int) -> Sequence[tuple[int, ...]]:
    clock = ManualClock(seed=0)
    return [
        tuple(SPECIAL + int(clock.token(), 16) % (vocabulary - SPECIAL) for _ in range(length))
        for length in (PROMPT_LENGTHS * -(-count // len(PROMPT_LENGTHS)))[:count]
    ]


def _make_tiny(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": KV_HEADS["tiny"],
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "isthmus_revision": "chaos",
    }
    LlamaForCausalLM(LlamaConfig(**fields)).save_pretrained(folder)
    _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    """One word for each id: text is of no interest here."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(SPECIAL, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = transformers.PreTrainedTokenizerFast
    wrapped = fast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>")
    wrapped.save_pretrained(folder)
