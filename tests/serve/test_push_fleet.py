"""Fleets in which prefill workers write: answers are exact, by both transports, and survive a killed writer."""

import asyncio

import pytest

from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import generate
from isthmus.handoff.request import Sampling
from isthmus.ownership.protocol.states import TriggerMode
from tests.engines.models import random_prompt
from tests.serve.asking import ask, finish
from tests.serve.fleet import Fleet
from tests.serve.shapes import deployment_of

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

POOLS = (
    {"name": "near", "role": "prefill", "block_size": 16, "num_blocks": 256},
    {"name": "far", "role": "prefill", "block_size": 32, "num_blocks": 128, "tp_size": 2, "transports": ["tcp"]},
    {"name": "decode", "role": "decode", "kv_layout": "HND", "block_size": 8, "num_blocks": 512},
)
TOKENS = 8


def answers_alone(model) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts of several steps and blocks, with what one engine alone answers."""
    engine = EmbeddedEngine.create(EmbeddedConfig(model=model, num_blocks=512))
    prompts = [random_prompt(length, seed=length) for length in range(20, 400, 35)]
    answers = generate(engine, prompts, Sampling(max_tokens=TOKENS, ignore_eos=True))
    return [(prompt, answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]


async def ask_all(fleet, wanted, meanwhile=None) -> None:
    model = await fleet.model()
    streams = [ask(fleet.client, model, i, prompt, max_tokens=TOKENS) for i, (prompt, _) in enumerate(wanted)]
    if meanwhile is not None:
        await streams[0].has(1)
        await meanwhile()
    await finish(streams, seconds=180)
    for stream, (_, answer) in zip(streams, wanted, strict=True):
        assert (stream.status, stream.token_ids) == (200, list(answer)), stream
    assert await fleet.held_blocks() == 0


@pytest.mark.parametrize("mode", [TriggerMode.PUSH, TriggerMode.SEND])
async def test_a_fleet_whose_prefill_workers_write_answers_exactly_and_outlives_one_of_them(
    fleets, other_model, tmp_path, mode
):
    await fleets.stop()  # one fleet at a time
    raw = deployment_of(POOLS, other_model) | {"handoff_mode": str(mode)}
    raw["gateway"]["heartbeat_timeout_ms"] = 20_000  # a killed process is noticed by its connection
    async with Fleet(raw, tmp_path) as fleet:
        await fleet.heal()
        wanted = await asyncio.to_thread(answers_alone, other_model)
        await ask_all(fleet, wanted)
        installed = (await fleet.client.get("/v1/isthmus/handoffs")).json()["installed"]
        assert {(report["producer"], report["transport"]) for report in installed} == {
            ("near-0", "shm"),
            ("far-0", "tcp"),
        }
        # Whatever the killed worker was writing, it writes no more, and the kernel says so.
        await ask_all(fleet, wanted, meanwhile=lambda: fleet.kill("near-0"))
