"""`isthmus verify protocol`: whether PROTOCOL.md is what the code says."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["protocol"]


def protocol(
    path: Annotated[Path, Parameter(help="The document.")] = Path("PROTOCOL.md"),
    *,
    write: Annotated[bool, Parameter(negative="", help="Write the tables anew.")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Hold the generated tables of PROTOCOL.md against the protocol itself. Exits 1 where they differ."""
    from isthmus.lab.protocol_doc import BLOCKS, drift, regenerated

    difference = drift(path)
    if write and difference:
        path.write_text(regenerated(path.read_text()))
    if json_:
        found = {"path": str(path), "tables": len(BLOCKS), "written": write and bool(difference), "drift": difference}
        sys.stdout.write(json.dumps(found) + "\n")
    elif write:
        sys.stdout.write(f"{path}: {'written' if difference else 'as the code says already'}\n")
    elif difference:
        sys.stdout.write("\n".join(difference) + f"\n{path} is not what the code says; --write writes it anew\n")
    else:
        sys.stdout.write(f"{path}: {len(BLOCKS)} tables, all as the code says\n")
    return 1 if difference and not write else 0
