"""Trace validation: journals of real workers, held against the protocol, offline.

    files ─► trace_files: lives ─► trace_replay: each through `step` and a fresh ledger ─► trace_across: side by side

Three verdicts. `valid`: every event is explained and every install was confirmed. `invalid`: something is not.
`incomplete`: nothing is wrong in what is here, but a part of the history is missing, and nobody can say of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.core.clock import Instant
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.ownership.side import Side
from isthmus.ownership.trace_across import Across, compare
from isthmus.ownership.trace_files import journals_in, read_lives
from isthmus.ownership.trace_replay import Replayed, replay

__all__ = ["Reclaim", "Trace", "percentile", "validate"]

FINDINGS_SHOWN_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Blocks that `worker` got back after the death of a peer."""

    worker: WorkerId
    died: Instant
    freed: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The journals of a deployment, replayed and compared."""

    files: int
    lives: tuple[Replayed, ...]
    across: Across
    unreadable: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        own = [f"{each.life.name}: {fault}" for each in self.lives for fault in each.faults]
        return own + self.across.faults

    @property
    def gaps(self) -> list[str]:
        own = [f"{each.life.name}: {gap}" for each in self.lives for gap in each.life.gaps]
        return own + self.across.gaps + list(self.unreadable)

    @property
    def verdict(self) -> str:
        if self.faults:
            return "invalid"
        return "incomplete" if self.gaps else "valid"

    def reclaims(self, deaths: Mapping[Incarnation, Instant]) -> list[Reclaim]:
        """Of each hand-off that outlived its peer: when the peer died, by `deaths`, and when the blocks were free."""
        return [
            Reclaim(worker=each.life.header.worker, died=died, freed=passed.ended)
            for each in self.lives
            for passed, died in each.orphaned(deaths)
            if passed.ended is not None
        ]

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        handoffs = [passed for each in self.lives for passed in each.handoffs.values()]
        reclaims = [
            (passed.ended - passed.peer_lost) / 1e6
            for passed in handoffs
            if passed.ended is not None and passed.peer_lost is not None
            if passed.installed is None or passed.installed > passed.peer_lost
        ]
        return {
            "verdict": self.verdict,
            "files": self.files,
            "lives": len(self.lives),
            "lives_ended_cleanly": sum(each.life.end is not None for each in self.lives),
            "events": sum(each.events for each in self.lives),
            "events_lost": sum(each.life.lost for each in self.lives),
            "torn_bytes": sum(each.life.torn_bytes for each in self.lives),
            "handoffs_produced": self._count(Side.PRODUCER),
            "handoffs_consumed": self._count(Side.CONSUMER),
            "handoffs_open_at_the_end": sum(passed.ended is None for passed in handoffs),
            "installs": self.across.installs,
            "installs_compared": self.across.compared,
            "quarantines": sum(each.quarantines for each in self.lives),
            "quarantined_blocks_max": max((each.quarantined_max for each in self.lives), default=0),
            "reclaims_after_a_proven_death": len(reclaims),
            "reclaim_ms_p99": percentile(reclaims, 0.99),
            "faults": self.faults[:FINDINGS_SHOWN_MAX],
            "gaps": self.gaps[:FINDINGS_SHOWN_MAX],
        }

    def _count(self, side: Side) -> int:
        return sum(len(each.handoffs) for each in self.lives if each.life.header.side is side)


def validate(paths: Sequence[Path]) -> Trace:
    """Read, replay and compare. Raises BadInput where there is nothing to read."""
    files = journals_in(paths)
    lives, unreadable = read_lives(files)
    replayed = tuple(replay(life) for life in lives)
    return Trace(files=len(files), lives=replayed, across=compare(replayed), unreadable=tuple(unreadable))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
