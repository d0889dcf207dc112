"""The real model: prepared once, started in seconds, answering, and batch-invariant at its real sizes."""

from pathlib import Path

import pytest
import torch

from isthmus.core.clock import SystemClock
from isthmus.engines.embedded.generate import generate
from isthmus.engines.embedded.prepare import SMOLLM2_NAME, prepare_smollm2
from isthmus.engines.text import load_tokenizer
from isthmus.handoff.request import Sampling
from tests.engines.models import ask, make_engine, run

pytestmark = pytest.mark.model
CACHE = Path(__file__).parents[2] / ".cache" / "isthmus"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return prepare_smollm2(CACHE)


def chat(tokenizer, text: str) -> tuple[int, ...]:
    messages = [{"role": "user", "content": text}]
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def test_it_knows_the_capital_of_france_and_what_it_is(smollm2):
    engine, tokenizer = make_engine(smollm2), load_tokenizer(smollm2)
    prompt = chat(tokenizer, "What is the capital of France?")
    (whole,) = generate(engine, [prompt], Sampling(max_tokens=20), tokenizer=tokenizer)
    assert (whole.text, whole.finish_reason) == ("The capital of France is Paris.", "stop")
    (cut,) = generate(engine, [prompt], Sampling(max_tokens=20), tokenizer=tokenizer, stop=[" Par"])
    assert (cut.text, cut.finish_reason) == ("The capital of France is", "stop")
    assert engine.model.identity.lineage.base_model == SMOLLM2_NAME


def test_a_second_start_takes_seconds(smollm2):
    make_engine(smollm2, num_blocks=16)
    clock = SystemClock()
    start = clock.now()
    make_engine(smollm2, num_blocks=16)
    assert (clock.now() - start) / 1e9 < 10


def test_real_sizes_are_batch_invariant(smollm2):
    """Prefilled among others, decoded among others, and prefilled again alone in another form: the same bits."""
    tokenizer = load_tokenizer(smollm2)
    tokens = tuple(tokenizer.encode("In the beginning there was a narrow strip of land between two seas. " * 10))
    engine = make_engine(smollm2)
    for number in range(5):
        engine.add(
            ask(f"n{number}", tokens[: 1 + 9 * number], (100 + number, 110 + number, 120 + number), max_tokens=7)
        )
    engine.add(ask("a", tokens, tuple(range(12)), max_tokens=5, exported=True))
    outputs = run(engine)["a"]
    answer = tuple(output.token for output in outputs)
    alone = make_engine(smollm2, kv_layout="HND", block_size=64, kv_order="packed_c", tp_size=3)
    whole = (*tokens, *answer[:-1])
    alone.add(ask("b", whole, (3, 1, 2)))
    run(alone)
    assert torch.equal(alone.logits["b"][0], engine.logits["a"][-1])
    rows = engine.pool.read_tokens(tuple(range(12)), len(whole)).fields
    again = alone.pool.read_tokens((3, 1, 2), len(whole)).fields
    assert all(torch.equal(rows[name], again[name]) for name in rows)
