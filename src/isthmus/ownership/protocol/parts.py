"""The parts of a consumer's side: one for each pair of ranks and layer group.

They come one by one and are installed together: a hand-off is in the phase of its slowest part.
"""

from typing import Any

from msgspec.structs import replace

from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, Part, PartStage, TriggerMode

__all__ = [
    "all_written",
    "end_parts",
    "own_active",
    "peer_active",
    "phase_of",
    "some_own_active",
    "some_peer_active",
    "with_part",
]

_OWN_PULL = (PartStage.RECEIVING, PartStage.CONVERTING, PartStage.VERIFYING)
_OWN_PUSH = (PartStage.CONVERTING, PartStage.VERIFYING)
_PEER_PUSH = (PartStage.WAITING, PartStage.RECEIVING)
_PHASES = {
    PartStage.WAITING: DestinationPhase.RECEIVING,
    PartStage.RECEIVING: DestinationPhase.RECEIVING,
    PartStage.CONVERTING: DestinationPhase.CONVERTING,
}


def with_part(state: DestinationHandoff, index: int, stage: PartStage, **changes: Any) -> tuple[Part, ...]:
    """All parts, with one of them at `stage`."""
    part = replace(state.parts[index], stage=stage, **changes)
    if len(state.parts) == 1:
        return (part,)
    return (*state.parts[:index], part, *state.parts[index + 1 :])


def phase_of(parts: tuple[Part, ...]) -> DestinationPhase:
    """The phase of a hand-off whose bytes are on their way."""
    return _PHASES.get(min([part.stage for part in parts]), DestinationPhase.VERIFYING)


def own_active(state: DestinationHandoff, stage: PartStage) -> bool:
    """Whether something of ours (a read, a conversion, a check) touches a part at `stage`."""
    return stage in (_OWN_PULL if state.mode is TriggerMode.PULL else _OWN_PUSH)


def peer_active(state: DestinationHandoff, part: Part) -> bool:
    """Whether the producer may be writing a part: it has the grant and has not said that it writes no more."""
    return state.mode is not TriggerMode.PULL and part.grant is not None and part.stage in _PEER_PUSH


def some_own_active(state: DestinationHandoff) -> bool:
    return any(own_active(state, part.stage) for part in state.parts)


def some_peer_active(state: DestinationHandoff) -> bool:
    return any(peer_active(state, part) for part in state.parts)


def all_written(state: DestinationHandoff) -> bool:
    """Push and send: every part has come, and nothing more is wanted of the producer before the commit."""
    return state.mode is not TriggerMode.PULL and state.phase in (
        DestinationPhase.CONVERTING,
        DestinationPhase.VERIFYING,
    )


def end_parts(state: DestinationHandoff, *, own: bool, peer: bool) -> DestinationHandoff:
    """Every part that `own` work, or the `peer`, may have touched is touched no more."""
    parts = tuple(
        replace(part, stage=PartStage.ENDED)
        if (own and own_active(state, part.stage)) or (peer and peer_active(state, part))
        else part
        for part in state.parts
    )
    return replace(state, parts=parts)
