"""Which transport two workers use: the first of the preferred ones that the owner offers and this reader can reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.core.errors import Unsupported
from isthmus.transport.base import Endpoint, Reader, transport_name

__all__ = ["PREFERRED", "Route", "choose"]

PREFERRED = ("memory", "shm", "tcp")
"""Fastest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A way to one peer: read `endpoint` with `reader`."""

    transport: str
    reader: Reader
    endpoint: Endpoint


def choose(offered: Sequence[Endpoint], readers: Mapping[str, Reader], preferred: Sequence[str] = PREFERRED) -> Route:
    """The route to a peer that registered the endpoints `offered`; `readers` is by transport name.

    Raises:
        Unsupported: no transport is offered, preferred and reachable. The message names both sides' lists.
    """
    endpoints = {transport_name(endpoint): endpoint for endpoint in offered}
    for name in preferred:
        if name in endpoints and name in readers and readers[name].can_reach(endpoints[name]):
            return Route(transport=name, reader=readers[name], endpoint=endpoints[name])
    apart = sorted(name for name in endpoints if name in readers and name in preferred)
    raise Unsupported(
        f"transport: the owner offers {sorted(endpoints)}, this worker reads {sorted(readers)} and prefers "
        f"{list(preferred)}; " + (f"{apart} cannot reach the owner from here" if apart else "they share none"),
        field="transport",
    )
