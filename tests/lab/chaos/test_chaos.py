"""Chaos on real processes, in short: a run that must pass, and one whose members are broken and must not."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from isthmus.core.units import Duration
from isthmus.lab.chaos import run as chaos_run
from isthmus.lab.chaos.forks import Forks
from isthmus.lab.chaos.model import answer_alone, prepare
from isthmus.lab.chaos.report import report
from isthmus.lab.chaos.run import ChaosOrder, run_deployment

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

BROKEN = {
    "decode-hnd-0": "leaks",
    "decode-cross-0": "installs_unasked",
    "decode-nhd-0": "lies",
    "prefill-nhd-0": "crashes",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks() -> AsyncIterator[Forks]:
    async with Forks("tests.lab.chaos.broken") as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return prepare("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def references(model):
    return answer_alone(model, count=12, tokens=16)


async def run(order: ChaosOrder, folder: Path, model, references, forks, **broken: Any) -> dict[str, Any]:
    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    ran = await run_deployment(order, folder, model, references, forks, say, **broken)
    return await asyncio.to_thread(report, ran)


def order_of(*, sigkills: int, sigstops: int, seconds: float, partitions: str) -> ChaosOrder:
    return ChaosOrder(
        sigkills=sigkills,
        sigstops=sigstops,
        duration=Duration.of_seconds(seconds),
        model="tiny",
        seed=5,
        partitions=partitions,
    )


async def test_a_fleet_under_kills_stops_and_broken_links_leaks_nothing_and_lies_never(
    forks, model, references, tmp_path
):
    """Partitioned by network namespaces where that is permitted."""
    order = order_of(sigkills=8, sigstops=6, seconds=12, partitions="auto")
    found = await run(order, tmp_path, model, references, forks)
    assert found["findings"] == []
    assert found["passed"]
    assert (found["sigkills"], found["sigstops"]) == (8, 6)
    assert found["ends"]["killed"] == 8
    assert found["requests"]["right"] > 0
    assert found["trace"]["installs_compared"] > 0
    if found["partitions"]["by"] == "network namespaces":
        assert found["partitions"]["seconds"]["n"] == sum(
            count for fault, count in found["faults"].items() if fault.startswith("partition.")
        )
        assert sum(found["partitions"]["packets_lost"].values()) > 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def findings(forks, model, references, tmp_path_factory) -> list[str]:
    """What is found of a fleet in which four of six workers are broken, each in another way."""
    folder = tmp_path_factory.mktemp("broken")
    environment = {name: {"ISTHMUS_TEST_BROKEN": how} for name, how in BROKEN.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos_run, "EMPTY_WITHIN", Duration.of_seconds(3))
        order = order_of(sigkills=0, sigstops=0, seconds=6, partitions="proxy")
        found = await run(order, folder, model, references, forks, environment=environment)
    assert not found["passed"]
    return found["findings"]


@pytest.mark.parametrize(
    ("detector", "start", "names"),
    [
        ("leaks", "leak: ", "decode-hnd-0"),
        ("wrong answers", "wrong: ", "wanted"),
        ("crashes", "crash: ", "prefill-nhd-0"),
        ("stale installs", "journals: invalid", "never confirmed"),
    ],
)
async def test_each_detector_goes_red_where_its_check_is_taken_out(findings, detector, start, names):
    matching = [finding for finding in findings if finding.startswith(start) and names in finding]
    assert matching, (detector, findings)
