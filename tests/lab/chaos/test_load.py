"""The load's own judgement, against a server that misbehaves on demand: real HTTP, no gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.units import Duration
from isthmus.lab.chaos.chance import Chance
from isthmus.lab.chaos.load import Answered, Ending, Load
from isthmus.lab.chaos.model import Reference

CLOCK = SystemClock()
LONG = Duration.of_seconds(30)
REFERENCE = Reference(prompt=(5, 6, 7), answer=(11, 12, 13, 14))
Behaviour = Callable[[dict, asyncio.StreamWriter], Awaitable[None]]


class Counted(list[Answered]):
    """Says when there are six."""

    def __init__(self, enough: asyncio.Event) -> None:
        super().__init__()
        self._enough = enough

    def append(self, answered: Answered) -> None:
        super().append(answered)
        if len(self) == 6:
            self._enough.set()


def send(writer: asyncio.StreamWriter, status: int, body: bytes, *, announced: int | None = None) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body) if announced is None else announced}\r\n\r\n"
    writer.write(head.encode() + body)


def event(tokens: list[int]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"token_ids": tokens}]}).encode() + b"\n\n"


def answer(body: dict, tokens: list[int]) -> bytes:
    if body["stream"]:
        return b"".join(event([token]) for token in tokens) + b"data: [DONE]\n\n"
    return json.dumps({"choices": [{"token_ids": tokens}]}).encode()


async def right(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 200, answer(body, list(REFERENCE.answer[: body["max_tokens"]])))


async def one_token_wrong(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 200, answer(body, [*REFERENCE.answer[: body["max_tokens"] - 1], 99]))


async def one_token_short(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 200, answer(body, list(REFERENCE.answer[: body["max_tokens"] - 1])))


async def one_token_twice(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 200, answer(body, [REFERENCE.answer[0], *REFERENCE.answer[: body["max_tokens"]]]))


async def silent(body: dict, writer: asyncio.StreamWriter) -> None:
    await CLOCK.sleep(Duration.of_seconds(60))


async def cut(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 200, b"data: ", announced=100)
    writer.close()


async def clear_error(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 503, json.dumps({"error": {"code": "Lost", "message": "nobody is there"}}).encode())


async def muddled(body: dict, writer: asyncio.StreamWriter) -> None:
    send(writer, 500, b"Internal Server Error")


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[str]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            send(writer, 200, json.dumps({"data": [{"id": "model"}]}).encode())
        else:
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await behave(json.loads(await reader.readexactly(length)), writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def judged(behave: Behaviour, *, within: Duration = LONG) -> list[Answered]:
    """What a few requests to such a server are taken for."""
    enough = asyncio.Event()
    async with serving(behave) as url:
        load = Load(url, [REFERENCE], CLOCK, Chance(3), concurrency=2, answered_within=within)
        load.answered = Counted(enough)
        await load.start()
        async with asyncio.timeout(30):
            await enough.wait()
        await load.stop()
    return [each for each in load.answered if each.ending is not Ending.HUNG_UP]


async def test_right_answers_are_right():
    assert {each.ending for each in await judged(right)} == {Ending.RIGHT}


@pytest.mark.parametrize("behave", [one_token_wrong, one_token_short, one_token_twice, muddled])
async def test_anything_but_the_references_tokens_is_wrong(behave):
    assert {each.ending for each in await judged(behave)} == {Ending.WRONG}


async def test_silence_is_unanswered():
    found = await judged(silent, within=Duration.of_ms(100))
    assert {each.ending for each in found} == {Ending.UNANSWERED}


async def test_a_cut_connection_is_not_an_answer():
    assert {each.ending for each in await judged(cut)} == {Ending.CUT}


async def test_a_clear_error_is_an_answer():
    found = await judged(clear_error)
    assert {each.ending for each in found} == {Ending.ERROR}
    assert "nobody is there" in found[0].reason
