"""Hand-offs for people: rows for `isthmus top` and `GET /v1/isthmus/handoffs`, with the five answers.

Who holds, who accounts, who declares completion, who releases, who cleans up: one answer each, at any moment.
"""

from collections.abc import Mapping
from typing import NamedTuple

from isthmus.core.clock import Instant
from isthmus.core.ids import WorkerId
from isthmus.ownership.leases import left
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    SourceHandoff,
    SourcePhase,
    TriggerMode,
)
from isthmus.ownership.records import Record

__all__ = [
    "Answers",
    "Row",
    "destination_answers",
    "destination_row",
    "source_answers",
    "source_row",
    "with_timeline",
]

Row = dict[str, object]
"""JSON-able: strings, numbers, None, and lists of such rows."""


class Answers(NamedTuple):
    """Four of the five; the fifth is always the same: a worker's ledger accounts for its own blocks.

    `{own}` is the worker whose ledger this is, `{peer}` the other side."""

    holds: str
    declares_completion: str
    releases: str
    cleans_up: str


_ENDED = Answers("nobody", "declared", "released", "nobody: nothing is left")

_SOURCE: Mapping[SourcePhase, Answers] = {
    SourcePhase.COMPUTING: Answers(
        "engine of {own}", "engine of {own}", "{own}", "{own}: abort, once its engine stops"
    ),
    SourcePhase.HELD: Answers("{own}", "{own}: publishes", "{own}", "{own}: abort"),
    SourcePhase.PUBLISHED: Answers(
        "{peer}", "{peer}: confirms", "{own}, on confirmation", "reaper of {own}, at lease end"
    ),
    SourcePhase.EXPOSED: Answers(
        "{peer}", "{peer}: confirms", "{own}, on confirmation", "reaper of {own}, at lease end"
    ),
    SourcePhase.DRAINING: Answers(
        "who drains", "given up", "{own}, on drain evidence", "{own}: its engine, or the reaper"
    ),
    SourcePhase.IN_DOUBT: Answers("{peer}, perhaps", "given up", "{own}, on proof", "registry: the death of {peer}"),
    SourcePhase.RELEASED: _ENDED,
    SourcePhase.EXPIRED: _ENDED,
}
_WRITING: Mapping[SourcePhase, Answers] = {
    SourcePhase.HELD: Answers("{own}", "{peer}: registers", "{own}", "{own}: abort"),
    SourcePhase.PUBLISHED: Answers(
        "transfer of {own}", "{peer}: confirms", "{own}, on confirmation", "reaper of {own}, at lease end"
    ),
    SourcePhase.DRAINING: Answers(
        "transfer or engine of {own}", "declared", "{own}, once they stop", "{own}: its transfer and its engine"
    ),
}
"""Push and send: where the producer writes, nobody else touches its blocks."""

_READING = Answers("transfer of {own}", "{peer}: answers confirm", "{own}", "{own}: abort")
_DESTINATION: Mapping[DestinationPhase, Answers] = {
    DestinationPhase.RESERVED: Answers("{own}", "{peer}: publishes", "{own}", "{own}: abort"),
    DestinationPhase.RECEIVING: _READING,
    DestinationPhase.CONVERTING: _READING,
    DestinationPhase.VERIFYING: _READING,
    DestinationPhase.INSTALLED: Answers(
        "decode of {own}", "decode of {own}", "{own}", "{own}: abort, once decode stops"
    ),
    DestinationPhase.ABORTING: Answers("transfer of {own}", "given up", "{own}, once it stops", "{own}: its transfer"),
    DestinationPhase.DRAINING: Answers("decode of {own}", "given up", "{own}, once it stops", "{own}: its engine"),
    DestinationPhase.IN_DOUBT: Answers("unknown", "given up", "{own}, on proof", "{own}: its transfer's end"),
    DestinationPhase.RELEASED: _ENDED,
}
_CHECKING = Answers("{own}: converts, verifies", "{own}: installs", "{own}", "{own}: abort")
_WRITTEN: Mapping[DestinationPhase, Answers] = {
    DestinationPhase.RESERVED: Answers("{own}", "{own}: exposes", "{own}", "{own}: abort"),
    DestinationPhase.EXPOSED: Answers(
        "{peer}", "{peer}: has written", "{own}, on drain evidence", "reaper of {own}, at lease end"
    ),
    DestinationPhase.RECEIVING: Answers(
        "{peer}", "{peer}: has written", "{own}, on drain evidence", "reaper of {own}, at lease end"
    ),
    DestinationPhase.CONVERTING: _CHECKING,
    DestinationPhase.VERIFYING: _CHECKING,
    DestinationPhase.ABORTING: Answers(
        "{peer}, perhaps, or {own}", "given up", "{own}, on drain evidence", "reaper of {own}: into quarantine"
    ),
    DestinationPhase.IN_DOUBT: Answers(
        "{peer}, perhaps", "given up", "{own}, on proof", "registry: the death of {peer}"
    ),
}
"""Push and send: what differs where the producer writes."""


def source_answers(mode: TriggerMode, phase: SourcePhase) -> Answers:
    """Of a producer's side."""
    written = None if mode is TriggerMode.PULL else _WRITING.get(phase)
    return written or _SOURCE[phase]


def destination_answers(mode: TriggerMode, phase: DestinationPhase) -> Answers:
    """Of a consumer's side. Raises KeyError for a phase that the mode does not have."""
    written = None if mode is TriggerMode.PULL else _WRITTEN.get(phase)
    return written or _DESTINATION[phase]


def source_row(record: Record[SourceHandoff], now: Instant, worker: WorkerId, block_bytes: int) -> Row:
    """One producer-side hand-off."""
    state = record.state
    row = _row(record, now, worker, state.holder, block_bytes, source_answers(state.mode, state.phase))
    lease_ms_left = None if state.lease_ends is None else left(state.lease_ends, now).ms
    return row | {"side": "producer", "holder": state.holder, "lease_ms_left": lease_ms_left, "staging_bytes": 0}


def destination_row(record: Record[DestinationHandoff], now: Instant, worker: WorkerId, block_bytes: int) -> Row:
    """One consumer-side hand-off."""
    state = record.state
    row = _row(record, now, worker, state.producer, block_bytes, destination_answers(state.mode, state.phase))
    lease_ms_left = None if state.lease_ends is None else left(state.lease_ends, now).ms
    committed = (DestinationPhase.INSTALLED, DestinationPhase.DRAINING)
    before_commit = state.phase not in committed and not state.ended
    staging_bytes = state.staging_bytes if before_commit else 0
    return row | {"side": "consumer", "holder": worker, "lease_ms_left": lease_ms_left, "staging_bytes": staging_bytes}


def with_timeline(row: Row, record: Record[SourceHandoff] | Record[DestinationHandoff]) -> Row:
    """The row with what happened, and how long it took in all in place of an age that still grows."""
    timeline: list[Row] = [
        {"ms": moment.ms, "event": moment.event, "phase": moment.phase} for moment in record.timeline
    ]
    return row | {"timeline": timeline, "age_ms": record.timeline[-1].ms}


def _row(
    record: Record[SourceHandoff] | Record[DestinationHandoff],
    now: Instant,
    worker: WorkerId,
    peer: WorkerId,
    block_bytes: int,
    answers: Answers,
) -> Row:
    state = record.state
    holds, declares_completion, releases, cleans_up = (answer.format(own=worker, peer=peer) for answer in answers)
    return {
        "handoff": state.handoff,
        "worker": worker,
        "peer": peer,
        "tenant": state.tenant,
        "phase": state.phase.value,
        "outcome": state.outcome.value,
        "access": state.access.value,
        "transport": state.transport.value,
        "blocks": len(state.blocks),
        "blocks_reserved": state.num_blocks,
        "bytes": len(state.blocks) * block_bytes,
        "epoch": state.epoch,
        "evidence": None if state.evidence is None else state.evidence.value,
        "age_ms": record.age(now).ms,
        "holds": holds,
        "accounts": f"ledger of {worker}",
        "declares_completion": declares_completion,
        "releases": releases,
        "cleans_up": cleans_up,
    }
