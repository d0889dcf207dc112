"""How a hand-off ends in every mode: finish, give up, stop, abandon, the end of a lease, the death of a peer."""

from collections.abc import Iterator

from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.records import ABSENT, Engine, Stage, Writing
from isthmus.ownership.model.turn import CONSUMER, LIFE, PRODUCER, Turn, now
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Doubt,
    Drained,
    Expire,
    Fence,
    Finish,
    PeerLost,
)
from isthmus.ownership.protocol.states import DestinationPhase, LogicalOutcome, SourcePhase

__all__ = ["consumer_endings", "producer_endings", "time_options"]


# the consumer


def consumer_endings(turn: Turn) -> Iterator[Option]:
    """What ends a hand-off at the consumer, and what follows."""
    state = turn.destination_state()
    if state is None:
        return
    if state.phase in (DestinationPhase.INSTALLED, DestinationPhase.DRAINING):
        yield Option("decode ends", lambda turn: turn.destination(Finish()))
    if state.outcome is LogicalOutcome.PENDING and turn.scope.faults.gives_up:
        yield Option("the consumer gives up", _give_up)
    if state.phase in (DestinationPhase.ABORTING, DestinationPhase.IN_DOUBT) and _own_stages(turn):
        yield Option("what the consumer was doing has stopped", _stopped)
    if turn.steps.rules.destination_lease_over(state, now(turn.request.over)):
        yield Option("the consumer's reaper finds the lease over", _destination_reaped)
    if state.phase is DestinationPhase.ABORTING and turn.scope.faults.doubts and turn.pulls and _reads(turn):
        yield Option("the consumer's read cannot be shown to have stopped", _doubted, why=Why.FAULT)
    if turn.consumer.fenced and not state.ended:
        yield Option("the consumer learns that it was fenced", lambda turn: turn.destination(Fence()))
    if turn.request.producer_died and not state.ended:
        yield Option("the consumer learns that the producer has died", _producer_lost)


def _own_stages(turn: Turn) -> bool:
    return any(part.stage != Stage.NOTHING for part in turn.request.parts)


def _destination_reaped(turn: Turn) -> None:
    turn.destination(Expire(now=now(turn.request.over)))


def _reads(turn: Turn) -> bool:
    return any(part.stage == Stage.READ for part in turn.request.parts)


def _give_up(turn: Turn) -> None:
    turn.destination(Abort(outcome=LogicalOutcome.CANCELLED))
    if turn.scope.switches.abandon_before_stop:
        turn.request = turn.request._replace(abandoned=True)


def _stopped(turn: Turn) -> None:
    for index in range(turn.scope.parts):
        turn.change_part(index, stage=Stage.NOTHING)
    turn.destination(Drained(evidence=Evidence.OWN_TRANSFER_ENDED if turn.pulls else Evidence.OWN_WORK_ENDED))


def _doubted(turn: Turn) -> None:
    turn.destination(Doubt())


def _producer_lost(turn: Turn) -> None:
    state = turn.destination_state()
    if state is not None and state.phase is DestinationPhase.IN_DOUBT:
        for index, part in enumerate(turn.request.parts):
            if part.stage == Stage.READ:  # a read from a process that is gone ends with it
                turn.change_part(index, stage=Stage.NOTHING)
    turn.destination(PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED))


# the producer


def producer_endings(turn: Turn, index: int) -> Iterator[Option]:
    """What ends a part at the producer."""
    part = turn.part(index)
    state = turn.source_state(index)
    if turn.request.abandoned and not turn.source_over(index):
        yield Option("the consumer's abandon reaches the producer", lambda turn: _abandoned(turn, index), Why.DELIVERY)
    if (turn.request.consumer_died or turn.consumer.fenced) and not turn.source_over(index) and not part.deaf:
        yield Option("the producer learns that the consumer is gone", lambda turn: _consumer_lost(turn, index))
    if state is None:
        return
    if part.engine and state.phase is SourcePhase.DRAINING:
        yield Option("the engine stops", lambda turn: _engine_stopped(turn, index))
    if turn.steps.rules.source_lease_over(state, now(part.over)):
        yield Option("the reaper finds the lease over", lambda turn: _reaped(turn, index))
    if turn.scope.faults.source_gives_up and state.outcome is LogicalOutcome.PENDING:
        yield Option("the producer gives up", lambda turn: turn.source(index, Abort(outcome=LogicalOutcome.FAILED)))


def time_options(turn: Turn, index: int) -> Iterator[Option]:
    """Time passes, whoever is paused."""
    part, state = turn.part(index), turn.source_state(index)
    if state is not None and state.lease_ends is not None and not part.over:
        yield Option("the producer's lease runs out", lambda turn: turn.change_part(index, over=True))
    exposed = turn.destination_state()
    if exposed is not None and exposed.lease_ends is not None and not turn.request.over and index == 0:
        yield Option("the consumer's lease runs out", _over)


def _over(turn: Turn) -> None:
    turn.request = turn.request._replace(over=True)


def _abandoned(turn: Turn, index: int) -> None:
    if turn.part(index).source == ABSENT:
        turn.marks.add("an abandon overtook its order")
        turn.change_part(index, barred=True)
    else:
        turn.source(index, Abandon(holder=CONSUMER, holder_incarnation=LIFE))


def _consumer_lost(turn: Turn, index: int) -> None:
    if turn.part(index).source == ABSENT:
        deaf = turn.scope.switches.admit_the_dead
        turn.change_part(index, barred=not deaf, deaf=deaf)
        return
    evidence = Evidence.PROCESS_EXITED if turn.request.consumer_died else Evidence.FENCED_AND_CLOSED
    turn.source(index, PeerLost(worker=CONSUMER, incarnation=LIFE, evidence=evidence))


def _engine_stopped(turn: Turn, index: int) -> None:
    turn.change_part(index, engine=Engine.OFF)
    if turn.part(index).writes:
        turn.change_part(index, writes=Writing.STALLED)
    turn.source(index, Drained(evidence=Evidence.OWN_WORK_ENDED))


def _reaped(turn: Turn, index: int) -> None:
    turn.source(index, Expire(now=now(turn.part(index).over)))
