"""Prefixes are kept for later prompts between real processes: less is computed, less crosses, answers are the same."""

import asyncio

import pytest

from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import generate
from isthmus.handoff.request import Sampling
from tests.engines.models import random_prompt
from tests.serve.asking import ask, finish

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


def keeping(retention: str) -> dict:
    return {"prefix_caching": {"enabled": True, "retention": retention}}


KEEPING = (
    {"name": "prefill", "role": "prefill", "block_size": 16, "num_blocks": 40, **keeping("cost")},
    {"name": "decode", "role": "decode", "kv_layout": "HND", "block_size": 64, "tp_size": 3, "num_blocks": 14}
    | keeping("lru"),
)
HOST = 64 << 20
BEHIND = tuple(
    pool | {"prefix_caching": {"retention": "lru", "residency": "nearest_that_pays", "host_bytes_max": HOST}}
    for pool in KEEPING
)
SYSTEM = random_prompt(200, seed=8)
TOKENS = 6


@pytest.fixture(scope="module")
def alone(smollm2):
    """What one engine answers that keeps nothing."""

    def answer(*prompts: tuple[int, ...]) -> list[list[int]]:
        engine = EmbeddedEngine.create(EmbeddedConfig(model=smollm2, num_blocks=256))
        answers = generate(engine, prompts, Sampling(max_tokens=TOKENS, ignore_eos=True))
        return [list(found.token_ids) for found in answers]

    return answer


def counter(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


async def test_a_system_prompt_is_computed_once_and_crosses_once(fleets, alone):
    fleet = await fleets.use(KEEPING)
    model = await fleet.model()
    prompts = [(*SYSTEM, *random_prompt(20, seed=seed)) for seed in range(5)]
    wanted = alone(*prompts)
    for number, prompt in enumerate(prompts):
        stream = ask(fleet.client, model, number, prompt, max_tokens=TOKENS)
        await finish([stream])
        assert stream.token_ids == wanted[number]
    assert await fleet.held_blocks() == 0  # I8: what is retained is not held
    reports = (await fleet.client.get("/v1/isthmus/handoffs")).json()["installed"]
    assert [report["reused_tokens"] for report in reports] == [0, 192, 192, 192, 192]
    assert [report["have_tokens"] for report in reports] == [0, 192, 192, 192, 192]
    whole, *others = (report["wire_bytes"] for report in reports)
    assert others == [whole * 2 // 14] * 4
    text = (await fleet.client.get("/metrics")).text
    assert counter(text, "isthmus:prefix_cache_queries_total") == 2 * 5 * 220
    assert counter(text, "isthmus:prefix_cache_hits_total") == 2 * 4 * 192
    ledgers = await fleet.ledgers()
    assert ledgers["prefill-0"]["prefix_cache"]["hits"] == 4
    assert ledgers["decode-0"]["blocks"]["retained"] == ledgers["decode-0"]["prefix_cache"]["blocks"] == 3


async def test_many_at_once_on_small_pools_wait_and_evict_and_are_all_answered_exactly(fleets, alone):
    fleet = await fleets.use(KEEPING)
    model = await fleet.model()
    systems = [random_prompt(130, seed=100 + seed) for seed in range(4)]
    prompts = [(*systems[number % 4], *random_prompt(5 + number, seed=number)) for number in range(12)]
    wanted = alone(*prompts)
    streams = [ask(fleet.client, model, number, prompt, max_tokens=TOKENS) for number, prompt in enumerate(prompts)]
    await finish(streams, seconds=180)
    assert [stream.status for stream in streams] == [200] * len(prompts)
    assert [stream.token_ids for stream in streams] == wanted
    assert await fleet.held_blocks() == 0
    for ledger in (await fleet.ledgers()).values():
        assert ledger["prefix_cache"]["evicted_room"] > 0
        assert ledger["prefix_cache"]["pinned"] == 0


async def test_a_worker_that_was_killed_comes_back_without_prefixes_and_answers_the_same(fleets, alone):
    fleet = await fleets.use(KEEPING)
    model = await fleet.model()
    prompt = (*SYSTEM, *random_prompt(20, seed=0))
    (wanted,) = alone(prompt)
    for name in ("prefill-0", "decode-0"):
        await fleet.kill(name)
        await fleet.start(name)
        stream = ask(fleet.client, model, 0, prompt, max_tokens=TOKENS)
        await finish([stream])
        assert stream.token_ids == wanted
    assert await fleet.held_blocks() == 0


async def test_requests_that_are_hung_up_on_leave_no_prefix_pinned(fleets):
    fleet = await fleets.use(KEEPING)
    model = await fleet.model()
    streams = [
        ask(fleet.client, model, number, (*SYSTEM, *random_prompt(9, seed=number)), max_tokens=60)
        for number in range(6)
    ]
    await asyncio.gather(*(stream.has(2) for stream in streams[:2]))
    for stream in streams:
        stream.hang_up()
    await finish(streams)
    assert await fleet.held_blocks() == 0
    for ledger in (await fleet.ledgers()).values():
        assert ledger["prefix_cache"]["pinned"] == 0


async def test_what_was_pushed_out_of_small_pools_comes_back_from_host_memory(fleets, alone):
    fleet = await fleets.use(BEHIND)
    model = await fleet.model()
    prompts = [random_prompt(220, seed=200 + seed) for seed in range(5)]
    prompts.append(prompts[0])
    wanted = alone(*prompts)
    for number, prompt in enumerate(prompts):
        stream = ask(fleet.client, model, number, prompt, max_tokens=TOKENS)
        await finish([stream])
        assert stream.token_ids == wanted[number]
    report = (await fleet.client.get("/v1/isthmus/handoffs")).json()["installed"][-1]
    assert (report["reused_tokens"], report["have_tokens"]) == (13 * 16, 3 * 64)
    assert await fleet.held_blocks() == 0
    for ledger in (await fleet.ledgers()).values():
        row = ledger["prefix_cache"]
        assert 0 < row["host_loaded"] < row["host_written"]
        assert 0 < row["host_bytes"] <= HOST
        assert (row["pool_discarded"], row["host_discarded"], row["host_failed"]) == (0, 0, 0)
