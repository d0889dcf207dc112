"""Scheduling, ends, refusals and digests of the engine's synchronous core."""

import pytest
import torch

from isthmus.core.errors import BadInput, CapacityExceeded, ContextTooLong, Lost
from isthmus.core.ids import Digest
from isthmus.engines.embedded.generate import generate, stream
from isthmus.engines.embedded.request import EngineRequest
from isthmus.engines.embedded.scheduler import Active, Scheduler
from isthmus.handoff.request import Sampling
from isthmus.kernels.torch_digest import fold, row_digests
from isthmus.state.representation import FIELD_NAMES
from tests.engines.models import VOCABULARY, answer, ask, make_engine, random_prompt, run


def active(name: str, length: int, **fields) -> Active:
    return Active.of(ask(name, tuple(range(3, 3 + length)), (0,), **fields))


def step(scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    return {chunk.active.request.request_id: (chunk.start, chunk.stop) for chunk in scheduler.next_step()}


def test_more_decodes_than_rows_take_turns():
    scheduler = Scheduler(16)
    for number in range(40):
        scheduler.add(active(f"d{number}", 5, start="decode", computed_tokens=4))
    seen = [name for _ in range(5) for name in step(scheduler)]
    assert {seen.count(f"d{number}") for number in range(40)} == {2}


def test_prefill_fills_what_decode_leaves_first_come_first_served():
    scheduler = Scheduler(16)
    scheduler.add(active("d", 5, start="decode", computed_tokens=4))
    scheduler.add(active("p", 10))
    scheduler.add(active("q", 30, computed_tokens=2))
    assert step(scheduler) == {"d": (4, 5), "p": (0, 10), "q": (2, 7)}


def test_a_prefill_is_not_starved_by_decodes():
    scheduler = Scheduler(16)
    for number in range(40):
        scheduler.add(active(f"d{number}", 5, start="decode", computed_tokens=4))
    scheduler.add(active("p", 10))
    chosen = step(scheduler)
    assert chosen["p"] == (0, 4)
    assert len(chosen) == 13


def test_a_removed_request_is_in_no_later_step():
    scheduler = Scheduler(16)
    scheduler.add(active("p", 10))
    scheduler.add(active("d", 5, start="decode", computed_tokens=4))
    scheduler.remove("p")
    scheduler.remove("d")
    scheduler.remove("never seen")
    assert step(scheduler) == {}
    assert "p" not in scheduler


def test_an_abort_frees_blocks_at_once_for_another_request(llama):
    engine = make_engine(llama)
    prompt = random_prompt(50, seed=4)
    blocks = (9, 3, 5, 4)
    engine.add(ask("a", prompt, blocks, max_tokens=9))
    engine.step()
    engine.abort("a")
    assert not engine.holds("a")
    engine.add(ask("b", prompt, blocks, max_tokens=9))
    alone = make_engine(llama)
    alone.add(ask("b", prompt, blocks, max_tokens=9))
    assert answer(run(engine)["b"]) == answer(run(alone)["b"])


def test_an_answer_ends_at_eos_or_at_its_length(llama):
    engine = make_engine(llama)
    prompt = random_prompt(9, seed=0)
    (free,) = generate(engine, [prompt], Sampling(max_tokens=8, ignore_eos=True))
    assert (free.finish_reason, len(free.token_ids)) == ("length", 8)
    object.__setattr__(engine.model, "eos_token_ids", frozenset({free.token_ids[3]}))
    stop_at = free.token_ids.index(free.token_ids[3]) + 1
    (ended,) = generate(engine, [prompt], Sampling(max_tokens=8))
    assert (ended.finish_reason, ended.token_ids) == ("stop", free.token_ids[:stop_at])


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"token_ids": ()}, BadInput, "token_ids"),
        ({"token_ids": (5, VOCABULARY)}, BadInput, "token_ids"),
        ({"token_ids": (5, -1)}, BadInput, "token_ids"),
        ({"block_ids": (1, 1)}, BadInput, "block_ids"),
        ({"block_ids": (1, 256)}, BadInput, "block_ids"),
        ({"block_ids": (1,)}, BadInput, "block_ids"),
        ({"computed_tokens": 20}, BadInput, "computed_tokens"),
        ({"start": "decode", "computed_tokens": 3}, BadInput, "computed_tokens"),
        ({"sampled_before": 4}, BadInput, "sampled_before"),
        ({"sampling": Sampling(max_tokens=600)}, ContextTooLong, "max_tokens"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_field(llama, changes, error, field):
    engine = make_engine(llama)
    fields = {
        "request_id": "a",
        "token_ids": random_prompt(20, seed=1),
        "sampling": Sampling(max_tokens=4),
        "block_ids": (1, 2),
    }
    with pytest.raises(error, match=field) as caught:
        engine.add(EngineRequest(**(fields | changes)))
    assert caught.value.field == field
    assert not engine.has_work


def test_an_id_in_use_is_refused(llama):
    engine = make_engine(llama)
    engine.add(ask("a", (5,), (1,)))
    with pytest.raises(BadInput, match="held already"):
        engine.add(ask("a", (5,), (2,)))


def test_logits_that_are_not_finite_end_the_request_and_no_other(llama):
    """A decode start on blocks that nobody filled: they hold NaN here."""
    engine = make_engine(llama)
    engine.add(ask("torn", random_prompt(20, seed=1), (1, 2), start="decode", computed_tokens=19))
    engine.add(ask("whole", random_prompt(20, seed=2), (3, 4)))
    outputs = run(engine)
    assert isinstance(outputs["torn"][0].error, Lost)
    assert outputs["torn"][0].done
    assert outputs["whole"][0].error is None


@pytest.mark.parametrize("dtype", ["bfloat16", "int8_per_token_head"])
def test_the_digest_is_that_of_the_rows_in_the_pool(llama, dtype):
    engine = make_engine(llama, kv_cache_dtype=dtype, tp_size=2, kv_layout="HND")
    prompt, blocks = random_prompt(75, seed=1), (8, 2, 4, 5, 1)
    engine.add(ask("other", random_prompt(30, seed=2), (20, 21), max_tokens=3))
    engine.add(ask("a", prompt, blocks, exported=True, stop_after_prefill=True, max_tokens=5))
    (output,) = run(engine)["a"]
    rows = engine.pool.read_tokens(blocks, len(prompt)).fields
    total = sum(
        fold(
            row_digests(
                raw, field_index=FIELD_NAMES.index(name), layers=range(raw.shape[0]), token_start=0, head_start=0
            )
        )
        for name, raw in rows.items()
    )
    assert output.digest == Digest(total % (1 << 64))
    assert (output.digest_range.start, output.digest_range.stop) == (0, 75)


def test_a_sampled_answer_goes_on_elsewhere_as_if_it_had_not_moved(llama):
    engine = make_engine(llama)
    prompt = random_prompt(30, seed=6)
    sampling = Sampling(temperature=1.3, top_p=0.95, seed=11, max_tokens=10, ignore_eos=True)
    (whole,) = generate(engine, [prompt], sampling)
    known = whole.token_ids[:4]
    engine.add(
        EngineRequest(
            request_id="again", token_ids=(*prompt, *known), sampling=sampling, block_ids=(1, 2, 3), sampled_before=4
        )
    )
    assert answer(run(engine)["again"]) == whole.token_ids[4:]


def test_generate_answers_more_prompts_than_fit_the_pool_at_once(llama):
    engine = make_engine(llama, num_blocks=5)
    prompts = [random_prompt(length, seed=length) for length in (3, 40, 20, 33, 1, 60)]
    together = generate(engine, prompts, Sampling(max_tokens=4, ignore_eos=True), keep_kv=True)
    for prompt, got in zip(prompts, together, strict=True):
        (alone,) = generate(engine, [prompt], Sampling(max_tokens=4, ignore_eos=True), keep_kv=True)
        assert (got.prompt, got.token_ids, got.digest) == (prompt, alone.token_ids, alone.digest)
        assert got.kv.fields["key"].shape[:3] == (2, len(prompt) + 3, 2)
        assert all(torch.equal(got.kv.fields[name], alone.kv.fields[name]) for name in got.kv.fields)


def test_a_stream_that_is_left_lets_go_of_its_requests(llama):
    engine = make_engine(llama)
    pieces = stream(engine, [random_prompt(5, seed=1)], Sampling(max_tokens=50, ignore_eos=True))
    next(pieces)
    pieces.close()
    assert not engine.has_work


def test_a_prompt_larger_than_the_pool_is_refused(llama):
    engine = make_engine(llama, num_blocks=2)
    with pytest.raises(CapacityExceeded, match="wanted 3"):
        generate(engine, [random_prompt(40, seed=1)], Sampling(max_tokens=2))
