"""`isthmus verify seeds` and `isthmus verify replay`, as a person runs them."""

import json

import pytest

from isthmus.cli.main import app


def run(capsys, *command: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        app(["verify", *command])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_seeds_prints_one_json_object(capsys) -> None:
    code, out = run(capsys, "seeds", "--count", "5", "--no-corpus", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["seeds"], found["failures"]) == (5, 0)
    assert found["virtual_hours"] > 0
    assert found["seeds_per_second"] > 0
    assert {"faults", "commit"} <= found.keys()


def test_jobs_find_what_one_process_finds(capsys) -> None:
    _, alone = run(capsys, "seeds", "--count", "5", "--no-corpus", "--json")
    _, jobs = run(capsys, "seeds", "--count", "5", "--no-corpus", "--jobs", "2", "--json")
    assert json.loads(jobs)["faults"] == json.loads(alone)["faults"]


def test_replay_prints_the_whole_transcript(capsys) -> None:
    code, out = run(capsys, "replay", "3")
    assert code == 0
    assert "admits prefill-0" in out
    assert "world        heals" in out
    assert out.splitlines()[-1].startswith("digest ")


def test_a_canary_that_is_caught_is_a_success(capsys) -> None:
    code, out = run(capsys, "seeds", "--canary", "early-decode", "--json")
    assert code == 0
    assert json.loads(out)["caught"] == 1


@pytest.mark.parametrize("arguments", [("--count", "-1"), ("--jobs", "0"), ("--seconds", "0"), ("--canary", "nothing")])
def test_a_wrong_flag_is_named(capsys, arguments) -> None:
    from isthmus.core.errors import BadInput

    with pytest.raises(BadInput, match=arguments[0]):
        app(["verify", "seeds", *arguments])
