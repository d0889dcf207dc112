"""Run the demo: start the deployment, ask, collect what was handed over, ask one engine alone, compare."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from isthmus.core.clock import SystemClock
from isthmus.core.errors import Lost
from isthmus.core.units import Duration
from isthmus.engines.embedded.shape import read_model_shape
from isthmus.lab.demo.deployment import LOSSLESS, LOSSY, demo_config
from isthmus.lab.demo.reference import Alone, answer_alone
from isthmus.serve.launcher import Deployment

__all__ = ["Answer", "DemoResult", "run_demo"]

READY_DEADLINE = Duration.of_seconds(300)
ASKED_AT_ONCE = 4
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer through a hand-off."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    ttft_ms: float
    handoff: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Everything the demo saw."""

    workers: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    lossless: list[Answer]
    lossy: list[Answer]
    alone: list[Alone]
    blocks_held_after: int


async def run_demo(model: Path, prompts: Sequence[str], *, max_tokens: int, say: Say) -> DemoResult:
    """Answer every prompt by way of both decode workers, and by one engine alone.

    Raises:
        Lost: a process did not come up, or a request was not answered.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-demo-") as name:
        folder = Path(name)
        config, path = demo_config(model, folder, heads=read_model_shape(model).num_kv_heads)
        say("starting a gateway, a prefill worker and two decode workers")
        async with Deployment(config, path, folder / "logs", SystemClock()) as deployment:
            await deployment.ready(READY_DEADLINE)
            async with httpx.AsyncClient(base_url=deployment.url, timeout=600) as client:
                fleet = (await client.get("/v1/isthmus/workers")).json()
                served = (await client.get("/v1/models")).json()["data"][0]["id"]
                lossless = await _ask_all(client, served, prompts, LOSSLESS, max_tokens, say)
                lossy = await _ask_all(client, served, prompts, LOSSY, max_tokens, say)
                held = await _held_when_quiet(client)
        alone = await asyncio.to_thread(answer_alone, model, prompts, max_tokens, say)
    return DemoResult(
        workers=fleet["workers"],
        pairs=fleet["pairs"],
        lossless=lossless,
        lossy=lossy,
        alone=alone,
        blocks_held_after=held,
    )


async def _ask_all(
    client: httpx.AsyncClient, model: str, prompts: Sequence[str], consumer: str, max_tokens: int, say: Say
) -> list[Answer]:
    """Every prompt, a few at once, so that requests share batches but do not mainly wait for their turn."""
    turn, answered = asyncio.Semaphore(ASKED_AT_ONCE), 0

    async def ask(prompt: str) -> tuple[str, str, tuple[int, ...], float]:
        nonlocal answered
        async with turn:
            found = await _ask(client, model, prompt, consumer, max_tokens)
        answered += 1
        if answered % ASKED_AT_ONCE == 0 or answered == len(prompts):
            say(f"{consumer}: {answered} of {len(prompts)} answered")
        return found

    asked = await asyncio.gather(*(ask(prompt) for prompt in prompts))
    reports = {
        report["request_id"]: report for report in (await client.get("/v1/isthmus/handoffs")).json()["installed"]
    }
    return [
        Answer(prompt=prompt, text=text, token_ids=tokens, ttft_ms=ttft, handoff=reports.get(request_id))
        for prompt, (request_id, text, tokens, ttft) in zip(prompts, asked, strict=True)
    ]


async def _ask(
    client: httpx.AsyncClient, model: str, prompt: str, consumer: str, max_tokens: int
) -> tuple[str, str, tuple[int, ...], float]:
    """One streamed chat: (request id, text, token ids, TTFT in ms)."""
    clock = SystemClock()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    start, first = clock.now(), None
    request_id, text = "", ""
    tokens: list[int] = []
    headers = {"x-isthmus-consumer": consumer}
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            raise Lost(f"demo: the gateway answered {response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise Lost(f"demo: {event['error']['message']}")
            request_id = event["id"]
            for choice in event["choices"]:
                first = first or clock.now()
                text += choice["delta"].get("content") or ""
                tokens += choice.get("token_ids") or []
    return request_id, text, tuple(tokens), ((first or clock.now()) - start) / 1e6


async def _held_when_quiet(client: httpx.AsyncClient) -> int:
    """Blocks held once no hand-off is live: the last answer's blocks are freed a moment after its last token."""
    clock = SystemClock()
    for _ in range(100):
        workers = (await client.get("/v1/isthmus/handoffs")).json()["workers"]
        if not any(worker["live"] for worker in workers.values()):
            break
        await clock.sleep(Duration.of_ms(50))
    return sum(worker["blocks"]["held"] for worker in workers.values())
