"""Seeds that have failed once, what they had found, and how it was fixed: `corpus.yaml`. Always run first.

What a seed draws changes when the simulation does; so what was found also has a test of its own where it was fixed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from isthmus.core.errors import Bug

__all__ = ["CORPUS", "Found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One seed. `fixed` says where, and by what."""

    seed: int
    found: str
    fixed: str


def _read() -> tuple[Found, ...]:
    text = (Path(__file__).parent / "corpus.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = yaml.safe_load(text) or []
    try:
        return tuple(Found(**entry) for entry in entries)
    except TypeError as error:
        raise Bug(f"corpus.yaml: {error}", field="corpus") from None


CORPUS: Final = _read()
