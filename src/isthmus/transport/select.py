"""Which transport two workers use: the first preferred one that one side offers and the other can reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from isthmus.core.errors import Unsupported
from isthmus.transport.base import Endpoint, Reader, Writer, transport_name

__all__ = ["PREFERRED", "Route", "choose"]

PREFERRED = ("memory", "shm", "tcp")
"""Fastest first."""

Mover = TypeVar("Mover", Reader, Writer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Generic[Mover]):
    """A way to one peer: read or write `endpoint` by `mover`."""

    transport: str
    mover: Mover
    endpoint: Endpoint


def choose(
    offered: Sequence[Endpoint], movers: Mapping[str, Mover], preferred: Sequence[str] = PREFERRED
) -> Route[Mover]:
    """The route to a peer that registered the endpoints `offered`; `movers`, readers or writers, are by transport name.

    Raises:
        Unsupported: no transport is offered, preferred and reachable. The message names both sides' lists.
    """
    endpoints = {transport_name(endpoint): endpoint for endpoint in offered}
    for name in preferred:
        if name in endpoints and name in movers and movers[name].can_reach(endpoints[name]):
            return Route(transport=name, mover=movers[name], endpoint=endpoints[name])
    apart = sorted(name for name in endpoints if name in movers and name in preferred)
    raise Unsupported(
        f"transport: the peer offers {sorted(endpoints)}, this worker moves by {sorted(movers)} and prefers "
        f"{list(preferred)}; " + (f"{apart} cannot reach the peer from here" if apart else "they share none"),
        field="transport",
    )
