"""A fleet: names to launch lines, and the verdict on every pair.

prefill-a: vllm serve Qwen/Qwen3-32B @h100
decode-b: python -m sglang.launch_server --model-path Qwen/Qwen3-32B @mi300x
"""

from pathlib import Path
from typing import Any

import msgspec

from isthmus.core.errors import BadInput, IsthmusError, NotCovered
from isthmus.core.limits import WORKERS_MAX
from isthmus.engines.launch.describe import describe
from isthmus.engines.launch.yaml_text import read_yaml
from isthmus.portability.verdict import decide
from isthmus.state.description import Description

__all__ = ["check_fleet"]


def check_fleet(path: Path) -> dict[str, Any]:
    """Every ordered pair of a fleet's file: `{"sides": {...}, "pairs": [...]}`.

    Raises:
        BadInput: the file, or a line in it, cannot be read.
    """
    lines = _read(path)
    sides = {name: _side(name, line) for name, line in lines.items()}
    return {
        "sides": {
            name: {"line": lines[name], "unknown": side if isinstance(side, str) else None}
            for name, side in sides.items()
        },
        "pairs": [_pair(a, b, sides[a], sides[b]) for a in sides for b in sides if a != b],
    }


def _read(path: Path) -> dict[str, str]:
    hint = "wanted a YAML file of names to launch lines (`name: line @accelerator`)"
    lines: dict[str, str] = read_yaml(path, dict[str, str], hint=hint, field="fleet")
    if not 2 <= len(lines) <= WORKERS_MAX:
        raise BadInput(f"{path}: got {len(lines)} sides, wanted 2 to {WORKERS_MAX}", field="fleet")
    return lines


def _side(name: str, line: str) -> Description | str:
    """A side, or why it is unknown."""
    try:
        return describe(line)
    except NotCovered as error:
        return str(error)
    except IsthmusError as error:
        raise type(error)(f"{name}: {error}", field=error.field) from None


def _pair(producer: str, consumer: str, ours: Description | str, theirs: Description | str) -> dict[str, Any]:
    found: dict[str, Any] = {"producer": producer, "consumer": consumer}
    if isinstance(ours, str) or isinstance(theirs, str):
        return found | {"verdict": "unknown", "fields": [], "assumed": []}
    decision = decide((ours.identity, ours.representation), (theirs.identity, theirs.representation))
    fields = [m.field for m in decision.gate.mismatches]
    fields += [d.name for d in decision.differences if d.resolution != "none"]
    return found | {
        "verdict": decision.outcome.value,
        "fields": fields,
        "assumed": msgspec.to_builtins(decision.gate.assumptions),
    }
