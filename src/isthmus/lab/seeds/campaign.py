"""Many seeds: their sums, in a file that is gone on with the next time, and in several processes at once.

A job is this same command for a range of seeds; its JSON is all that it says. Owns no rule.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from isthmus.core.clock import Instant, SystemClock
from isthmus.core.errors import BadInput, Lost
from isthmus.core.units import Duration
from isthmus.lab.bench.harness import commit
from isthmus.lab.seeds.corpus import CORPUS
from isthmus.lab.seeds.world import Outcome, run_seed

__all__ = ["Campaign", "CampaignOrder", "Tally", "run_campaign", "tally_of"]

FAILURES_KEPT_MAX = 1000
SEEDS_PER_JOB = 2000
COLLECTED_EVERY = 200
"""So many seeds between two turns of the garbage collector, which rests during each."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A seed that found something."""

    seed: int
    violations: tuple[str, ...]
    commit: str


class Tally(msgspec.Struct, kw_only=True):
    """Sums over seeds. `busy_seconds` is over all jobs."""

    seeds: int = 0
    failures: int = 0
    virtual_hours: float = 0.0
    callbacks: int = 0
    handoffs: int = 0
    installs: int = 0
    answered: int = 0
    refused: int = 0
    busy_seconds: float = 0.0
    faults: dict[str, int] = msgspec.field(default_factory=dict)
    failed: list[Failure] = msgspec.field(default_factory=list)

    def add(self, outcome: Outcome, of: str) -> None:
        """One seed more."""
        self.seeds += 1
        self.virtual_hours += outcome.virtual_seconds / 3600
        self.callbacks += outcome.callbacks
        self.handoffs += outcome.handoffs
        self.installs += outcome.installs
        self.answered += outcome.answered
        self.refused += outcome.refused
        self._count(outcome.faults)
        if outcome.violations:
            self.failures += 1
            self.failed.append(Failure(seed=outcome.seed, violations=outcome.violations[:5], commit=of))

    def merge(self, other: "Tally") -> None:
        """Another's sums too."""
        for name in ("seeds", "failures", "callbacks", "handoffs", "installs", "answered", "refused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.virtual_hours += other.virtual_hours
        self.busy_seconds += other.busy_seconds
        self._count(other.faults)
        self.failed = [*self.failed, *other.failed][:FAILURES_KEPT_MAX]

    def _count(self, faults: "Iterable[tuple[str, int]] | Any") -> None:
        for kind, count in dict(faults).items():
            self.faults[kind] = self.faults.get(kind, 0) + count


class Campaign(msgspec.Struct, kw_only=True):
    """What `--save` keeps. `done` are ranges of seeds, [start, stop) each; `commits` says how many ran at which."""

    commit: str = ""
    done: list[tuple[int, int]] = msgspec.field(default_factory=list)
    commits: dict[str, int] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    seeds_per_second: float = 0.0
    corpus: int = 0
    tally: Tally = msgspec.field(default_factory=Tally)

    def summary(self) -> dict[str, Any]:
        """One JSON object: the sums first."""
        tally = self.tally
        return {
            "seeds": tally.seeds,
            "failures": tally.failures,
            "virtual_hours": round(tally.virtual_hours, 3),
            "seeds_per_second": round(self.seeds_per_second, 1),
            "commit": self.commit,
            "corpus": self.corpus,
            "handoffs": tally.handoffs,
            "installs": tally.installs,
            "answered": tally.answered,
            "refused": tally.refused,
            "faults": dict(sorted(tally.faults.items())),
            "failed": tally.failed,
            "done": self.done,
            "commits": self.commits,
            "tally": tally,
        }

    def left(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges of [start, stop) that are not done."""
        for first, last in self.done:
            if last <= start:
                continue
            if first >= stop:
                break
            if first > start:
                yield start, first
            start = max(start, last)
        if start < stop:
            yield start, stop

    def did(self, start: int, stop: int) -> None:
        """Another range is done."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.done, (start, stop)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self.done = merged


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignOrder:
    """What to run. `duration` None: until all are done."""

    start: int
    count: int
    duration: Duration | None = None
    jobs: int = 1
    save: Path | None = None
    corpus: bool = True


def tally_of(seeds: Iterable[int], until: Callable[[], bool] = lambda: False) -> tuple[Tally, int]:
    """Run seeds here, one after another, until all are done or `until()`; returns how many were."""
    import gc

    clock, tally, of = SystemClock(), Tally(), commit()
    began, number = clock.now(), 0
    gc.collect()
    gc.freeze()  # what is imported by now stays: the collector need not look at it again
    gc.disable()
    try:
        for seed in seeds:
            tally.add(run_seed(seed), of)
            number += 1
            if number % COLLECTED_EVERY == 0:
                gc.collect()
            if until():
                break
    finally:
        gc.enable()
        gc.unfreeze()
    tally.busy_seconds = (clock.now() - began) / 1e9
    return tally, number


def run_campaign(order: CampaignOrder, say: Callable[[str], None]) -> Campaign:
    """The corpus, then the seeds that are not done yet. What is done is saved as it comes.

    Raises:
        BadInput: the file is not a campaign's.
        Lost: a job has died.
    """
    clock = SystemClock()
    began = clock.now()
    campaign = _load(order.save)
    campaign.commit = commit()
    before = campaign.seconds
    if order.corpus:
        _run_corpus(campaign, say)

    def time_left() -> float:
        return float("inf") if order.duration is None else (began + order.duration.ns - clock.now()) / 1e9

    def over() -> bool:
        return time_left() <= 0

    def done(start: int, number: int, tally: Tally) -> None:
        campaign.tally.merge(tally)
        if number:
            campaign.did(start, start + number)
        campaign.commits[campaign.commit] = campaign.commits.get(campaign.commit, 0) + number
        _account(campaign, before, began, clock.now())
        _save(campaign, order.save)
        say(
            f"{campaign.tally.seeds} seeds, {campaign.tally.failures} failures, {campaign.seeds_per_second:.0f} seeds/s"
        )

    work = _cut(campaign.left(order.start, order.start + order.count))
    if order.jobs == 1:
        for start, stop in work:
            if over():
                break
            tally, number = tally_of(range(start, stop), over)
            done(start, number, tally)
    else:
        _in_processes(order.jobs, work, time_left, done)
    _account(campaign, before, began, clock.now())
    _save(campaign, order.save)
    return campaign


def _run_corpus(campaign: Campaign, say: Callable[[str], None]) -> None:
    """Counted only where it fails: its seeds are no part of the ranges."""
    corpus, _ = tally_of(each.seed for each in CORPUS)
    campaign.corpus = corpus.seeds
    if corpus.failures:
        say(f"corpus: {corpus.failures} of {corpus.seeds} seeds fail again")
    campaign.tally.failures += corpus.failures
    campaign.tally.failed = [*campaign.tally.failed, *corpus.failed][:FAILURES_KEPT_MAX]


def _account(campaign: Campaign, before: float, began: Instant, now: Instant) -> None:
    campaign.seconds = before + (now - began) / 1e9
    campaign.seeds_per_second = campaign.tally.seeds / campaign.seconds if campaign.seconds else 0.0


def _cut(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, stop in list(ranges):
        for first in range(start, stop, SEEDS_PER_JOB):
            yield first, min(first + SEEDS_PER_JOB, stop)


def _in_processes(
    jobs: int,
    work: Iterator[tuple[int, int]],
    time_left: Callable[[], float],
    done: Callable[[int, int, Tally], None],
) -> None:
    """Each range in a process of its own, `jobs` at once."""
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="seeds") as threads:
        running: dict[Future[tuple[Tally, int]], int] = {}
        while True:
            while len(running) < jobs and (seconds := time_left()) > 0:
                part = next(work, None)
                if part is None:
                    break
                running[threads.submit(_job, *part, seconds)] = part[0]
            if not running:
                return
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                tally, number = ended.result()
                done(running.pop(ended), number, tally)


def _job(start: int, stop: int, seconds: float) -> tuple[Tally, int]:
    """One range, or as much of it as can be done in so long; returns how many seeds that were."""
    command = [sys.executable, "-m", "isthmus", "verify", "seeds"]
    command += ["--start", str(start), "--count", str(stop - start), "--no-corpus", "--json"]
    if seconds != float("inf"):
        command += ["--seconds", str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        tally = msgspec.convert(json.loads(found.stdout)["tally"], Tally)
    except (ValueError, KeyError, msgspec.ValidationError) as error:
        raise Lost(f"job: seeds {start} to {stop} ended with {found.returncode}: {found.stderr[-2000:]}") from error
    return tally, tally.seeds


def _load(path: Path | None) -> Campaign:
    if path is None or not path.exists():
        return Campaign()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Campaign)
    except msgspec.MsgspecError as error:
        raise BadInput(f"--save: {path} is not a campaign: {error}", field="save") from None


def _save(campaign: Campaign, path: Path | None) -> None:
    """Whole or not at all: a campaign that is stopped while it saves keeps what it had."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(campaign), indent=2) + b"\n")
    beside.replace(path)
