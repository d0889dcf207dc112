"""The named scopes: which finite worlds are checked, and in which tier.

`quick` takes a few minutes and is for every change; `full` adds the large ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from isthmus.core.errors import BadInput
from isthmus.ownership.model.scope import Faults, Scope
from isthmus.ownership.protocol.drain import TransportKind
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["SCOPES", "TIERS", "Named", "named"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A scope with what must be seen to happen in it at least once."""

    scope: Scope
    sometimes: tuple[str, ...]


_PULL: Final = (
    "installed",
    "an abandon overtook its order",
    "a read after its block was freed",
    "a read saw another request's bytes",
    "a torn copy was made",
    "a stale or torn copy was refused",
    "a confirmation was refused",
    "a block was reused under somebody who may still read it",
    "a reader was slower than its lease",
)
_PUSH: Final = (
    "installed",
    "an abandon overtook its order",
    "a registration came before all was filled",
    "a registration came after all was filled",
    "a late write reached a block kept for it",
    "blocks were quarantined",
    "a quarantine was released",
)
_SEND: Final = (*_PUSH, "a chunk was written while the rest was computed")
_QUARANTINE: Final = ("blocks were quarantined", "a quarantine was released")
_DEATHS: Final = (
    *(f"a producer died: {phase}" for phase in ("computing", "held", "published", "draining")),
    *(
        f"a consumer died: {phase}"
        for phase in ("reserved", "receiving", "converting", "verifying", "installed", "aborting")
    ),
)
_PUSH_DEATHS: Final = tuple(line.replace("receiving", "exposed") for line in _DEATHS)
_EVERYTHING: Final = Faults(crashes=1, source_gives_up=True, forges=True, renews=True, sees_reads=True, flips=True)


def _all() -> tuple[Named, ...]:
    pull = (
        Named(
            scope=Scope(
                name="shared_small",
                about="one request after another in few blocks, states as they are: counted by a second model too",
                requests=2,
                reduced=False,
            ),
            sometimes=_PULL,
        ),
        Named(
            scope=Scope(
                name="shared",
                about="as shared_small, with three requests: over three million states, none taken for another",
                requests=3,
                destination_slots=3,
                reduced=False,
            ),
            sometimes=_PULL,
        ),
        Named(scope=Scope(name="pull", about="four requests, two blocks a side", requests=4), sometimes=_PULL),
        Named(
            scope=Scope(name="staging", about="three requests, room to stage one: admission", requests=3, staging=1),
            sometimes=("installed", "a confirmation was refused"),
        ),
        Named(
            scope=Scope(
                name="prefix",
                about="hand-offs that share a retained source block, which is evicted when nobody uses it",
                requests=3,
                source_slots=3,
                prefix=True,
            ),
            sometimes=(
                *_PULL,
                "two hand-offs shared one source block",
                "a retained prefix was evicted",
                "a read after its prefix was evicted",
            ),
        ),
        Named(
            scope=Scope(
                name="hostile",
                about="forged and old messages, renewals long and short, bytes changed on the way",
                requests=2,
                source_slots=1,
                faults=Faults(forges=True, renews=True, sees_reads=True, flips=True, source_gives_up=True),
            ),
            sometimes=("installed", "bytes changed on the way were refused", "a stale or torn copy was refused"),
        ),
    )
    return (*pull, *_hard_pulls(), *_pushes(), *_large())


def _hard_pulls() -> tuple[Named, ...]:
    return (
        Named(
            scope=Scope(
                name="deaths",
                about="either worker may die and come back at any moment",
                requests=3,
                source_slots=1,
                faults=Faults(crashes=1),
            ),
            sometimes=(*_PULL, *_DEATHS),
        ),
        Named(
            scope=Scope(
                name="tenants",
                about="two tenants, deaths, transfers in doubt: quarantine",
                requests=2,
                source_slots=1,
                tenants=(0, 1),
                faults=Faults(crashes=1, source_gives_up=True, doubts=True, forges=True),
            ),
            sometimes=("installed", *_QUARANTINE, *_DEATHS, "a consumer died: in_doubt"),
        ),
        *(
            Named(
                scope=Scope(
                    name=f"fenced_{transport}",
                    about=f"two tenants over {transport}; workers pause longer than leases, and are fenced meanwhile",
                    requests=2,
                    source_slots=1,
                    tenants=(0, 1),
                    transport=transport,
                    faults=Faults(pauses=1, fences=True, source_gives_up=True, forges=True),
                ),
                sometimes=("installed", *_QUARANTINE, "a reader was slower than its lease"),
            )
            for transport in (TransportKind.SHM, TransportKind.TCP)
        ),
        Named(
            scope=Scope(
                name="parts",
                about="two hand-offs of two parts each, installed together",
                requests=2,
                parts=2,
                destination_slots=1,
            ),
            sometimes=("installed", "a read after its block was freed", "a confirmation was refused"),
        ),
    )


def _pushes() -> tuple[Named, ...]:
    push, send = TriggerMode.PUSH, TriggerMode.SEND
    return (
        Named(scope=Scope(name="push", about="two pushes", requests=2, mode=push), sometimes=_PUSH),
        Named(scope=Scope(name="send", about="two sends", requests=2, mode=send), sometimes=_SEND),
        Named(
            scope=Scope(
                name="push_hostile",
                about="pushes over tcp with deaths, forged messages and failing transfers",
                requests=2,
                source_slots=1,
                destination_slots=1,
                mode=push,
                transport=TransportKind.TCP,
                faults=_EVERYTHING,
            ),
            sometimes=(*_PUSH, *_PUSH_DEATHS),
        ),
        Named(
            scope=Scope(
                name="send_hostile",
                about="sends through shared memory with deaths, forged messages and failing transfers",
                requests=2,
                source_slots=1,
                destination_slots=1,
                mode=send,
                faults=_EVERYTHING,
            ),
            sometimes=(*_SEND, *_PUSH_DEATHS),
        ),
    )


def _large() -> tuple[Named, ...]:
    push, send = TriggerMode.PUSH, TriggerMode.SEND
    return (
        Named(scope=Scope(name="pull_large", about="five requests", requests=5), sometimes=_PULL),
        Named(
            scope=Scope(
                name="fleet",
                about="two producers, two consumers, two blocks each, three requests",
                requests=3,
                producers=2,
                consumers=2,
            ),
            sometimes=_PULL,
        ),
        Named(
            scope=Scope(name="deaths_large", about="deaths, two blocks a side", requests=3, faults=Faults(crashes=1)),
            sometimes=(*_PULL, *_DEATHS),
        ),
        Named(
            scope=Scope(
                name="fleet_deaths",
                about="the fleet with deaths and pauses, as deep as is affordable; beyond that, walks",
                requests=3,
                producers=2,
                consumers=2,
                faults=Faults(crashes=1, pauses=1),
                depth_max=10,
            ),
            sometimes=("installed", "a reader was slower than its lease"),
        ),
        Named(
            scope=Scope(
                name="push_deaths",
                about="three pushes, with deaths",
                requests=3,
                source_slots=1,
                destination_slots=1,
                mode=push,
                faults=Faults(crashes=1),
            ),
            sometimes=(*_PUSH, *_PUSH_DEATHS),
        ),
        Named(
            scope=Scope(
                name="send_deaths",
                about="three sends, with deaths",
                requests=3,
                source_slots=1,
                destination_slots=1,
                mode=send,
                faults=Faults(crashes=1),
            ),
            sometimes=(*_SEND, *_PUSH_DEATHS),
        ),
        Named(
            scope=Scope(
                name="parts_large",
                about="two hand-offs of two parts each, side by side",
                requests=2,
                parts=2,
                destination_slots=2,
            ),
            sometimes=("installed", "a read after its block was freed", "a confirmation was refused"),
        ),
        Named(scope=Scope(name="send_large", about="four sends", requests=4, mode=send), sometimes=_SEND),
        Named(scope=Scope(name="push_large", about="four pushes", requests=4, mode=push), sometimes=_PUSH),
    )


SCOPES: Final[Mapping[str, Named]] = {each.scope.name: each for each in _all()}

_LARGE: Final = ("shared", *(each.scope.name for each in _large()))
TIERS: Final[Mapping[str, tuple[str, ...]]] = {
    "quick": tuple(name for name in SCOPES if name not in _LARGE),
    "full": tuple(SCOPES),
}


def named(name: str) -> Named:
    """The scope of that name."""
    if name not in SCOPES:
        raise BadInput(f"--scope: got {name!r}, wanted one of {', '.join(SCOPES)}", field="scope")
    return SCOPES[name]
