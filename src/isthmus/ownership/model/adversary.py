"""What nobody honest sends, and what the world does to bytes: messages of strangers, of old lives and epochs; renewals.

A guard that refuses these leaves the state as it is, so that they add no states while production is right.
"""

from collections.abc import Iterator
from typing import Final

from isthmus.core.ids import Epoch, GrantId, Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.pull import next_stage
from isthmus.ownership.model.records import Stage
from isthmus.ownership.model.turn import CONSUMER, GRANT, LEASE, LIFE, OWN_EPOCH, PRODUCER, Turn, now, tenant
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.events import (
    Abandon,
    Confirm,
    Confirmed,
    DestinationEvent,
    PeerLost,
    PeerReincarnated,
    ReadSeen,
    Register,
    Renew,
    SourceEvent,
    Submit,
    Written,
)
from isthmus.ownership.protocol.states import DestinationPhase, LogicalOutcome

__all__ = ["consumer_forgeries", "producer_forgeries", "renewals"]

_STRANGER: Final = WorkerId("stranger")
_OLD_LIFE: Final = Incarnation("old")
_OTHER_EPOCH: Final = Epoch(2)
_OTHER_GRANT: Final = GrantId("other")


def renewals(turn: Turn, index: int) -> Iterator[Option]:
    """The holder renews, for a lease or for less, at any moment; and a transport reports that it reads."""
    state, destination, part = turn.source_state(index), turn.destination_state(), turn.part(index)
    if state is None or state.grant is None or destination is None or destination.parts[index].grant is None:
        return
    if turn.scope.faults.renews:
        for lease in (LEASE, Duration(0)):
            renew = Renew(
                now=now(part.over),
                grant=GRANT,
                epoch=OWN_EPOCH,
                holder=CONSUMER,
                holder_incarnation=LIFE,
                lease=lease,
            )
            yield Option("a renewal reaches the producer", _Tell(index, renew), why=Why.FAULT)
    if turn.pulls and turn.scope.faults.sees_reads and part.stage == Stage.READ:
        seen = ReadSeen(now=now(part.over), grant=GRANT, epoch=OWN_EPOCH, reader=CONSUMER)
        yield Option("the producer sees the read", _Tell(index, seen), why=Why.FAULT)


def producer_forgeries(turn: Turn, index: int) -> Iterator[Option]:
    """What a producer must not believe, about a part that it knows."""
    if turn.source_state(index) is None:
        return
    for label, event in _to_producer(turn, index):
        yield Option(f"{label} reaches the producer", _Tell(index, event), why=Why.FAULT)


def _to_producer(turn: Turn, index: int) -> Iterator[tuple[str, SourceEvent]]:
    moment = now(turn.part(index).over)
    for label, grant, epoch, holder, life in (
        ("a confirmation by a stranger", GRANT, OWN_EPOCH, _STRANGER, LIFE),
        ("a confirmation by an old life of the consumer", GRANT, OWN_EPOCH, CONSUMER, _OLD_LIFE),
        ("a confirmation of another epoch", GRANT, _OTHER_EPOCH, CONSUMER, LIFE),
        ("a confirmation under another grant", _OTHER_GRANT, OWN_EPOCH, CONSUMER, LIFE),
    ):
        yield label, Confirm(now=moment, grant=grant, epoch=epoch, holder=holder, holder_incarnation=life)
    yield "an abandon by a stranger", Abandon(holder=_STRANGER, holder_incarnation=LIFE)
    yield (
        "the death of an old life of the consumer",
        PeerLost(worker=CONSUMER, incarnation=_OLD_LIFE, evidence=Evidence.PROCESS_EXITED),
    )
    yield "that the consumer is silent", PeerLost(worker=CONSUMER, incarnation=LIFE, evidence=Evidence.SILENCE)
    if turn.request.consumer_died:
        yield "the consumer's next life", PeerReincarnated(worker=CONSUMER, incarnation=Incarnation("next"))
    if not turn.pulls:
        yield (
            "a registration by a stranger",
            Register(grant=_OTHER_GRANT, epoch=OWN_EPOCH, holder=_STRANGER, holder_incarnation=LIFE),
        )


def consumer_forgeries(turn: Turn, index: int) -> Iterator[Option]:
    """What a consumer must not believe."""
    state = turn.destination_state()
    if state is None:
        return
    for label, event in _to_consumer(turn, index):
        yield Option(f"{label} reaches the consumer", _TellConsumer(event, index), why=Why.FAULT)
    if turn.pulls and state.phase is DestinationPhase.RESERVED:
        yield Option("an offer of another tenant reaches the consumer", _foreign_offer, why=Why.FAULT)
    if turn.pulls and state.prepared and state.outcome is LogicalOutcome.PENDING:
        yes = Confirmed(epoch=_OTHER_EPOCH, part=index)
        yield Option("a yes for another epoch reaches the consumer", _TellConsumer(yes, index), why=Why.FAULT)


def _to_consumer(turn: Turn, index: int) -> Iterator[tuple[str, DestinationEvent]]:
    moment = now(turn.request.over)
    own = tenant(turn.scope.tenant(turn.index))
    if not turn.pulls:
        for label, grant, epoch, writer, life in (
            ("a stranger's word that all is written", GRANT, OWN_EPOCH, _STRANGER, LIFE),
            ("an old life's word that all is written", GRANT, OWN_EPOCH, PRODUCER, _OLD_LIFE),
            ("the word that another epoch is written", GRANT, _OTHER_EPOCH, PRODUCER, LIFE),
            ("the word that all is written under another grant", _OTHER_GRANT, OWN_EPOCH, PRODUCER, LIFE),
        ):
            yield (
                label,
                Written(
                    now=moment,
                    grant=grant,
                    epoch=epoch,
                    writer=writer,
                    writer_incarnation=life,
                    tenant=own,
                    evidence=Evidence.REVOKED,
                    part=index,
                ),
            )
    yield (
        "the death of an old life of the producer",
        PeerLost(worker=PRODUCER, incarnation=_OLD_LIFE, evidence=Evidence.PROCESS_EXITED),
    )
    yield "that the producer is silent", PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.SILENCE)
    if turn.request.producer_died:
        yield "the producer's next life", PeerReincarnated(worker=PRODUCER, incarnation=Incarnation("next"))


def _foreign_offer(turn: Turn) -> None:
    turn.destination(Submit(tenant=tenant(99), grant=_OTHER_GRANT, epoch=OWN_EPOCH))
    if turn.refusal is None:
        raise Violation("I7", "an offer of another tenant was accepted")


class _Tell:
    """An event of a part comes to the producer."""

    def __init__(self, index: int, event: SourceEvent) -> None:
        self.index, self.event = index, event

    def __call__(self, turn: Turn) -> None:
        turn.source(self.index, self.event)


class _TellConsumer:
    """An event comes to the consumer, which acts upon it."""

    def __init__(self, event: DestinationEvent, index: int) -> None:
        self.event, self.index = event, index

    def __call__(self, turn: Turn) -> None:
        before = turn.request.destination
        turn.destination(self.event)
        if isinstance(self.event, Written) and turn.request.destination != before:
            next_stage(turn, self.index)
