"""`isthmus verify model`: what it prints, and how it exits."""

import json

import pytest

from isthmus.cli.verify.model import model
from isthmus.core.errors import BadInput


def test_it_says_in_one_object_what_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    code = model(scope=["staging"], mutants=False, json_=True)
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["ok"] is True
    assert found["violations"] == []
    assert found["states"] == found["scopes"][0]["states"] > 1000
    assert all(found["sometimes"]["staging"].values())
    assert (found["mutants"], found["mutants_killed"]) == (0, 0)


def test_it_says_for_people_what_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert model(scope=["staging"], mutants=False) == 0
    captured = capsys.readouterr()
    assert "all holds" in captured.out
    assert "states/s" in captured.err


def test_it_lists_its_scopes(capsys: pytest.CaptureFixture[str]) -> None:
    assert model(list_=True, json_=True) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert {"shared", "pull", "push", "send", "parts", "fleet"} <= set(names)


@pytest.mark.parametrize("wrong", [{"tier": "huge"}, {"scope": ["nowhere"]}, {"walks": -1}])
def test_it_refuses_what_it_does_not_know(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"--(tier|scope|walks): got"):
        model(**wrong)  # type: ignore[arg-type]
