"""`isthmus bench`: measure, and say where the numbers come from."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from isthmus.core.errors import BadInput

__all__ = ["bench"]

BENCHES = ("check", "loss", "ownership")


def bench(
    name: Annotated[str, Parameter(help=f"One of {', '.join(BENCHES)}.")],
    /,
    *,
    rounds: Annotated[int, Parameter(help="Measurements of each case.")] = 5,
    save: Annotated[bool, Parameter(negative="", help="Keep the result under benchmarks/results/.")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> None:
    """Run a bench: a table, or JSON with machine, versions, commit, n and spread."""
    if name not in BENCHES:
        raise BadInput(f"bench: got {name!r}, wanted one of {', '.join(BENCHES)}", field="name")
    if not 1 <= rounds <= 1000:
        raise BadInput(f"--rounds: got {rounds}, wanted 1 to 1000", field="rounds")
    from isthmus.lab.bench.harness import save as keep

    found = _run(name, rounds)
    if save:
        sys.stderr.write(f"{keep(found, Path.cwd())}\n")
    if json_:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _show(found)


def _run(name: str, rounds: int) -> dict[str, Any]:
    if name == "loss":
        from isthmus.lab.bench.loss import bench_loss

        return bench_loss()
    if name == "ownership":
        from isthmus.lab.bench.ownership import bench_ownership

        return bench_ownership(rounds)
    from isthmus.lab.bench.check import bench_check

    return bench_check(rounds)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(
        box=None, pad_edge=False, title=f"{found['bench']} on {found['machine']['cpu']}", title_justify="left"
    )
    for column in ("case", "median", "unit", "n", "min", "max", "wanted"):
        table.add_column(column, justify="left" if column in ("case", "unit", "wanted") else "right")
    for each in found["rows"]:
        numbers = [f"{each[key]:,.4g}" for key in ("min", "max")]
        table.add_row(each["case"], f"{each['median']:,.4g}", each["unit"], str(each["n"]), *numbers, each["wanted"])
    console.print(table)
