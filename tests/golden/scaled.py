"""A pair's representations cut down to a few layers, so that a plan can be run in memory."""

import msgspec

from isthmus.portability.alignment import meetings
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["scaled"]

Sides = tuple[KVRepresentation, KVRepresentation]


def scaled(producer: KVRepresentation, consumer: KVRepresentation) -> Sides:
    """Both sides with the first and the last layer of each meeting, and the first of each stage, numbered anew."""
    met, missing = meetings(producer, consumer)
    assert not missing
    kept = {layer for meeting in met for layer in (meeting.layers[0], meeting.layers[-1])}
    kept |= {*producer.partition.pp_starts, *consumer.partition.pp_starts}
    return _cut(producer, sorted(kept)), _cut(consumer, sorted(kept))


def _cut(side: KVRepresentation, kept: list[int]) -> KVRepresentation:
    groups = []
    for group in side.groups:
        layers = tuple(kept.index(layer) for layer in group.layers if layer in kept)
        groups.append(msgspec.structs.replace(group, layers=layers))
    starts = tuple(kept.index(layer) for layer in side.partition.pp_starts)
    partition = msgspec.structs.replace(side.partition, pp_starts=starts)
    return msgspec.structs.replace(side, groups=tuple(groups), partition=partition)
