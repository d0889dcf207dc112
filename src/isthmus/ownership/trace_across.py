"""What the journals of producers and consumers must say of each other.

Sound only where both sides' journals are there, and in time only where both read one clock: an order that the journals
cannot show is not asked for, and a side that is missing is a gap, not a fault.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isthmus.core.ids import HandoffId, Incarnation
from isthmus.ownership.side import Side
from isthmus.ownership.trace_replay import Passed, Replayed

__all__ = ["Across", "compare"]


@dataclass(slots=True, kw_only=True)
class Across:
    """Installs that were held against their owners' journals, and what came of it."""

    installs: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


def compare(lives: Sequence[Replayed]) -> Across:
    """Every install against the journal of the producer's life that it was read from."""
    producers = {each.life.header.incarnation: each for each in lives if each.life.header.side is Side.PRODUCER}
    across = Across()
    for consumer in lives:
        if consumer.life.header.side is Side.CONSUMER:
            for passed in consumer.handoffs.values():
                if passed.installed is not None:
                    across.installs += 1
                    _install(consumer, passed, producers, across)
    return across


def _install(consumer: Replayed, passed: Passed, producers: Mapping[Incarnation, Replayed], across: Across) -> None:
    where = f"{consumer.life.name}: hand-off {passed.handoff[:8]} of {passed.peer} {passed.peer_incarnation[:8]}"
    producer = producers.get(passed.peer_incarnation)
    if producer is None:
        across.gaps.append(f"{where}: installed, and the producer's journal is not here")
        return
    source = producer.handoffs.get(HandoffId(passed.handoff))
    if source is None:
        incomplete = producer.life.gaps or producer.life.lost or not producer.life.whole_from_start
        (across.gaps if incomplete else across.faults).append(f"{where}: installed, and its owner never reserved it")
        return
    across.compared += 1
    if source.tenant != passed.tenant:
        across.faults.append(f"{where}: installed across tenants")  # I7
    if (source.peer, source.peer_incarnation) != (consumer.life.header.worker, consumer.life.header.incarnation):
        across.faults.append(f"{where}: installed by another than its holder, {source.peer}")
    if passed.confirms:
        _confirmed(where, passed, source, consumer, producer, across)


def _confirmed(
    where: str, passed: Passed, source: Passed, consumer: Replayed, producer: Replayed, across: Across
) -> None:
    """I1: the owner said yes, at that epoch, after the last byte and before the install."""
    epoch, installed = passed.confirms[0]
    yes = [at for confirmed, at in source.confirms if confirmed == epoch]
    if not yes:
        incomplete = producer.life.gaps or producer.life.lost
        kind = across.gaps if incomplete else across.faults
        kind.append(f"{where}: installed at epoch {epoch}, which its owner never confirmed")
        return
    if producer.life.header.clock != consumer.life.header.clock:
        return
    if min(yes) > installed:
        across.faults.append(f"{where}: installed before its owner's yes")
    if passed.arrived is not None and max(yes) < passed.arrived:
        across.faults.append(f"{where}: confirmed before the last byte had arrived")
