"""`isthmus verify trace`: hold journals of real workers against the protocol, offline."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["trace"]

MEANING = {
    "valid": "every event is explained, and every install was confirmed by its owner",
    "invalid": "something is not explained; see the faults",
    "incomplete": "nothing is wrong in what is here, but a part of the history is missing; see the gaps",
}


def trace(
    *paths: Annotated[Path, Parameter(help="Journal files, or folders of them.")],
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Replay journals through the protocol's own rules. Exits 0 where they are valid, else 3."""
    from isthmus.ownership.trace import validate

    found = validate(paths).summary()
    if json_:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(f"{found['verdict']}: {MEANING[found['verdict']]}\n")
        for key, value in found.items():
            if key not in ("verdict", "faults", "gaps"):
                sys.stdout.write(f"  {key:26} {value}\n")
        for kind in ("faults", "gaps"):
            for each in found[kind]:
                sys.stdout.write(f"  {kind[:-1]}: {each}\n")
    return 0 if found["verdict"] == "valid" else 3
