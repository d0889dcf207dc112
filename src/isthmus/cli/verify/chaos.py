"""`isthmus verify chaos`: kill and stop real processes under real load, and prove that nothing leaked or lied."""

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from isthmus.core.errors import BadInput

__all__ = ["chaos"]

FAULTS_MAX = 1_000_000
SECONDS_MAX = 86_400.0


def chaos(
    *,
    sigkills: Annotated[int, Parameter(help="SIGKILLs to deal, over all processes.")] = 20,
    sigstops: Annotated[int, Parameter(help="SIGSTOPs to deal, of 0.1 s to 4 leases each.")] = 20,
    seconds: Annotated[float, Parameter(help="Spread the faults over so long.")] = 40.0,
    model: Annotated[str, Parameter(help="tiny (random weights) or smollm2.")] = "tiny",
    mode: Annotated[Literal["pull", "push", "send"], Parameter(help="Who moves the KV.")] = "pull",
    seed: Annotated[int, Parameter(help="Which faults, on whom, when.")] = 1,
    partitions: Annotated[
        Literal["auto", "namespaces", "proxy"],
        Parameter(help="Lose packets between network namespaces, which takes rights; or bytes in a proxy."),
    ] = "auto",
    keep: Annotated[bool, Parameter(negative="", help="Keep logs and journals of a run that passes.")] = False,
    save: Annotated[bool, Parameter(negative="", help="Keep the result under benchmarks/results/.")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Run a gateway, three producers and three consumers under load and faults. Exits 0 where it passes, else 3.

    Where network namespaces are permitted, one more producer and consumer are apart in one each, and partitioned.

    A run passes where no block is leaked, no answer is wrong or missing, no process crashes, the journals replay, and
    blocks of the dead are free again within 1.5 leases (p99). Logs and journals of one that does not are kept.
    """
    _check(sigkills, sigstops, seconds, seed)
    from isthmus.core.units import Duration
    from isthmus.lab.bench.harness import save as save_result
    from isthmus.lab.chaos.report import report
    from isthmus.lab.chaos.run import ChaosOrder, run_chaos
    from isthmus.serve.models import cache_folder

    folder = Path(tempfile.mkdtemp(prefix="isthmus-chaos-"))
    order = ChaosOrder(
        sigkills=sigkills,
        sigstops=sigstops,
        duration=Duration.of_seconds(seconds),
        model=model,
        mode=mode,
        seed=seed,
        partitions=partitions,
    )
    found = report(asyncio.run(run_chaos(order, folder, cache_folder(), _say)))
    if save:
        _say(f"saved to {save_result(found, Path.cwd())}")
    if found["passed"] and not keep:
        shutil.rmtree(folder)
    else:
        _say(f"logs and journals are in {folder}; check them again with: {found['check_again']}")
    if json_:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _show(found)
    return 0 if found["passed"] else 3


def _check(sigkills: int, sigstops: int, seconds: float, seed: int) -> None:
    for name, value in (("--sigkills", sigkills), ("--sigstops", sigstops)):
        if not 0 <= value <= FAULTS_MAX:
            raise BadInput(f"{name}: got {value}, wanted 0 to {FAULTS_MAX}", field=name)
    if not 0 < seconds <= SECONDS_MAX:
        raise BadInput(f"--seconds: got {seconds:g}, wanted above 0, up to {SECONDS_MAX:g}", field="--seconds")
    if seed < 0:
        raise BadInput(f"--seed: got {seed}, wanted 0 or more", field="--seed")


def _show(found: dict[str, object]) -> None:
    hidden = ("rows", "machine", "versions", "trace", "findings")
    for key, value in found.items():
        if key not in hidden:
            sys.stdout.write(f"{key:26} {value}\n")
    findings = found["findings"]
    for finding in findings if isinstance(findings, list) else []:
        sys.stdout.write(f"finding: {finding}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"chaos: {text}\n")
