"""One engine alone: what every hand-off is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import generate
from isthmus.engines.text import load_tokenizer
from isthmus.handoff.request import Sampling

__all__ = ["Alone", "answer_alone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """An answer, and the logical digest of the prompt's KV, in hex."""

    text: str
    token_ids: tuple[int, ...]
    digest: str


def answer_alone(model: Path, prompts: Sequence[str], max_tokens: int) -> list[Alone]:
    """Greedy answers of one engine with bf16 KV that prefills and decodes by itself."""
    engine = EmbeddedEngine.create(EmbeddedConfig(model=model, num_blocks=2048))
    tokenizer = load_tokenizer(model)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, tokenize=True
        )["input_ids"]
        for prompt in prompts
    ]
    answers = generate(engine, chats, Sampling(max_tokens=max_tokens), tokenizer=tokenizer)
    return [Alone(text=answer.text, token_ids=answer.token_ids, digest=f"{answer.digest:016x}") for answer in answers]
