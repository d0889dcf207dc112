"""A prefill that begins behind a prefix computes what it would have computed without one, bit for bit."""

import pytest
import torch

from isthmus.core.ids import Digest
from tests.engines.models import answer, ask, make_engine, random_prompt, run

PROMPT = random_prompt(150, seed=21)
BLOCK_SIZE = 16
BLOCKS = tuple(range(40, 50))
PREFIX = BLOCKS[:6]


def rows(engine, blocks, length):
    return engine.pool.read_tokens(blocks, length).fields


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3", "int8_per_token_head"])
@pytest.mark.parametrize("step_tokens", [16, 64])
@pytest.mark.parametrize("computed", [1, 15, 16, 17, 64, 90, 96])
def test_kv_logits_and_digests_do_not_depend_on_where_a_prefill_begins(llama, dtype, step_tokens, computed):
    engine = make_engine(llama, kv_cache_dtype=dtype, step_tokens=step_tokens)
    whole = tuple(range(10))
    engine.add(ask("whole", PROMPT, whole, max_tokens=6, exported=True))
    (first, *_) = run(engine)["whole"]
    # The prefix comes of another prompt that begins alike, in blocks of its own, and the rest goes behind it.
    engine.add(ask("other", (*PROMPT[:96], 7, 8, 9), (*PREFIX, 30), stop_after_prefill=True))
    run(engine)
    before = rows(engine, PREFIX, computed)
    engine.add(ask("crowd", random_prompt(60, seed=5), (20, 21, 22, 23, 24), max_tokens=9))
    engine.add(ask("behind", PROMPT, BLOCKS, max_tokens=6, exported=True, computed_tokens=computed))
    outputs = run(engine)["behind"]
    found, wanted = rows(engine, BLOCKS, 150), rows(engine, whole, 150)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(rows(engine, PREFIX, computed)[name], before[name]) for name in before)
    assert all(map(torch.equal, engine.logits["behind"], engine.logits["whole"]))
    assert len(answer(outputs)) == 6
    assert first.token_digests[computed:] == outputs[0].token_digests
    assert outputs[0].digest == Digest(sum(first.token_digests[computed:]) % (1 << 64))
    assert (outputs[0].digest_range.start, outputs[0].digest_range.stop) == (computed, 150)
