"""What a run's figures are judged by: each finding, from a run that shows it and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from isthmus.core.clock import Instant
from isthmus.core.units import Duration
from isthmus.lab.chaos.fleet import Cause, Death, Freeze
from isthmus.lab.chaos.load import Answered, Ending
from isthmus.lab.chaos.partitions import Partition, Silence
from isthmus.lab.chaos.report import report
from isthmus.lab.chaos.run import ChaosOrder, ChaosRun
from isthmus.lab.chaos.shapes import LEASE
from tests.ownership.test_journal import JournalledWorld, drop, producers_file
from tests.ownership.worlds import DECODE, DECODE_LIFE, PREFILL

ORDER = ChaosOrder(sigkills=1, sigstops=1, duration=Duration.of_seconds(1), model="tiny", seed=7)


def second(number: float) -> Instant:
    return Instant(round(number * 1e9))


def death(name: str, *, at: float, recovered: float | None, cause: Cause = Cause.KILLED, life: str = "") -> Death:
    back = None if recovered is None else second(recovered)
    return Death(name=name, pid=1, incarnation=life, at=second(at), cause=cause, status=-9, recovered=back)


def answered(ending: Ending, *, began: float = 1, ended: float = 2) -> Answered:
    return Answered(prompt=0, wanted=4, came=0, began=second(began), ended=second(ended), ending=ending, reason="why")


@pytest.fixture
async def quiet(tmp_path: Path) -> ChaosRun:
    """A run in which nothing was wrong."""
    world = JournalledWorld(tmp_path / "journals")
    await world.hand_off()
    world.close()
    return ChaosRun(
        order=ORDER,
        folder=tmp_path,
        began=second(0),
        ended=second(60),
        dealt={"sigkill": 1, "sigstop": 1},
        namespaces=False,
        harmed={},
        packets_lost={},
        deaths=[],
        freezes=[],
        silences=[],
        answered=[answered(Ending.RIGHT), answered(Ending.ERROR), answered(Ending.HUNG_UP)],
        held={},
        unhealed="",
        quarantined_max=0,
    )


def test_a_run_in_which_nothing_was_wrong_passes(quiet):
    found = report(quiet)
    assert found["findings"] == []
    assert found["passed"]
    said = "--sigkills=1 --sigstops=1 --seconds=1 --model=tiny --mode=pull --seed=7 --partitions=proxy"
    assert found["command"] == f"isthmus verify chaos {said}"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"held": {"decode-0": {"free": 1}}}, "leak: decode-0"),
        ({"unhealed": "decode-0 is missing"}, "not healed: decode-0"),
        ({"answered": [answered(Ending.WRONG)]}, "wrong: prompt 0"),
        ({"answered": [answered(Ending.UNANSWERED)]}, "unanswered: prompt 0"),
        ({"answered": [answered(Ending.CUT)]}, "cut without a gateway's death"),
        ({"deaths": [death("decode-0", at=1, recovered=2, cause=Cause.CRASHED)]}, "crash: decode-0"),
    ],
)
def test_each_wrong_is_a_finding(quiet, changes, finding):
    found = report(replace(quiet, **changes))
    assert not found["passed"]
    assert len(found["findings"]) == 1
    assert found["findings"][0].startswith(finding)


def test_a_journal_that_does_not_replay_is_a_finding(quiet):
    drop(producers_file(quiet.folder / "journals"), "Confirm")
    assert any("never confirmed" in finding for finding in report(quiet)["findings"])


@pytest.mark.parametrize(("ended", "excused"), [(0.5, True), (5, True), (30, False)])
def test_a_gateways_death_excuses_the_connections_that_it_cut_and_no_others(quiet, ended, excused):
    run = replace(
        quiet,
        deaths=[death("gateway", at=1, recovered=4)],
        answered=[answered(Ending.CUT, began=ended - 0.5, ended=ended)],
    )
    assert report(run)["passed"] is excused


async def orphaned(folder: Path, *, leases: float) -> list[Death]:
    """A consumer dies, and its producer has the blocks back so many leases later."""
    world = JournalledWorld(folder)
    await world.publish(world.handoff())
    world.clock.advance(Duration.of_ms(1))
    died = world.clock.now()
    world.clock.advance(LEASE * leases)
    world.source.peer_lost(DECODE, DECODE_LIFE)
    assert world.holds_nothing()
    world.close()
    return [death(DECODE, at=died / 1e9, recovered=9, life=DECODE_LIFE)]


@pytest.mark.parametrize(("leases", "passed"), [(0.1, True), (1.4, True), (1.6, False)])
async def test_blocks_of_the_dead_are_to_be_free_again_within_one_and_a_half_leases(quiet, tmp_path, leases, passed):
    folder = tmp_path / "other"
    found = report(replace(quiet, folder=folder, deaths=await orphaned(folder / "journals", leases=leases)))
    assert found["reclaim_seconds"]["n"] == 1
    assert found["passed"] is passed
    assert passed or found["findings"][0].startswith("reclaim: p99")


async def test_a_worker_that_was_itself_stopped_meanwhile_is_not_held_to_that(quiet, tmp_path):
    folder = tmp_path / "other"
    deaths = await orphaned(folder / "journals", leases=1.6)
    freeze = Freeze(name=PREFILL, began=second(0.5), ended=second(3))
    found = report(replace(quiet, folder=folder, deaths=deaths, freezes=[freeze]))
    assert found["passed"]
    assert found["reclaim_seconds"]["n"] == 0


@pytest.mark.parametrize(("lasted", "passed"), [(0.6, True), (0.4, False)])
async def test_nor_is_one_that_was_partitioned_until_as_long_again_has_passed(quiet, tmp_path, lasted, passed):
    folder = tmp_path / "other"
    deaths = await orphaned(folder / "journals", leases=1.6)
    began = deaths[0].at / 1e9 - 1
    silence = Silence(name=PREFILL, partition=Partition.WHOLE, began=second(began), ended=second(began + lasted))
    assert report(replace(quiet, folder=folder, deaths=deaths, silences=[silence]))["passed"] is passed
