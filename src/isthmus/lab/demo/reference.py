"""One engine alone: what every hand-off is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import Piece, stream
from isthmus.engines.text import load_tokenizer
from isthmus.handoff.request import Sampling

__all__ = ["Alone", "answer_alone"]

SAID_EVERY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """An answer, and the logical digest of the prompt's KV, in hex."""

    text: str
    token_ids: tuple[int, ...]
    digest: str


def answer_alone(model: Path, prompts: Sequence[str], max_tokens: int, say: Callable[[str], None]) -> list[Alone]:
    """Greedy answers of one engine with bf16 KV that prefills and decodes by itself."""
    engine = EmbeddedEngine.create(EmbeddedConfig(model=model, num_blocks=2048))
    tokenizer = load_tokenizer(model)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, tokenize=True
        )["input_ids"]
        for prompt in prompts
    ]
    pieces: list[list[Piece]] = [[] for _ in prompts]
    answered = 0
    for piece in stream(engine, chats, Sampling(max_tokens=max_tokens), tokenizer=tokenizer):
        pieces[piece.index].append(piece)
        if piece.finish_reason is not None:
            answered += 1
            if answered % SAID_EVERY == 0 or answered == len(prompts):
                say(f"one engine alone: {answered} of {len(prompts)} answered")
    return [_alone(own) for own in pieces]


def _alone(pieces: Sequence[Piece]) -> Alone:
    digests = [piece.digest for piece in pieces if piece.digest is not None]
    return Alone(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(piece.token for piece in pieces if piece.token is not None),
        digest=f"{digests[0]:016x}" if digests else "",
    )
