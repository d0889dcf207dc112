"""The engine computes what transformers' eager attention computes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engines.models import FAMILIES, ask, make_engine, random_prompt, run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 7, 150])
def test_logits_agree_with_eager_transformers_in_prefill_and_decode(tiny_models, family, length):
    engine = make_engine(tiny_models[family], kv_cache_dtype="float32")
    prompt = random_prompt(length, seed=length)
    engine.add(ask("a", prompt, tuple(range(5, 20)), max_tokens=6))
    outputs = run(engine)["a"]
    tokens = [*prompt, *(output.token for output in outputs)]
    eager = AutoModelForCausalLM.from_pretrained(tiny_models[family], attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        wanted = eager(torch.tensor([tokens[:-1]])).logits[0, length - 1 :]
    got = torch.stack(engine.logits["a"])
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4)


def test_a_scaled_rope_agrees_with_eager_transformers(tmp_path):
    from tests.engines.models import save_tiny

    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    path = save_tiny("llama", tmp_path / "scaled", rope_parameters=scaling)
    engine = make_engine(path, kv_cache_dtype="float32")
    prompt = random_prompt(40, seed=1)
    engine.add(ask("a", prompt, (3, 1, 2)))
    run(engine)
    eager = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        wanted = eager(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(engine.logits["a"][0], wanted, rtol=2e-4, atol=2e-4)
    rope = engine.model.identity.rope
    assert (rope.theta, rope.rope_dim) == (5000.0, 16)
    assert len(rope.scaling_digest) == 64
