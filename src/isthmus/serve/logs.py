"""Logs: events with fields, one JSON object a line on stderr, or readable lines where stderr is a terminal.

A log that cannot be written, because its disk is full say, never ends what it is about: the lines are dropped.
"""

import contextlib
import sys
from typing import TextIO

import structlog

__all__ = ["start_logging"]


class _Sink:
    """A stream that loses what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def start_logging() -> None:
    """Configure structlog for this process."""
    render = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=_Sink(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
