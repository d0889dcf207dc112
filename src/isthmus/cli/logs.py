"""Logs: events with fields, one JSON object a line on stderr, or readable lines where stderr is a terminal."""

import sys

import structlog

__all__ = ["start_logging"]


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
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
