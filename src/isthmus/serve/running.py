"""How a process of `serve` runs and ends: until told to stop, or until a bug of ours shows itself.

A bug is never survived: an invariant that does not hold means that this process's word on its blocks is worth nothing.
It ends; its connections close; the others fence it and go on.
"""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import structlog

from isthmus.core.errors import Bug

__all__ = ["report_bug", "run_until_told"]

log = structlog.get_logger(__name__)


def report_bug(bug: Bug) -> None:
    """End this process, from anywhere on its event loop."""
    asyncio.get_running_loop().call_exception_handler({"message": "a bug of ours", "exception": bug})


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
