"""One hand-off for people, on 80 columns: what each side's ledger says of it, and what happened when."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["show_handoff"]

ANSWERS = {
    "holds": "holds",
    "accounts": "accounts",
    "declares_completion": "declares completion",
    "releases": "releases",
    "cleans_up": "cleans up",
}
NAME_CHARS = 20


def show_handoff(console: Console, found: Mapping[str, Any]) -> None:
    """As `GET /v1/isthmus/handoffs/{handoff_id}` answers it."""
    console.print(f"hand-off {found['handoff']}")
    if (report := found["installed"]) is not None:
        console.print(f"request {escape(report['request_id'])}, attempt {report['attempt']}")
        console.print(
            f"{report['tokens']} tokens, {report['wire_bytes']} bytes by {report['transport']}, {report['outcome']}"
        )
    for row in found["sides"]:
        _show_side(console, row)
    for worker, error in found["unanswered"].items():
        console.print(f"\n{worker} did not answer: {escape(error)}")


def _show_side(console: Console, row: Mapping[str, Any]) -> None:
    console.print(f"\n{row['side']} {row['worker']}: {row['phase']}, {row['outcome']}, {row['access']}")
    held = f"{row['blocks']} of {row['blocks_reserved']} blocks, epoch {row['epoch']}, tenant {row['tenant']}"
    _line(console, "accounted", held)
    for field, name in ANSWERS.items():
        _line(console, name, str(row[field]))
    if row["evidence"] is not None:
        _line(console, "evidence", str(row["evidence"]))
    if row["lease_ms_left"] is not None:
        _line(console, "lease left", f"{row['lease_ms_left']:.0f} ms")
    for moment in row["timeline"]:
        console.print(f"  {moment['ms']:>12.1f} ms  {escape(str(moment['event']))} ─► {moment['phase']}")


def _line(console: Console, name: str, value: str) -> None:
    console.print(f"  {name:<{NAME_CHARS}}{escape(value)}")
