"""A request's KV bytes and logits, bit for bit, whatever shares its steps and however its prompt is cut."""

import numpy as np
import pytest
import torch

from tests.engines.models import DEVICE, FAMILIES, answer, ask, make_engine, random_prompt, run

REPRESENTATIONS = {
    "bf16-nhd": {},
    "f32-hnd-64-tp2": {"kv_cache_dtype": "float32", "kv_layout": "HND", "block_size": 64, "tp_size": 2},
    "fp8-odd-blocks": {"kv_cache_dtype": "fp8_e4m3", "kv_layout": "BLHNC", "block_size": 24, "kv_order": "two_slots"},
    "int8-side": {"kv_cache_dtype": "int8_per_token_head", "scale_location": "side_pool", "kv_order": "packed_c"},
}
PROMPT = random_prompt(141, seed=3)
ANSWER_TOKENS = 12


def observe(engine, name, blocks, outputs):
    """Everything that must not change: tokens, logits, KV rows as stored."""
    length = len(PROMPT) + ANSWER_TOKENS - 1
    rows = engine.pool.read_tokens(blocks, length).fields
    return answer(outputs[name]), torch.stack(engine.logits[name]), rows, outputs[name][0].digest


def assert_same(got, wanted):
    assert got[0] == wanted[0]
    assert torch.equal(got[1], wanted[1])
    assert all(torch.equal(got[2][field], wanted[2][field]) for field in wanted[2])
    assert got[3] == wanted[3]


def alone(path, fields, blocks=tuple(range(40, 80))):
    engine = make_engine(path, **fields)
    engine.add(ask("a", PROMPT, blocks, max_tokens=ANSWER_TOKENS, exported=True))
    return observe(engine, "a", blocks, run(engine))


def crowded(path, fields, seed):
    """Between up to 40 others of many lengths, which come before, with and after it."""
    engine = make_engine(path, num_blocks=1024, **fields)
    chance = np.random.default_rng(seed)
    free = chance.permutation(1024).tolist()
    blocks = tuple(free.pop() for _ in range(10 + 12))

    def neighbour(number):
        length = int(chance.choice([1, 2, 3, 5, 17, 60, 127, 128, 129, 200]))
        tokens = random_prompt(length, seed=number)
        own = tuple(free.pop() for _ in range(-(-(length + 30) // engine.pool.group.block_size)))
        return ask(f"n{number}", tokens, own, max_tokens=int(chance.integers(1, 31)), exported=number % 3 == 0)

    for number in range(int(chance.integers(0, 35))):
        engine.add(neighbour(number))
    outputs = {}
    for number in range(100, 106):
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        if number == 101:
            engine.add(ask("a", PROMPT, blocks, max_tokens=ANSWER_TOKENS, exported=True))
        else:
            engine.add(neighbour(number))
    for name, more in run(engine).items():
        outputs.setdefault(name, []).extend(more)
    return observe(engine, "a", blocks, outputs)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_alone_or_in_a_crowd_is_the_same(llama, name):
    wanted = alone(llama, REPRESENTATIONS[name])
    for seed in range(2):
        assert_same(crowded(llama, REPRESENTATIONS[name], seed), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_batch_invariant(tiny_models, family):
    assert_same(crowded(tiny_models[family], {}, seed=7), alone(tiny_models[family], {}))


def test_two_threads_are_batch_invariant_too(llama):
    try:
        fields = {"num_threads": 2}
        assert_same(crowded(llama, fields, seed=5), alone(llama, fields))
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(DEVICE != "cpu", reason="off the CPU a step's size may choose the kernel")
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_a_prompt_cut_anywhere_is_the_same(llama, name):
    """Another step size cuts the prompt elsewhere; on CPU rows do not depend on it."""
    wanted = alone(llama, REPRESENTATIONS[name])
    for step_tokens in (16, 48, 160):
        assert_same(alone(llama, {**REPRESENTATIONS[name], "step_tokens": step_tokens}), wanted)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_prefill_of_an_answer_equals_its_decode(llama, name):
    tokens, logits, rows, _ = alone(llama, REPRESENTATIONS[name])
    engine = make_engine(llama, **REPRESENTATIONS[name])
    blocks = tuple(range(20))
    whole = (*PROMPT, *tokens[:-1])
    engine.add(ask("b", whole, blocks))
    outputs = run(engine)["b"]
    assert answer(outputs) == tokens[-1:]
    assert torch.equal(engine.logits["b"][0], logits[-1])
    again = engine.pool.read_tokens(blocks, len(whole)).fields
    assert all(torch.equal(again[field], rows[field]) for field in rows)


def test_a_decode_start_goes_on_where_a_prefill_ended(llama):
    """One engine prefills, its rows are copied into another's blocks, and the other goes on: the same answer."""
    wanted = alone(llama, {})
    producer, consumer = make_engine(llama), make_engine(llama)
    blocks = tuple(range(7, 20))
    producer.add(ask("p", PROMPT, blocks, max_tokens=ANSWER_TOKENS, stop_after_prefill=True))
    (first,) = run(producer)["p"]
    assert (first.prefilled, first.done, first.finish_reason) == (True, True, None)
    for source, target in zip(producer.pool.regions, consumer.pool.regions, strict=True):
        target.data.copy_(source.data)
    tokens = (*PROMPT, first.token)
    start = {"start": "decode", "computed_tokens": len(PROMPT), "sampled_before": 1}
    consumer.add(ask("c", tokens, blocks, max_tokens=ANSWER_TOKENS, **start))
    outputs = run(consumer)["c"]
    assert (first.token, *answer(outputs)) == wanted[0]
    assert torch.equal(torch.stack(consumer.logits["c"]), wanted[1][1:])
    assert [output.token_index for output in outputs] == list(range(1, ANSWER_TOKENS))
    assert outputs[-1].finish_reason == "length"


SAME_ENCODING = [
    {"kv_layout": layout, "kv_order": order, "block_size": size, "tp_size": tp}
    for layout, order, size, tp in [
        ("LBNHC", "kv_outer", 16, 1),
        ("LBHNC", "two_tensors", 64, 2),
        ("LHBNC", "packed_c", 5, 1),
        ("BLNHC", "two_slots", 128, 2),
        ("BLHNC", "kv_outer", 256, 1),
        ("BHLNC", "packed_c", 16, 2),
    ]
]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8_per_token_head"])
def test_one_encoding_is_the_same_kv_in_every_form(llama, dtype):
    wanted = alone(llama, {"kv_cache_dtype": dtype})
    for number, form in enumerate(SAME_ENCODING):
        location = ("inline", "side_pool")[number % 2]
        assert_same(alone(llama, {"kv_cache_dtype": dtype, "scale_location": location, **form}), wanted)
