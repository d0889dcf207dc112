"""What a chaos run proved: its figures, and its findings. No finding, and it has passed.

leaked blocks 0 · stale or torn installs 0 (journals) · wrong answers 0 · requests unanswered 0 · crashes 0
reclaim after a proven death: p99 below 1.5 leases
"""

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from isthmus.core.clock import Instant
from isthmus.core.ids import Incarnation
from isthmus.core.units import Duration
from isthmus.lab.bench.harness import result, row
from isthmus.lab.chaos.fleet import Cause, Death
from isthmus.lab.chaos.load import Answered, Ending
from isthmus.lab.chaos.run import ChaosRun
from isthmus.lab.chaos.shapes import LEASE
from isthmus.ownership.trace import Trace, percentile, validate

__all__ = ["report"]

RECLAIM_LEASES_MAX = 1.5
EXCUSE_AFTER = Duration.of_seconds(1)
"""A cut that shows itself this long after the gateway was back is still its death's: the client had to notice."""

SHOWN_MAX, REASON_CHARS = 20, 60
PACKAGES = ("isthmus", "torch", "transformers", "httpx", "msgspec")


def report(run: ChaosRun) -> dict[str, Any]:
    """Replay the journals, judge, and put everything into one JSON-able object."""
    trace = validate([run.folder / "journals"])
    reclaims = _reclaim_seconds(run, trace)
    recoveries = [(death.recovered - death.at) / 1e9 for death in _killed(run.deaths) if death.recovered is not None]
    cut = _unexcused(run)
    starved = _starved(run)
    findings = _findings(run, trace, reclaims, cut)
    if starved == "invalid":
        findings.append(f"journals of the member without a disk: invalid; see {run.folder / 'starved'}")
    endings = {ending.value: sum(each.ending is ending for each in run.answered) for ending in Ending}
    kills = len(_killed(run.deaths))
    order = run.order
    rows = [row("recovery after SIGKILL", recoveries, "s")] if recoveries else []
    rows += [row("reclaim after a peer's death", reclaims, "s")] if reclaims else []
    found = result(f"chaos-{order.model}-{order.mode}", rows, PACKAGES)
    return found | {
        "command": _command(run),
        "seed": order.seed,
        "passed": not findings,
        "findings": findings,
        "seconds": (run.ended - run.began) / 1e9,
        "sigkills": kills,
        "sigstops": run.dealt.get("sigstop", 0),
        "faults": run.dealt,
        "connections_harmed": run.harmed,
        "partitions": {
            "by": "network namespaces" if run.namespaces else "proxy",
            "seconds": _spread([(silence.ended - silence.began) / 1e9 for silence in run.silences]),
            "packets_lost": run.packets_lost,
        },
        "ends": {cause.value: sum(death.cause is cause for death in run.deaths) for cause in Cause},
        "requests": {"all": len(run.answered), **endings, "cut_without_excuse": len(cut)},
        "errors": dict(Counter(each.reason[:REASON_CHARS] for each in run.answered if each.ending is Ending.ERROR)),
        "requests_failed_per_kill": (endings["error"] + endings["cut"]) / kills if kills else 0.0,
        "request_seconds": _spread([(each.ended - each.began) / 1e9 for each in run.answered]),
        "blocks_leaked": run.held or 0,
        "wrong_answers": endings["wrong"],
        "unanswered": endings["unanswered"],
        "lease_ms": LEASE.ms,
        "reclaim_seconds": _spread(reclaims),
        "recovery_seconds": _spread(recoveries),
        "quarantined_blocks_max": max(run.quarantined_max, trace.summary()["quarantined_blocks_max"]),
        "trace": trace.summary(),
        "trace_with_the_starved": starved,
        "folder": str(run.folder),
        "check_again": f"isthmus verify trace {shlex.quote(str(run.folder / 'journals'))}",
    }


def _command(run: ChaosRun) -> str:
    order = run.order
    numbers = [f"--sigkills={order.sigkills}", f"--sigstops={order.sigstops}", f"--seconds={order.duration.seconds:g}"]
    what = [f"--model={order.model}", f"--mode={order.mode}", f"--seed={order.seed}"]
    what.append(f"--partitions={'namespaces' if run.namespaces else 'proxy'}")
    return shlex.join(["isthmus", "verify", "chaos", *numbers, *what])


def _starved(run: ChaosRun) -> str:
    """The verdict on all journals, those of the member whose disk was full included: what it lost must be missed."""
    kept = run.folder / "starved"
    return validate([run.folder / "journals", kept]).verdict if list(kept.rglob("*.journal")) else "none"


def _findings(run: ChaosRun, trace: Trace, reclaims: Sequence[float], cut: Sequence[Answered]) -> list[str]:
    found = [f"leak: {name} still holds {held}"[:2000] for name, held in run.held.items()]
    if run.unhealed:
        found.append(f"not healed: {run.unhealed}")
    if trace.verdict != "valid":
        found += [f"journals: {trace.verdict}: {each}" for each in (trace.faults + trace.gaps)[:SHOWN_MAX]]
    for ending in (Ending.WRONG, Ending.UNANSWERED):
        bad = [each for each in run.answered if each.ending is ending]
        found += [f"{ending}: prompt {each.prompt}: {each.reason}" for each in bad[:SHOWN_MAX]]
    found += [f"cut without a gateway's death: prompt {each.prompt}: {each.reason}" for each in cut[:SHOWN_MAX]]
    crashed = [death for death in run.deaths if death.cause is Cause.CRASHED]
    found += [f"crash: {death.name} ended with {death.status}:\n{death.tail}" for death in crashed[:SHOWN_MAX]]
    p99 = percentile(reclaims, 0.99)
    if p99 is not None and p99 >= RECLAIM_LEASES_MAX * LEASE.seconds:
        found.append(f"reclaim: p99 {p99:.3f} s, wanted below {RECLAIM_LEASES_MAX} leases of {LEASE}")
    return found


def _killed(deaths: Sequence[Death]) -> list[Death]:
    return [death for death in deaths if death.cause is Cause.KILLED]


def _reclaim_seconds(run: ChaosRun, trace: Trace) -> list[float]:
    """By worker that was itself neither stopped nor partitioned meanwhile: such a one hears nothing of a death."""
    died = {Incarnation(death.incarnation): death.at for death in _killed(run.deaths) if death.incarnation}
    return [
        (reclaim.freed - reclaim.died) / 1e9
        for reclaim in trace.reclaims(died)
        if not _out_of_reach(run, reclaim.worker, reclaim.died, reclaim.freed)
    ]


def _out_of_reach(run: ChaosRun, name: str, since: Instant, until: Instant) -> bool:
    """Whether it was at any time. TCP's pauses double: what was lost is sent again once as long again has passed."""
    spans: list[tuple[int, int]] = [(each.began, each.ended) for each in run.freezes if each.name == name]
    spans += [(each.began, 2 * each.ended - each.began) for each in run.silences if each.name == name]
    return any(began < until and since < ended for began, ended in spans)


def _unexcused(run: ChaosRun) -> list[Answered]:
    """Requests whose connection was cut while no gateway was dying, dead or starting."""
    outages = [
        (death.at, (death.recovered or run.ended) + EXCUSE_AFTER.ns) for death in run.deaths if death.name == "gateway"
    ]
    return [
        each
        for each in run.answered
        if each.ending is Ending.CUT
        and not any(each.began < until and since <= each.ended + EXCUSE_AFTER.ns for since, until in outages)
    ]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "median": statistics.median(values),
        "p99": percentile(values, 0.99),
        "max": max(values),
    }
