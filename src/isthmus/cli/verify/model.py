"""`isthmus verify model`: the ownership protocol checked by exhaustion, within finite scopes."""

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from isthmus.core.errors import BadInput

if TYPE_CHECKING:
    from isthmus.ownership.model.campaign import Campaign

__all__ = ["model"]

WALKS_MAX = 1 << 30


def model(
    *,
    tier: Annotated[str, Parameter(help="quick: for every change. full: the large scopes too.")] = "quick",
    scope: Annotated[list[str] | None, Parameter(help="Only this scope; repeat for more.", negative="")] = None,
    mutants: Annotated[bool, Parameter(help="Take each guard out in turn: the check must find what follows.")] = True,
    walks: Annotated[int, Parameter(help="Random walks where a scope is too large to be exhausted.")] = 20_000,
    seed: Annotated[int, Parameter(help="Of the walks.")] = 0,
    list_: Annotated[bool, Parameter(name="--list", negative="", help="Say which scopes there are.")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Drive production's own protocol through every order of events, faults and messages that a scope has room for.

    Exits 0 if no invariant is violated, all that must happen somewhere has, and no mutant lives; else 3.
    """
    from isthmus.core.clock import SystemClock
    from isthmus.ownership.model.campaign import run_campaign
    from isthmus.ownership.model.mutants import MUTANTS
    from isthmus.ownership.model.scopes import SCOPES, TIERS, named

    if tier not in TIERS:
        raise BadInput(f"--tier: got {tier!r}, wanted one of {', '.join(TIERS)}", field="tier")
    if not 0 <= walks <= WALKS_MAX:
        raise BadInput(f"--walks: got {walks}, wanted 0 to {WALKS_MAX}", field="walks")
    chosen = [named(name) for name in (scope or TIERS[tier])]
    if list_:
        rows = [{"name": each.scope.name, "about": each.scope.about} for each in SCOPES.values()]
        _print(rows, json_=json_)
        return 0
    campaign = run_campaign(chosen, MUTANTS if mutants else (), walks=walks, seed=seed, clock=SystemClock(), say=_say)
    if json_:
        _json(campaign.summary())
    else:
        _show(campaign)
    return 0 if campaign.ok else 3


def _print(rows: list[dict[str, str]], *, json_: bool) -> None:
    if json_:
        _json(rows)
    else:
        sys.stdout.write("".join(f"{row['name']:14} {row['about']}\n" for row in rows))


def _show(campaign: "Campaign") -> None:
    write = sys.stdout.write
    for run in campaign.scopes:
        explored = run.explored
        extent = "exhausted" if explored.exhausted else f"to depth {explored.depth}"
        write(f"{run.named.scope.name:14} {explored.states:>12,} states {explored.transitions:>13,} moves  {extent}\n")
        if run.walked is not None:
            write(f"{'':14} {run.walked.walks:>12,} walks  {run.walked.moves:>13,} moves  up to {run.walked.longest}\n")
        for line, seen in run.sometimes.items():
            if not seen:
                write(f"{'':14} never seen: {line}\n")
        for line in run.wrong:
            write(f"{line}\n")
    for mutant in campaign.mutants:
        verdict = "killed" if mutant.killed else "LIVES "
        write(f"{verdict} {mutant.mutant.name:28} {mutant.found or '-':4} in {mutant.moves:>2} moves\n")
    summary = campaign.summary()
    write(
        f"{summary['states']:,} states, {summary['transitions']:,} moves, {len(campaign.scopes)} scopes; "
        f"mutants killed {summary['mutants_killed']}/{summary['mutants']}; {campaign.seconds:.0f} s: "
        f"{'all holds' if campaign.ok else 'NOT ALL HOLDS'}\n"
    )


def _json(found: object) -> None:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
