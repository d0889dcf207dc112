"""The pairs of `pairs.yaml`, and what is computed for each."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from isthmus.core.errors import NotCovered
from isthmus.engines.launch.describe import describe
from isthmus.portability.check import check, report, unknown_report
from isthmus.state.description import Description

HERE = Path(__file__).parent
REPORTS = HERE / "reports"


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two launch lines and what was worked out by hand; `pairs.yaml` explains the fields."""

    name: str
    producer: str
    consumer: str
    verdict: str
    source: str
    fields: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    without: dict[str, str] = {}
    bug: str = ""


@cache
def pairs() -> tuple[Pair, ...]:
    """All pairs, in the file's order."""
    return msgspec.yaml.decode((HERE / "pairs.yaml").read_bytes(), type=tuple[Pair, ...])


@cache
def described(line: str) -> Description:
    """A side; many pairs share one."""
    return describe(line)


@cache
def computed(producer: str, consumer: str) -> dict[str, Any]:
    """What `isthmus check --json` prints for two lines, whole."""
    try:
        sides = described(producer), described(consumer)
    except NotCovered as error:
        return unknown_report(str(error), error.field)
    return report(check(*sides))


def shortened(found: dict[str, Any]) -> dict[str, Any]:
    """A report without the connectors' long reasons, which would be most of each stored file."""
    short = copy.deepcopy(found)
    short["without_isthmus"] = [
        {key: each[key] for key in ("connector", "outcome", "source")} for each in found["without_isthmus"]
    ]
    return short


def stored_form(pair: Pair) -> bytes:
    """A pair's report as it is stored: keys sorted, one space of indent."""
    found = shortened(computed(pair.producer, pair.consumer))
    return msgspec.json.format(msgspec.json.encode(found, order="sorted"), indent=1) + b"\n"
