"""Which of the producer's layer groups meets which of the consumer's, and over which layers.

Engines group layers differently: one keeps sliding-window layers apart, another keeps all layers alike. Two groups meet
where they hold the same components of the same layers, in rows for as many tokens.
"""

from dataclasses import dataclass

from isthmus.state.representation import GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Meeting", "meetings"]


_Holding = tuple[int, int, tuple[str, ...]]
"""A layer, the tokens that a row stands for, and the components."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Groups number `producer` and `consumer`, and the layers that both hold."""

    producer: int
    consumer: int
    layers: tuple[int, ...]


def meetings(producer: KVRepresentation, consumer: KVRepresentation) -> tuple[tuple[Meeting, ...], str]:
    """All meetings, and '' or what one side holds and the other does not."""
    ours, theirs = producer.groups, consumer.groups
    if len(ours) == len(theirs) == 1 and ours[0].layers == theirs[0].layers and _names(ours[0]) == _names(theirs[0]):
        return (Meeting(0, 0, ours[0].layers),), ""
    found = []
    for i, mine in enumerate(ours):
        for j, other in enumerate(theirs):
            if _names(mine) == _names(other) and mine.tokens_per_state == other.tokens_per_state:
                held = set(other.layers)
                layers = tuple(layer for layer in mine.layers if layer in held)
                if layers:
                    found.append(Meeting(i, j, layers))
    left, right = _holdings(ours), _holdings(theirs)
    return tuple(found), "" if left == right else _missing(left, right)


def _names(group: GroupRepresentation) -> tuple[str, ...]:
    return tuple(sorted(component.name for component in group.components))


def _holdings(groups: tuple[GroupRepresentation, ...]) -> set[_Holding]:
    return {(layer, group.tokens_per_state, _names(group)) for group in groups for layer in group.layers}


def _missing(left: set[_Holding], right: set[_Holding]) -> str:
    """The first thing that one side lacks."""
    found = min(left ^ right)
    layer, tokens, names = found
    holder, other = ("producer", "consumer") if found in left else ("consumer", "producer")
    each = f" a row for {tokens} tokens" if tokens > 1 else ""
    return f"{holder} holds {', '.join(names)}{each} of layer {layer}, {other} does not"
