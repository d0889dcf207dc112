"""Reads a grid of states × events from text, and says what `step` really does in each cell, in the same words.

A cell: the phase after the step (`=` if the state is unchanged), `Bug`, and after a slash what is answered. Words are
short, so that the grid fits a page: see `SHORT`.
"""

from collections.abc import Callable, Iterator
from typing import Any

from isthmus.core.errors import Bug
from isthmus.ownership.protocol.effects import ReplyConfirmed, ReplyRefused

SHORT = {
    "computing": "comp",
    "published": "pub",
    "exposed": "seen",
    "draining": "drain",
    "released": "rel",
    "expired": "expd",
    "in_doubt": "doubt",
    "reserved": "rsvd",
    "receiving": "recv",
    "converting": "conv",
    "verifying": "verif",
    "installed": "inst",
    "aborting": "abort",
    "grant_unknown": "unk",
    "stale_epoch": "old",
    "not_authorised": "auth",
    "ended": "end",
}


def cells(grid: str) -> Iterator[tuple[str, str, str]]:
    """(event, state, expected) for every cell."""
    head, *rows = [line.split() for line in grid.strip().splitlines()]
    for event, *row in rows:
        assert len(row) == len(head) - 1, f"{event}: {len(row)} cells, wanted {len(head) - 1}"
        yield from ((event, state, cell) for state, cell in zip(head[1:], row, strict=True))


def actual(step: Callable[[Any, Any], tuple[Any, tuple[Any, ...]]], state: Any, event: Any) -> str:
    """What `step` does, as a cell."""
    try:
        after, effects = step(state, event)
    except Bug:
        return "Bug"
    text = "=" if after == state else SHORT.get(after.phase.value, after.phase.value)
    for effect in effects:
        if isinstance(effect, ReplyRefused):
            text += f"/{SHORT[effect.reason.value]}"
        if isinstance(effect, ReplyConfirmed):
            text += "/yes"
    return text
