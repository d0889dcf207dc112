"""The load: greedy requests, streamed and whole, held against what one engine alone answers.

Every request ends in one of: its tokens, right; a clear error, with no wrong token before it; its client's own hanging
up; or its connection cut, which only a gateway's death excuses. Anything else is a finding: a wrong answer, or none.
"""

import asyncio
import enum
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.lab.chaos.chance import Chance
from isthmus.lab.chaos.model import Reference

__all__ = ["Answered", "Ending", "Load"]

STREAMED, HUNG_UP = 0.6, 0.04
PAUSE = Duration.of_ms(250)


class Ending(enum.StrEnum):
    """How a request ended."""

    RIGHT = "right"
    ERROR = "error"
    HUNG_UP = "hung_up"
    CUT = "cut"
    WRONG = "wrong"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request: which prompt, how many tokens were wanted and came, how it ended, and why, where not well."""

    prompt: int
    wanted: int
    came: int
    began: Instant
    ended: Instant
    ending: Ending
    reason: str = ""


@dataclass(slots=True)
class _Heard:
    """What has come of one answer so far."""

    tokens: list[int] = field(default_factory=list)
    error: str = ""
    finished: bool = False


class _HungUp(Exception):
    """We closed the connection ourselves."""


class Load:
    """`concurrency` clients, each with one request at a time, from `start` to `stop`."""

    def __init__(
        self,
        url: str,
        references: Sequence[Reference],
        clock: Clock,
        chance: Chance,
        *,
        concurrency: int,
        answered_within: Duration,
    ) -> None:
        """`answered_within`: a request that has ended in nothing by then is unanswered."""
        self._references = references
        self._clock = clock
        self._chance = chance
        self._concurrency = concurrency
        self._answered_within = answered_within
        self._client = httpx.AsyncClient(
            base_url=url, timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
        )
        self._clients: list[asyncio.Task[None]] = []
        self._stopping = False
        self._model = ""
        self.answered: list[Answered] = []

    async def start(self) -> None:
        self._model = (await self._client.get("/v1/models")).json()["data"][0]["id"]
        self._clients = [asyncio.create_task(self._client_loop()) for _ in range(self._concurrency)]

    async def stop(self) -> None:
        """No new requests; returns when every one under way has ended."""
        self._stopping = True
        await asyncio.gather(*self._clients)
        await self._client.aclose()

    def counts(self) -> dict[Ending, int]:
        counted = Counter(each.ending for each in self.answered)
        return {ending: counted[ending] for ending in Ending}

    async def _client_loop(self) -> None:
        while not self._stopping:
            ended = await self._ask()
            self.answered.append(ended)
            if ended.ending in (Ending.CUT, Ending.ERROR):
                await self._clock.sleep(PAUSE)

    async def _ask(self) -> Answered:
        number = self._chance.below(len(self._references))
        reference = self._references[number]
        wanted = 1 + self._chance.below(len(reference.answer))
        hang_up_after = self._chance.below(wanted) if self._chance.happens(HUNG_UP) else None
        body = {
            "model": self._model,
            "prompt": list(reference.prompt),
            "max_tokens": wanted,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": hang_up_after is not None or self._chance.happens(STREAMED),
        }
        began, heard = self._clock.now(), _Heard()
        ending, reason = await self._outcome(body, heard, hang_up_after)
        if tuple(heard.tokens) != reference.answer[: len(heard.tokens)] or len(heard.tokens) > wanted:
            ending, reason = Ending.WRONG, f"got {heard.tokens}, wanted {list(reference.answer[:wanted])}; {reason}"
        elif ending is Ending.RIGHT and len(heard.tokens) != wanted:
            ending, reason = Ending.WRONG, f"finished after {len(heard.tokens)} tokens, wanted {wanted}"
        return Answered(
            prompt=number,
            wanted=wanted,
            came=len(heard.tokens),
            began=began,
            ended=self._clock.now(),
            ending=ending,
            reason=reason,
        )

    async def _outcome(self, body: dict[str, Any], heard: _Heard, hang_up_after: int | None) -> tuple[Ending, str]:
        work = self._stream(body, heard, hang_up_after) if body["stream"] else self._whole(body, heard)
        try:
            await within(self._clock, self._answered_within, work, "request")
        except _HungUp:
            return Ending.HUNG_UP, ""
        except DeadlineExceeded as error:
            return Ending.UNANSWERED, str(error)
        except httpx.HTTPError as error:
            return Ending.CUT, f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError) as error:
            return Ending.WRONG, f"an answer that is none: {type(error).__name__}: {error}"
        if heard.error:
            return Ending.ERROR, heard.error
        if not heard.finished:
            return Ending.CUT, "the stream ended without its last event"
        return Ending.RIGHT, ""

    async def _whole(self, body: dict[str, Any], heard: _Heard) -> None:
        answer = await self._client.post("/v1/completions", json=body)
        found = answer.json()
        if answer.status_code != 200:
            heard.error = f"{answer.status_code} {found['error']['code']}: {found['error']['message']}"
            return
        heard.tokens += found["choices"][0]["token_ids"]
        heard.finished = True

    async def _stream(self, body: dict[str, Any], heard: _Heard, hang_up_after: int | None) -> None:
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                heard.error = f"{response.status_code} {error['code']}: {error['message']}"
                return
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    heard.finished = not heard.error
                elif data:
                    _hear(json.loads(data), heard)
                if hang_up_after is not None and len(heard.tokens) >= hang_up_after:
                    raise _HungUp


def _hear(event: dict[str, Any], heard: _Heard) -> None:
    if "error" in event:
        heard.error = f"{event['error']['code']}: {event['error']['message']}"
    for choice in event.get("choices", ()):
        heard.tokens += choice.get("token_ids") or []
