"""The engine in a thread of its own, for asyncio: commands go in at step boundaries, outputs come back to the loop.

                 loop's thread                          engine's thread
    submit ──► check ──► command ──────────────►  add      ┐
    abort, drained ──► command ─────────────────► abort    ├─ between steps
    stream ◄── call_soon_threadsafe ◄──────────── step's outputs

`drained` is the evidence that ownership asks for: it returns when the request is held no more, and it is answered
between steps by the thread that runs them, so no step that could name the request's blocks is running or will.
A step that raises ends the computing, not the answering: every request gets the error, and so does every later
`submit`, while `abort` and `drained` go on being answered until `close`.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable

from isthmus.core.errors import BadInput, IsthmusError, Lost
from isthmus.core.ids import RequestId
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.request import EngineRequest, StepOutput

__all__ = ["AsyncEngine", "RequestStream"]


class RequestStream:
    """Outputs of one request, in order; ends after the one that is `done`. One reader.

    Outputs that nobody reads wait here: they are bounded by the request's max_tokens.
    """

    def __init__(self, request_id: RequestId) -> None:
        self.request_id = request_id
        self._outputs: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._ended = False

    def put(self, output: StepOutput) -> None:
        """From the loop's thread."""
        self._outputs.put_nowait(output)

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> StepOutput:
        """The next output.

        Raises:
            IsthmusError: the request has failed, or was refused at the step boundary.
        """
        if self._ended:
            raise StopAsyncIteration
        output = await self._outputs.get()
        self._ended = output.done
        if output.error is not None:
            raise output.error
        return output


class AsyncEngine:
    """Runs an `EmbeddedEngine` from `start` to `close`. All methods are called from one event loop's thread."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[RequestId, RequestStream] = {}
        self._closing = False
        # What follows is the engine's thread's own.
        self._stopping = False
        self._failure: IsthmusError | None = None
        self._draining: list[tuple[RequestId, asyncio.Future[None]]] = []

    def start(self) -> None:
        """Start the thread; outputs go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[IsthmusError] = self._loop.create_future()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="isthmus-engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Let go of every request and end the thread, after the step it is in. Idempotent."""
        if not self._closing:
            self._closing = True
            self._commands.put(self._stop)
        await asyncio.shield(self._finished)

    async def failed(self) -> IsthmusError:
        """Return when a step has raised, with the error: a worker that awaits this knows when to stop."""
        return await asyncio.shield(self._failed)

    def submit(self, request: EngineRequest) -> RequestStream:
        """Hand in a request; its outputs come from the stream.

        Raises:
            BadInput, ContextTooLong: as `EmbeddedEngine.check`, or the id is in use.
            Lost: the engine is closed.
            IsthmusError: a step has raised it, and nothing is computed any more.
        """
        if self._closing:
            raise Lost("the engine is closed")
        if self._failed.done():
            raise self._failed.result()
        self.engine.check(request)
        if request.request_id in self._streams:
            raise BadInput(f"request_id: {request.request_id} is held already, wanted a new id", field="request_id")
        stream = RequestStream(request.request_id)
        self._streams[request.request_id] = stream
        self._commands.put(lambda: self._add(request))
        return stream

    def abort(self, request_id: RequestId) -> None:
        """Let go of a request at the next step boundary. Its stream ends with `done` and no reason."""
        self._commands.put(lambda: self._abort(request_id))

    async def drained(self, request_id: RequestId) -> None:
        """Return when the engine provably does not touch the request's blocks, now or later (see above)."""
        if self._closing:
            await asyncio.shield(self._finished)
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._commands.put(lambda: self._draining.append((request_id, future)))
        await future

    # The engine's thread.

    def _run(self) -> None:
        while not self._stopping:
            self._take_commands()
            self._answer_drained()
            if self._failure is None and not self._stopping:
                self._deliver(self._step())
                self._answer_drained()  # before the next wait for a command, which may be long
        for request_id in self.engine.held():
            self._abort(request_id)
        self._answer_drained()
        self._post(self._finished.set_result, None)

    def _take_commands(self) -> None:
        """Run all that wait; with nothing to compute, wait for one."""
        if self._failure is not None or not self.engine.has_work:
            self._commands.get()()
        while not self._stopping:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _step(self) -> list[StepOutput]:
        try:
            return self.engine.step()
        except Exception as error:  # every request must be answered, whatever a step died of; `failed` tells the worker
            outputs = self.engine.fail(error)
            self._failure = self.engine.failure_of(error)
            self._post(self._failed.set_result, self._failure)
            return outputs

    def _add(self, request: EngineRequest) -> None:
        refusal = self._failure
        if refusal is None:
            try:
                self.engine.add(request)
            except IsthmusError as error:
                refusal = error
        if refusal is not None:
            self._deliver([StepOutput(request_id=request.request_id, done=True, error=refusal)])

    def _abort(self, request_id: RequestId) -> None:
        if self.engine.holds(request_id):
            self.engine.abort(request_id)
            self._deliver([StepOutput(request_id=request_id, done=True)])

    def _stop(self) -> None:
        self._stopping = True

    def _answer_drained(self) -> None:
        held = []
        for request_id, future in self._draining:
            if self.engine.holds(request_id):
                held.append((request_id, future))
            else:
                self._post(_resolve, future)
        self._draining = held

    def _deliver(self, outputs: Iterable[StepOutput]) -> None:
        if outputs:
            self._post(self._put, tuple(outputs))

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to answer
            self._stopping = True

    # The loop's thread again.

    def _put(self, outputs: tuple[StepOutput, ...]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
            if output.done:
                self._streams.pop(output.request_id, None)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
