"""`isthmus verify seeds`: the seeded simulation of hand-offs and ownership, in virtual time, with every fault."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from isthmus.core.errors import BadInput

if TYPE_CHECKING:
    from isthmus.lab.seeds.campaign import Campaign

__all__ = ["replay", "seeds"]

SEEDS_MAX = 1 << 40
JOBS_MAX = 256


def seeds(
    *,
    count: Annotated[int, Parameter(help="How many seeds.")] = 1000,
    start: Annotated[int, Parameter(help="The first of them.")] = 0,
    seconds: Annotated[float | None, Parameter(help="Stop after so long.")] = None,
    jobs: Annotated[int, Parameter(help="Processes.")] = 1,
    save: Annotated[Path | None, Parameter(help="A campaign's file: running again goes on where it stopped.")] = None,
    canary: Annotated[str | None, Parameter(help="Take one check out, or each in turn (all): must go red.")] = None,
    corpus: Annotated[bool, Parameter(help="Run the seeds that have failed once first.")] = True,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Run the real hand-off and ownership code in simulated worlds, one a seed. Exits 0 where none fails, else 3.

    Each seed draws its own workers, requests and mix of faults; then the world heals, everything must be answered and
    nothing may be held. `isthmus verify replay SEED` prints what happened in one.
    """
    _check(count, start, seconds, jobs)
    if canary is not None:
        return _canaries(canary, json_=json_)
    from isthmus.core.units import Duration
    from isthmus.lab.seeds.campaign import CampaignOrder, run_campaign

    order = CampaignOrder(
        start=start,
        count=count,
        duration=None if seconds is None else Duration.of_seconds(seconds),
        jobs=jobs,
        save=save,
        corpus=corpus,
    )
    found = run_campaign(order, _say)
    if json_:
        sys.stdout.write(msgspec.json.encode(found.summary()).decode() + "\n")
    else:
        _show(found)
    return 3 if found.tally.failures else 0


def replay(
    seed: Annotated[int, Parameter(help="The seed.")],
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Run one seed again, and print all that happened in it. Exits 0 where every rule held, else 3."""
    _check(1, seed, None, 1)
    from isthmus.lab.seeds.world import run_seed

    outcome = run_seed(seed)
    lines, digest = outcome.transcript.text(), outcome.transcript.digest()
    if json_:
        found = {
            "seed": seed,
            "violations": outcome.violations,
            "faults": dict(outcome.faults),
            "virtual_seconds": outcome.virtual_seconds,
            "digest": digest,
            "transcript": lines,
        }
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write("\n".join(lines) + f"\ndigest {digest}\n")
        for violation in outcome.violations:
            sys.stdout.write(f"VIOLATED {violation}\n")
    return 3 if outcome.violations else 0


def _canaries(name: str, *, json_: bool) -> int:
    from isthmus.lab.seeds.canaries import CANARIES, run_canary

    chosen = [canary for canary in CANARIES if name in ("all", canary.name)]
    if not chosen:
        raise BadInput(
            f"--canary: got {name!r}, wanted all or one of {', '.join(canary.name for canary in CANARIES)}",
            field="canary",
        )
    caught = []
    for canary in chosen:
        caught.append(run_canary(canary))
        _say(f"{canary.name}: {'seed ' + str(caught[-1].seed) if caught[-1].violation else 'NOT CAUGHT'}")
    right = sum(bool(each.violation) for each in caught)
    if json_:
        rows = [
            {
                "canary": each.canary.name,
                "without": each.canary.without,
                "rule": each.canary.rule,
                "within": each.canary.within,
                "seed": each.seed,
                "violation": each.violation,
            }
            for each in caught
        ]
        sys.stdout.write(json.dumps({"caught": right, "of": len(caught), "canaries": rows}) + "\n")
    else:
        for each in caught:
            where = f"seed {each.seed}" if each.violation else f"NOT CAUGHT in {each.seeds}"
            sys.stdout.write(f"{each.canary.name:18} {each.canary.rule:4} {where:24} {each.violation}\n")
        sys.stdout.write(f"caught {right}/{len(caught)}\n")
    return 0 if right == len(caught) else 3


def _check(count: int, start: int, seconds: float | None, jobs: int) -> None:
    for name, value, least, most in (
        ("--count", count, 0, SEEDS_MAX),
        ("--start", start, 0, SEEDS_MAX),
        ("--jobs", jobs, 1, JOBS_MAX),
    ):
        if not least <= value <= most:
            raise BadInput(f"{name}: got {value}, wanted {least} to {most}", field=name)
    if seconds is not None and not 0 < seconds < 1e9:
        raise BadInput(f"--seconds: got {seconds:g}, wanted more than 0", field="--seconds")


def _show(campaign: "Campaign") -> None:
    for key, value in campaign.summary().items():
        if key not in ("faults", "failed", "tally", "done", "commits"):
            sys.stdout.write(f"{key:18} {value}\n")
    for kind, count in sorted(campaign.tally.faults.items()):
        sys.stdout.write(f"  {kind:18} {count}\n")
    for failure in campaign.tally.failed:
        sys.stdout.write(f"seed {failure.seed}: {'; '.join(failure.violations)}\n")
        sys.stdout.write(f"  isthmus verify replay {failure.seed}    (commit {failure.commit})\n")


def _say(text: str) -> None:
    sys.stderr.write(f"seeds: {text}\n")
