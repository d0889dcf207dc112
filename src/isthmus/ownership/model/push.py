"""The world of push and send: the consumer exposes memory of its own, and the producer writes it, one-sidedly.

    push   order → COMPUTING → chunk, chunk → HELD ─┐
           expose → register ───────────────────────┴─► write, write → written → convert → verify → install → confirm
    send   the same, but what is filled is written while the rest is still computed

The consumer ends the producer's access (it *withdraws* the memory) before it believes that all is written, and where it
gives up. Where each process maps memory for itself, a withdrawal proves nothing while a writer has it mapped; elsewhere
what arrives after it is not written any more.
"""

from collections.abc import Iterator

from isthmus.ownership.model.accounts import point
from isthmus.ownership.model.memory import fill, write
from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.pull import next_stage
from isthmus.ownership.model.records import CONFIRM, WRITTEN, Engine, Image, Part, Stage, Writing
from isthmus.ownership.model.turn import (
    CONSUMER,
    GRANT,
    LEASE,
    LIFE,
    OWN_EPOCH,
    PRODUCER,
    Turn,
    now,
    tenant,
)
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.events import (
    Abort,
    Complete,
    Confirm,
    ConvertDone,
    Doubt,
    Drained,
    Expose,
    Install,
    Publish,
    Register,
    Sent,
    VerifyOk,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.states import (
    DestinationPhase,
    LogicalOutcome,
    SourceHandoff,
    SourcePhase,
    TriggerMode,
)

__all__ = ["consumer_options", "producer_options"]


# the producer


def producer_options(turn: Turn, index: int) -> Iterator[Option]:
    """What the producer may do next for a part."""
    part, state = turn.part(index), turn.source_state(index)
    if state is None:
        return
    if part.engine:
        yield Option(f"the engine fills chunk {part.engine - 1}", lambda turn: _fill(turn, index))
    if part.image and state.target is None and state.outcome is LogicalOutcome.PENDING:
        yield Option("the registration reaches the producer", lambda turn: _register(turn, index), Why.DELIVERY)
    if state.phase is SourcePhase.HELD and state.target is None:
        yield Option("the producer waits no longer for a registration", lambda turn: _in_vain(turn, index))
    if _may_publish(turn, state):
        yield Option("the producer begins to write", lambda turn: _publish(turn, index))
    if part.writes:
        if part.writes != Writing.STALLED and _filled(part) > part.writes - 1:
            yield Option(f"the producer writes chunk {part.writes - 1}", lambda turn: _write(turn, index))
        if state.phase is SourcePhase.DRAINING:
            yield Option("the producer's transfer stops", lambda turn: _stop(turn, index))
        if turn.scope.faults.flips:
            yield Option("the producer's transfer fails", lambda turn: _stop(turn, index), why=Why.FAULT)
    if part.sent & CONFIRM and state.outcome is LogicalOutcome.PENDING:
        yield Option("the producer hears that all is installed", lambda turn: _confirmed(turn, index), Why.DELIVERY)


def _may_publish(turn: Turn, state: SourceHandoff) -> bool:
    early = turn.scope.mode is TriggerMode.SEND and state.phase is SourcePhase.COMPUTING and state.grant is None
    return state.target is not None and (state.phase is SourcePhase.HELD or early)


def _filled(part: Part) -> int:
    """How many chunks the engine has filled."""
    return part.engine - 1 if part.engine else 2


def _fill(turn: Turn, index: int) -> None:
    engine = turn.part(index).engine
    fill(turn, index, engine - 1)
    turn.change_part(index, engine=Engine.HALF if engine == Engine.STARTED else Engine.OFF)
    if engine == Engine.HALF:
        turn.source(index, Complete())


def _register(turn: Turn, index: int) -> None:
    state = turn.source_state(index)
    if state is not None and state.phase is SourcePhase.HELD:
        turn.marks.add("a registration came after all was filled")
    else:
        turn.marks.add("a registration came before all was filled")
    turn.source(index, Register(grant=GRANT, epoch=OWN_EPOCH, holder=CONSUMER, holder_incarnation=LIFE))


def _in_vain(turn: Turn, index: int) -> None:
    turn.source(index, Abort(outcome=LogicalOutcome.FAILED))


def _publish(turn: Turn, index: int) -> None:
    turn.source(index, Publish(now=now(over=False), grant=GRANT, lease=LEASE))
    turn.change_part(index, writes=Writing.STARTED)
    turn.producer = point(turn.producer, turn.claim(index), turn.claim(index))


def _write(turn: Turn, index: int) -> None:
    part = turn.part(index)
    if part.engine:
        turn.marks.add("a chunk was written while the rest was computed")
    write(turn, index, part.writes - 1)
    turn.change_part(index, writes=Writing.HALF if part.writes == Writing.STARTED else Writing.OFF)
    if part.writes == Writing.HALF:
        turn.source(index, Sent(ok=True))
        turn.send(index, WRITTEN)


def _stop(turn: Turn, index: int) -> None:
    turn.change_part(index, writes=Writing.OFF)
    turn.source(index, Sent(ok=False))


def _confirmed(turn: Turn, index: int) -> None:
    over = turn.part(index).over
    word = Confirm(now=now(over), grant=GRANT, epoch=OWN_EPOCH, holder=CONSUMER, holder_incarnation=LIFE)
    turn.source(index, word)


# the consumer


def consumer_options(turn: Turn, index: int) -> Iterator[Option]:
    """What the consumer may do next for a part."""
    part, state = turn.part(index), turn.destination_state()
    if part.stage == Stage.CONVERT:
        yield Option("the consumer converts", lambda turn: _converted(turn, index))
    elif part.stage == Stage.VERIFY:
        yield Option("the consumer has verified", lambda turn: _verified(turn, index))
    if state is None:
        if part.image == Image.OPEN and _withdrawn(turn, part):
            yield Option("the consumer withdraws its memory", lambda turn: _let_go(turn, index))
        return
    if state.phase is DestinationPhase.RESERVED and index == 0:
        yield Option("the consumer exposes its memory, and registers it", _expose)
    if state.prepared and state.outcome is LogicalOutcome.PENDING and index == 0:
        yield Option("the consumer installs", _install)
    if part.image == Image.OPEN:
        if part.writes and turn.scope.faults.sees_reads:
            yield Option("the consumer sees the write", lambda turn: _write_seen(turn, index))
        if state.outcome is not LogicalOutcome.PENDING:
            yield from _letting_go(turn, index, part)
        elif part.sent & WRITTEN and _withdrawn(turn, part):
            yield Option(
                "the consumer withdraws, and takes all as written", lambda turn: _take(turn, index), Why.DELIVERY
            )


def _withdrawn(turn: Turn, part: Part) -> bool:
    """Whether a withdrawal proves that nobody writes any more."""
    return turn.scope.transport is not TransportKind.SHM or not part.writes


def _proof(turn: Turn) -> Evidence:
    return Evidence.REVOKED if turn.scope.transport is TransportKind.SHM else Evidence.OWN_TRANSFER_ENDED


def _expose(turn: Turn) -> None:
    grants = (GRANT,) * turn.scope.parts
    turn.destination(Expose(now=now(over=False), grants=grants, lease=LEASE))
    for index in range(turn.scope.parts):
        turn.change_part(index, image=Image.OPEN)
        turn.consumer = point(turn.consumer, turn.claim(), turn.claim(index))


def _write_seen(turn: Turn, index: int) -> None:
    seen = WriteSeen(now=now(turn.request.over), grant=GRANT, epoch=OWN_EPOCH, writer=PRODUCER, lease=LEASE, part=index)
    turn.destination(seen)


def _take(turn: Turn, index: int) -> None:
    turn.change_part(index, image=Image.WITHDRAWN)
    written = Written(
        now=now(turn.request.over),
        grant=GRANT,
        epoch=OWN_EPOCH,
        writer=PRODUCER,
        writer_incarnation=LIFE,
        tenant=tenant(turn.scope.tenant(turn.index)),
        evidence=_proof(turn),
        part=index,
    )
    turn.destination(written)
    next_stage(turn, index)


def _letting_go(turn: Turn, index: int, part: Part) -> Iterator[Option]:
    if _withdrawn(turn, part):
        yield Option("the consumer withdraws its memory", lambda turn: _let_go(turn, index))
    else:
        state = turn.destination_state()
        if state is not None and state.phase is DestinationPhase.ABORTING and state.lease_ends is not None:
            yield Option("the consumer withdraws, which proves nothing yet", lambda turn: turn.destination(Doubt()))


def _let_go(turn: Turn, index: int) -> None:
    turn.change_part(index, image=Image.WITHDRAWN)
    state = turn.destination_state()
    if state is not None and state.phase in (DestinationPhase.ABORTING, DestinationPhase.IN_DOUBT):
        turn.destination(Drained(evidence=_proof(turn)))


def _converted(turn: Turn, index: int) -> None:
    turn.destination(ConvertDone(part=index))
    next_stage(turn, index)


def _verified(turn: Turn, index: int) -> None:
    turn.destination(VerifyOk(part=index))
    next_stage(turn, index)


def _install(turn: Turn) -> None:
    turn.destination(Install())
    for index in range(turn.scope.parts):
        turn.send(index, CONFIRM)
