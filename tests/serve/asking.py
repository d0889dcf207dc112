"""Streamed completions, token by token, that a test can watch and hang up on."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Stream", "ask", "finish"]


@dataclass(slots=True, kw_only=True)
class Stream:
    """One request as its client sees it."""

    prompt: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    task: "asyncio.Task[None] | None" = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def has(self, tokens: int, *, seconds: float = 60) -> None:
        """Return once so many tokens have come."""
        async with asyncio.timeout(seconds):
            while len(self.token_ids) < tokens:
                assert self.task is not None
                assert not self.task.done(), f"ended with {len(self.token_ids)} tokens: {self}"
                self._moved.clear()
                await self._moved.wait()

    def hang_up(self) -> None:
        """Close the connection."""
        assert self.task is not None
        self.task.cancel()

    def hear(self, event: dict[str, Any]) -> None:
        """One event of the stream."""
        self.error = event.get("error", self.error)
        for choice in event.get("choices", ()):
            self.token_ids += choice.get("token_ids") or []
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        self._moved.set()


def ask(
    client: httpx.AsyncClient,
    model: str,
    prompt: int,
    token_ids: Sequence[int],
    *,
    max_tokens: int,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> Stream:
    """Start a greedy streamed completion. `prompt` is the number of the reference's prompt."""
    stream = Stream(prompt=prompt)
    body = {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        **fields,
    }
    stream.task = asyncio.create_task(_read(client, body, headers or {}, stream))
    return stream


async def _read(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], stream: Stream) -> None:
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        stream.status, stream.headers = response.status_code, dict(response.headers)
        if response.status_code != 200:
            stream.error = json.loads(await response.aread())["error"]
            return
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                stream.done = True
            elif data:
                stream.hear(json.loads(data))


async def finish(streams: Sequence[Stream], *, seconds: float = 90) -> None:
    """Wait until all have ended, however; a request that is never answered fails here."""
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(stream.task for stream in streams if stream.task), return_exceptions=True)
