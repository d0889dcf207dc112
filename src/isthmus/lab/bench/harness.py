"""Timing, and the one form of a bench's result."""

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from isthmus.core.clock import SystemClock

__all__ = ["Row", "commit", "progress", "result", "row", "save", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case: the median of `n` measurements, against what, and what is wanted (`>=` or `<=` a number)."""

    case: str
    value: float
    unit: str
    n: int
    min: float
    median: float
    max: float
    against: str = ""
    ratio: float | None = None
    wanted: str = ""


def timed(work: Callable[[], object], n: int, *, warm: int = 1) -> list[float]:
    """Seconds of `n` runs, after `warm` that are not counted."""
    clock = SystemClock()
    for _ in range(warm):
        work()
    found = []
    for _ in range(n):
        start = clock.now()
        work()
        found.append((clock.now() - start) / 1e9)
    return found


def row(case: str, values: list[float], unit: str, *, wanted: str = "", against: str = "") -> Row:
    """A row of measurements."""
    median = statistics.median(values)
    ratio = None
    if wanted:
        bound = float(wanted.split()[-1])
        ratio = median / bound
    return Row(
        case=case,
        value=median,
        unit=unit,
        n=len(values),
        min=min(values),
        median=median,
        max=max(values),
        against=against,
        ratio=ratio,
        wanted=wanted,
    )


def result(name: str, rows: list[Row], packages: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a bench."""
    return {
        "bench": name,
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {each: metadata.version(each) for each in packages},
        "commit": commit(),
        "command": f"isthmus bench {name}",
        "rows": [asdict(each) for each in rows],
    }


def save(found: dict[str, Any], root: Path) -> Path:
    """Keep a result under `benchmarks/results/`."""
    import msgspec

    folder = root / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['bench']}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return path


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()}


def commit() -> str:
    """The commit that this code is of, short; `unknown` outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def progress(text: str) -> None:
    """A word on stderr: results are on stdout."""
    sys.stderr.write(f"{text}\n")
