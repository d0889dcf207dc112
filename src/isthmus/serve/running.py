"""How a process of `serve` runs and ends: until told to stop, or until a bug of ours shows itself.

A bug is never survived: an invariant that does not hold means that this process's word on its blocks is worth nothing.
It ends; its connections close; the others fence it and go on.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from isthmus.core.errors import Bug

__all__ = ["report_bug", "run_until_told", "supervised"]

log = structlog.get_logger(__name__)


def report_bug(bug: Bug) -> None:
    """End this process, from anywhere on its event loop."""
    asyncio.get_running_loop().call_exception_handler({"message": "a bug of ours", "exception": bug})


@asynccontextmanager
async def supervised(*works: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run `works` beside the body, until it ends. One that fails ends this process: what it watched is unwatched."""

    def ended(task: "asyncio.Task[object]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            bug = error if isinstance(error, Bug) else Bug(f"{task.get_name()} died: {type(error).__name__}: {error}")
            report_bug(bug)

    tasks = [asyncio.create_task(work, name=getattr(work, "__qualname__", "task")) for work in works]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def run_until_told(service: Coroutine[Any, Any, None]) -> None:
    """Run `service` until it ends, or until SIGTERM or SIGINT cancels it so that it can leave cleanly.

    Raises:
        Bug: one was raised or reported anywhere on the loop.
    """
    bugs: list[Bug] = []

    async def main() -> None:
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        assert running is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)

        def on_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, Bug):
                bugs.append(error)
                running.cancel()
            else:
                log.error("unhandled", message=context.get("message"), exc_info=error)

        loop.set_exception_handler(on_exception)
        await service

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        if bugs:
            raise bugs[0] from None
