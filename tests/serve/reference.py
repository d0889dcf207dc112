"""What one engine alone answers, greedily: what every answer through a hand-off must be, token by token."""

from dataclasses import dataclass
from pathlib import Path

from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import generate
from isthmus.engines.text import load_tokenizer
from isthmus.handoff.request import Sampling

__all__ = ["ANSWER_TOKENS", "Reference", "answer_alone"]

ANSWER_TOKENS = 32
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a land far away,",
    "The three primary colours are",
    "A prime number is",
    "Water boils at",
    "My favourite recipe for pancakes begins with",
    "In the year 1969, two astronauts",
    "The opposite of hot is",
    "Dear Sir or Madam, I am writing to",
    "def fibonacci(n):",
    "The lighthouse keeper climbed the stairs and",
    "Monday, Tuesday, Wednesday,",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A prompt, as text and token ids, and its greedy answer of `ANSWER_TOKENS` tokens."""

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def answer_alone(model: Path) -> tuple[Reference, ...]:
    """One engine with bf16 KV that prefills and decodes by itself."""
    engine = EmbeddedEngine.create(EmbeddedConfig(model=model, num_blocks=256))
    tokenizer = load_tokenizer(model)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    answers = generate(engine, prompts, Sampling(max_tokens=ANSWER_TOKENS, ignore_eos=True))
    return tuple(
        Reference(text=text, prompt=prompt, answer=answer.token_ids)
        for text, prompt, answer in zip(TEXTS, prompts, answers, strict=True)
    )
