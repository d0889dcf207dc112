"""`isthmus check` and `isthmus describe`: may this KV cross, before the first byte."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from isthmus.core.errors import BadInput, IsthmusError, NotCovered

__all__ = ["check", "describe"]

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]

EXIT = {"reject": 1, "unknown": 3}
"""0 may cross, 1 reject, 2 bad input (raised), 3 unknown."""


def describe(
    side: Annotated[str, Parameter(help="A launch line with @accelerator, or a description file.")],
    /,
    *,
    json_: Json = False,
) -> int:
    """Say what an engine's launch line stands for: identity, representation, and what is assumed.

    `isthmus describe 'vllm serve Qwen/Qwen3-32B --kv-cache-dtype fp8 -tp 4 @mi300x' --json > a.json` writes a file
    that `isthmus check` takes.
    """
    from isthmus.engines.launch.describe import describe as read

    try:
        found = read(side)
    except NotCovered as error:
        sys.stderr.write(f"isthmus: unknown: {error}\n")
        return EXIT["unknown"]
    if json_:
        _json(msgspec.to_builtins(found))
    else:
        from isthmus.cli.show_check import show_description

        show_description(found)
    return 0


def check(
    producer: Annotated[
        str | None, Parameter(help="The side that prefills: a launch line, or a description file.")
    ] = None,
    consumer: Annotated[str | None, Parameter(help="The side that decodes.")] = None,
    /,
    *,
    fleet: Annotated[Path | None, Parameter(help="A YAML file of names to launch lines: all pairs.")] = None,
    explain: Annotated[bool, Parameter(negative="", help="Draw both byte maps side by side.")] = False,
    tokens: Annotated[int | None, Parameter(help="Tokens of the prompt that the price is for (8192).")] = None,
    link_gbps: Annotated[float | None, Parameter(help="The link in Gbit/s.")] = None,
    json_: Json = False,
) -> int:
    """Decide whether the consumer may read the producer's KV, why, how, and at what price.

    Exit codes: 0 may cross, 1 reject, 2 bad input, 3 unknown.
    """
    if (tokens is not None and not 1 <= tokens <= 1 << 20) or (link_gbps is not None and not 0 < link_gbps < 1e6):
        raise BadInput("--tokens, --link-gbps: wanted 1 to 1048576 tokens, and a positive number", field="tokens")
    if fleet is not None:
        if producer is not None or consumer is not None:
            raise BadInput("--fleet: takes no launch lines beside it", field="fleet")
        return _fleet(fleet, json_)
    if producer is None or consumer is None:
        raise BadInput("check: wanted two sides, each a launch line in quotes or a description file", field="consumer")
    return _pair(producer, consumer, tokens, link_gbps, json_=json_, explain=explain)


def _pair(
    producer: str, consumer: str, tokens: int | None, link_gbps: float | None, *, json_: bool, explain: bool
) -> int:
    from isthmus.engines.launch.describe import describe as read
    from isthmus.portability.check import check as judge
    from isthmus.portability.check import report, unknown_report

    try:
        sides = [_side(name, text, read) for name, text in (("producer", producer), ("consumer", consumer))]
    except NotCovered as error:
        if json_:
            _json(unknown_report(str(error), error.field))
        else:
            sys.stdout.write(f"unknown: {error}\nWhat is not known is refused.\n")
        return EXIT["unknown"]
    found = judge(sides[0], sides[1], tokens=tokens, link_gbps=link_gbps)
    if json_:
        _json(report(found))
    else:
        from isthmus.cli.show_check import show_check

        show_check(found, explain=explain)
    return EXIT.get(found.verdict.outcome.value, 0)


def _side(name: str, text: str, read: Any) -> Any:
    """A side's description; what goes wrong says of which side."""
    try:
        return read(text)
    except IsthmusError as error:
        raise type(error)(f"{name}: {error}", field=error.field) from None


def _fleet(path: Path, json_: bool) -> int:
    """All pairs of a fleet. The exit code is the worst of all: bad input, unknown, reject, may cross."""
    from isthmus.engines.launch.fleet import check_fleet

    found = check_fleet(path)
    if json_:
        _json(found)
    else:
        from isthmus.cli.show_check import show_fleet

        show_fleet(found)
    verdicts = {pair["verdict"] for pair in found["pairs"]}
    return 3 if "unknown" in verdicts else 1 if "reject" in verdicts else 0


def _json(found: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
