"""`isthmus top`: who owns what, now."""

import json
import sys
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from isthmus.core.errors import BadInput, Lost

__all__ = ["top"]


def top(
    handoff: Annotated[str, Parameter(help="One hand-off's id, or the beginning of it: its timeline.")] = "",
    /,
    *,
    url: Annotated[str, Parameter(help="The gateway.")] = "http://127.0.0.1:8000",
    watch: Annotated[float | None, Parameter(help="Show again every so many seconds, until interrupted.")] = None,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> None:
    """Show each worker's blocks by state, and for every live hand-off who answers for what; or all about one."""
    import asyncio

    from isthmus.core.clock import SystemClock
    from isthmus.core.units import Duration

    while True:
        found = _ask(url, handoff)
        if json_:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            if watch is not None and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            _show_one(found) if handoff else _show(found)
        if watch is None:
            return
        asyncio.run(SystemClock().sleep(Duration.of_seconds(watch)))


def _ask(url: str, handoff: str) -> dict[str, Any]:
    import httpx

    path = f"/v1/isthmus/handoffs/{quote(handoff, safe='')}" if handoff else "/v1/isthmus/handoffs"
    try:
        answer = httpx.get(f"{url.rstrip('/')}{path}", timeout=10)
        if answer.status_code in (400, 404):
            raise BadInput(str(answer.json()["error"]["message"]), field="handoff")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise Lost(f"url: no gateway answers at {url}: {error}; start one with `isthmus serve`", field="url") from None


def _show_one(found: dict[str, Any]) -> None:
    from rich.console import Console

    from isthmus.cli.show_handoff import show_handoff

    show_handoff(Console(highlight=False), found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="Blocks", title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    states = ("total", "free", "reserved", "filling", "resident", "retained", "quarantined")
    for column in ("worker", "role", *states):
        table.add_column(column, justify="left" if column in ("worker", "role") else "right")
    for name, worker in found["workers"].items():
        if "error" in worker:
            table.add_row(name, f"does not answer: {worker['error']}")
            continue
        table.add_row(name, worker["role"], *(str(worker["blocks"][state]) for state in states))
    console.print(table)
    for name, worker in found["workers"].items():
        if (cache := worker.get("prefix_cache")) is not None:
            console.print(f"{name} prefix cache: {', '.join(f'{count} {what}' for what, count in cache.items())}")
    live = [(name, row) for name, worker in found["workers"].items() for row in worker.get("live", ())]
    if not live:
        console.print(f"\nNo hand-off is live; {len(found['installed'])} were installed lately.")
        return
    for name, row in live:
        console.print(f"\n{name} {row['handoff'][:12]}: {row['phase']}, {row['access']}, {row['blocks']} blocks")
        for field, value in row.items():
            if field not in ("handoff", "phase", "access", "blocks"):
                console.print(f"  {field}: {value}")
