"""How answers by way of a hand-off compare with one engine's alone."""

from collections.abc import Sequence
from typing import Any

from isthmus.lab.demo.reference import Alone
from isthmus.lab.demo.run import Answer, DemoResult

__all__ = ["agreement", "kv_identical", "summary", "tokens_identical", "top1"]


def tokens_identical(answers: Sequence[Answer], alone: Sequence[Alone]) -> int:
    """How many answers have exactly the reference's tokens."""
    return sum(answer.token_ids == reference.token_ids for answer, reference in zip(answers, alone, strict=True))


def kv_identical(answers: Sequence[Answer], alone: Sequence[Alone]) -> int:
    """How many hand-offs left exactly the reference's KV in the consumer's pool: read back there and digested."""
    return sum(
        answer.handoff is not None and answer.handoff["consumer_digest"] == reference.digest
        for answer, reference in zip(answers, alone, strict=True)
    )


def top1(answers: Sequence[Answer], alone: Sequence[Alone]) -> float:
    """Top-1 match rate where both had the same context: every token up to and including the first that differs.

    After the first difference the contexts differ and a comparison says nothing. The prefill's own token counts too.
    """
    matched = compared = 0
    for answer, reference in zip(answers, alone, strict=True):
        for ours, theirs in zip(answer.token_ids, reference.token_ids, strict=False):
            compared += 1
            if ours != theirs:
                break
            matched += 1
    return matched / compared if compared else 1.0


def agreement(answers: Sequence[Answer], alone: Sequence[Alone]) -> float:
    """Share of answers with exactly the reference's text."""
    return sum(a.text == r.text for a, r in zip(answers, alone, strict=True)) / max(1, len(answers))


def summary(result: DemoResult) -> dict[str, Any]:
    """The demo as one JSON object."""
    count = len(result.alone)
    tokens, kv = tokens_identical(result.lossless, result.alone), kv_identical(result.lossless, result.alone)
    return {
        "prompts": count,
        "lossless_identical": tokens == kv == count,
        "lossless_tokens_identical": tokens,
        "lossless_kv_identical": kv,
        "lossy_top1": top1(result.lossy, result.alone),
        "lossy_agreement": agreement(result.lossy, result.alone),
        "blocks_held_after": result.blocks_held_after,
        "handoffs": [
            {**answer.handoff, "ttft_ms": answer.ttft_ms}
            for answer in (*result.lossless, *result.lossy)
            if answer.handoff is not None
        ],
        "answers": [
            {"prompt": a.prompt, "alone": r.text, "lossless": a.text, "lossy": b.text}
            for a, b, r in zip(result.lossless, result.lossy, result.alone, strict=True)
        ],
        "workers": result.workers,
        "pairs": result.pairs,
    }
