"""Seeds: they hold, they are the same everywhere, and they do what they say."""

import subprocess
import sys

import msgspec
import pytest

from isthmus.lab.seeds.campaign import Campaign, CampaignOrder, run_campaign, tally_of
from isthmus.lab.seeds.corpus import CORPUS
from isthmus.lab.seeds.mix import Fault
from isthmus.lab.seeds.world import run_seed

SEEDS = range(60)
DIGESTS = """
import sys
from isthmus.lab.seeds.world import run_seed
for seed in range(int(sys.argv[1])):
    print(run_seed(seed).transcript.digest())
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rule_holds(seed: int) -> None:
    outcome = run_seed(seed)
    assert outcome.violations == (), "\n".join(outcome.transcript.text()[-50:])


def test_seeds_that_failed_once_hold() -> None:
    failed = {found.seed: run_seed(found.seed).violations for found in CORPUS}
    assert not any(failed.values()), failed


def test_a_seed_is_one_history_in_every_process() -> None:
    count = 25
    runs = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS, str(count)],
            env={"PYTHONHASHSEED": salt, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for salt in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0] == [run_seed(seed).transcript.digest() for seed in range(count)]
    assert len(set(runs[0])) == count


def test_every_kind_of_fault_is_injected() -> None:
    tally, _ = tally_of(range(150))
    assert sorted(tally.faults) == sorted(fault.value for fault in Fault)


def test_most_requests_are_answered_and_some_are_refused() -> None:
    tally, _ = tally_of(range(60))
    assert tally.answered > 4 * tally.refused > 0
    assert tally.installs > 60


def test_a_campaign_goes_on_where_it_stopped(tmp_path) -> None:
    path = tmp_path / "campaign.json"

    def run(count: int) -> Campaign:
        return run_campaign(CampaignOrder(start=0, count=count, save=path, corpus=False), lambda _: None)

    assert run(6).tally.seeds == 6
    went_on = run(10)
    assert went_on.tally.seeds == 10
    assert went_on.done == [(0, 10)]
    assert msgspec.json.decode(path.read_bytes(), type=Campaign).done == [(0, 10)]
    assert run(10).tally.seeds == 10


def test_ranges_that_are_left_lie_between_those_that_are_done() -> None:
    campaign = Campaign()
    campaign.did(10, 20)
    campaign.did(40, 50)
    campaign.did(20, 25)
    assert campaign.done == [(10, 25), (40, 50)]
    assert list(campaign.left(0, 60)) == [(0, 10), (25, 40), (50, 60)]
    assert list(campaign.left(12, 24)) == []
