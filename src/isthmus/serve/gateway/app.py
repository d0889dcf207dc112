"""The HTTP application: OpenAI's endpoints, health, metrics, and who owns what."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from isthmus.core.errors import BadInput, Bug, CapacityExceeded, IsthmusError, Lost
from isthmus.core.limits import HANDOFFS_SHOWN_MAX, HTTP_BODY_BYTES_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import settle
from isthmus.serve.gateway import openai
from isthmus.serve.gateway.answers import Answerer, Piece, Prepared
from isthmus.serve.gateway.control import Control
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.openai import ChatRequest, CompletionRequest
from isthmus.serve.running import report_bug

__all__ = ["build_app"]

Body = CompletionRequest | ChatRequest
Result = TypeVar("Result")

CLIENT_GONE = 499  # as nginx counts it; nobody reads this answer
LOST_RETRY_AFTER = Duration.of_seconds(1)


def build_app(answerer: Answerer, control: Control, metrics: Metrics, *, requests_in_flight_max: int) -> Starlette:
    """The application; it holds no state of its own but the count of requests under way."""
    gate = _Gate(requests_in_flight_max)

    async def models(_: Request) -> Response:
        model = {"id": answerer.model, "object": "model", "owned_by": "isthmus", "created": 0}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": answerer.context_length}]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        missing = control.missing_roles()
        if missing:
            return JSONResponse({"status": "waiting", "missing": missing}, status_code=503)
        return JSONResponse({"status": "ready", "workers": control.worker_count()})

    async def prometheus(_: Request) -> Response:
        control.measure(metrics)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def workers(_: Request) -> Response:
        return JSONResponse({"workers": control.workers(), "pairs": control.pairs()})

    async def handoffs(request: Request) -> Response:
        limit = _limit(request.query_params.get("limit", str(HANDOFFS_SHOWN_MAX)))
        return JSONResponse(await control.handoffs(request.query_params.get("request", ""), limit))

    async def handoff(request: Request) -> Response:
        beginning = str(request.path_params["handoff_id"])
        if not re.fullmatch(r"[0-9a-f]{6,32}", beginning):
            raise BadInput(
                f"handoff: got {beginning[:64]!r}, wanted 32 hexadecimal digits, or 6 or more to begin with",
                field="handoff",
            )
        return JSONResponse(await control.handoff(beginning))

    def answering(kind: type[Body]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = openai.parse(await _body(request), kind)
            prepared = answerer.prepare(body, request.headers)
            if body.stream:
                return await _stream(request, answerer, prepared, gate, body)
            return await _whole(request, answerer, prepared, gate, body)

        return endpoint

    return Starlette(
        routes=[
            Route("/v1/completions", answering(CompletionRequest), methods=["POST"]),
            Route("/v1/chat/completions", answering(ChatRequest), methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", prometheus),
            Route("/v1/isthmus/workers", workers),
            Route("/v1/isthmus/handoffs", handoffs),
            Route("/v1/isthmus/handoffs/{handoff_id}", handoff),
        ],
        exception_handlers={IsthmusError: _refuse, Exception: _failed, 404: _no_route, 405: _no_route},
    )


class _Gate:
    """Counts requests under way, and refuses one too many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def __enter__(self) -> None:
        if self._count >= self._limit:
            raise CapacityExceeded(
                f"requests: {self._limit} are under way already", field="requests", retry_after=Duration.of_seconds(1)
            )
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= HANDOFFS_SHOWN_MAX:
        raise BadInput(f"limit: got {text[:64]!r}, wanted 1 to {HANDOFFS_SHOWN_MAX}", field="limit")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body, bounded whatever its headers say."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > HTTP_BODY_BYTES_MAX:
            raise BadInput(f"body: more than {HTTP_BODY_BYTES_MAX} bytes", field="body")
    return bytes(data)


async def _whole(request: Request, answerer: Answerer, prepared: Prepared, gate: _Gate, body: Body) -> Response:
    """Collect the answer; a client that hangs up ends it."""

    async def collect() -> tuple[str, str | None]:
        text: list[str] = []
        reason = None
        async with aclosing(answerer.answer(prepared)) as pieces:
            async for piece in pieces:
                text.append(piece.text)
                reason = piece.finish_reason
        return "".join(text), reason

    with gate:
        answer = await _while_connected(request, collect())
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    text, reason = answer
    ask = prepared.ask
    choice: dict[str, Any] = {"finish_reason": reason}
    if body.return_token_ids:
        choice["token_ids"] = list(ask.sent)
    if prepared.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    kind = "chat.completion" if prepared.chat else "text_completion"
    used = openai.usage(len(ask.prompt), len(ask.sent))
    return JSONResponse(openai.response(kind, ask.request_id, prepared.created, answerer.model, choice, used))


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`; or None where the client has hung up first, and `work` was cancelled and waited for."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        task.cancel()  # does nothing to a task that is done
        await settle(gone)
        await settle(task)
    return None if task.cancelled() else task.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(request: Request, answerer: Answerer, prepared: Prepared, gate: _Gate, body: Body) -> Response:
    """Server-sent events. The first piece is awaited, so that a request that cannot start gets a status, not a 200."""
    pieces = answerer.answer(prepared)

    async def begin() -> Piece:
        return await anext(pieces)

    with ExitStack() as stack:
        stack.enter_context(gate)
        first = await _while_connected(request, begin())
        if first is None:
            return Response(status_code=CLIENT_GONE)
        events = _events(answerer, prepared, first, pieces, body)
        return _EventStream(events, pieces, stack.pop_all())


class _EventStream(StreamingResponse):
    """Closes the answer, and so cancels what is left of it, however the sending ends."""

    def __init__(self, events: AsyncIterator[bytes], pieces: AsyncGenerator[Piece], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._pieces = pieces
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._pieces.aclose()


async def _events(
    answerer: Answerer, prepared: Prepared, first: Piece, rest: AsyncIterator[Piece], body: Body
) -> AsyncIterator[bytes]:
    ask, chat = prepared.ask, prepared.chat
    kind = "chat.completion.chunk" if chat else "text_completion"

    def event(choice: dict[str, Any] | None, used: dict[str, int] | None = None) -> bytes:
        return _sse(openai.chunk(kind, ask.request_id, prepared.created, answerer.model, choice, used))

    def choice_of(piece: Piece) -> dict[str, Any]:
        content = {"delta": {"content": piece.text} if piece.text else {}} if chat else {"text": piece.text}
        ids = {"token_ids": list(piece.token_ids)} if body.return_token_ids else {}
        return {**content, **ids, "finish_reason": piece.finish_reason}

    if chat:
        yield event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
    yield event(choice_of(first))
    try:
        async for piece in rest:
            yield event(choice_of(piece))
    except IsthmusError as error:
        if isinstance(error, Bug):
            raise
        yield _sse(openai.error_body(error))  # the status is long sent; the client library raises on this
        return
    if body.include_usage:
        yield event(None, openai.usage(len(ask.prompt), len(ask.sent)))
    yield b"data: [DONE]\n\n"


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, IsthmusError)
    headers = {}
    retry_after = LOST_RETRY_AFTER if isinstance(error, Lost) else None
    if isinstance(error, CapacityExceeded):
        retry_after = error.retry_after
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after.seconds)))
    if isinstance(error, Bug):
        report_bug(error)
    return JSONResponse(openai.error_body(error), status_code=openai.status_of(error), headers=headers)


async def _failed(_: Request, error: Exception) -> Response:
    said = Bug(f"{type(error).__name__}: the gateway failed on this request; its log says more")
    return JSONResponse(openai.error_body(said), status_code=500)


async def _no_route(request: Request, error: Exception) -> Response:
    """404 and 405: say what there is."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wanted = f"wanted {(error.headers or {}).get('Allow', '')}"
        said = BadInput(f"method: {request.method} {request.url.path} is not served, {wanted}", field="method")
    else:
        there = ", ".join(route.path for route in request.app.routes)
        said = BadInput(f"path: {request.url.path} is not served here, wanted one of {there}", field="path")
    return JSONResponse(openai.error_body(said), status_code=error.status_code, headers=error.headers)
