"""`isthmus verify trace` and `isthmus verify chaos` from outside: exit codes, JSON, and errors that name the flag."""

import json

import pytest

from isthmus.cli.main import app
from tests.ownership.test_journal import JournalledWorld, drop, producers_file
from tests.serve.commands import isthmus


@pytest.fixture
async def journals(tmp_path):
    world = JournalledWorld(tmp_path)
    await world.hand_off()
    world.close()
    return tmp_path


async def test_valid_journals_exit_with_0_and_print_one_json_object(journals):
    ended = await isthmus("verify", "trace", str(journals), "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["verdict"], found["installs_compared"]) == (0, "valid", 1)


async def test_invalid_journals_exit_with_3_and_name_the_fault(journals):
    drop(producers_file(journals), "Confirm")
    ended = await isthmus("verify", "trace", str(journals))
    assert ended.code == 3
    assert "invalid" in ended.out
    assert "never confirmed" in ended.out


async def test_an_incomplete_history_is_no_success(journals):
    producers_file(journals).unlink()
    ended = await isthmus("verify", "trace", str(journals), "--json")
    assert (ended.code, json.loads(ended.out)["verdict"]) == (3, "incomplete")


async def test_a_path_that_is_not_there_exits_with_2(tmp_path):
    ended = await isthmus("verify", "trace", str(tmp_path / "nowhere"))
    assert ended.code == 2
    assert "nowhere" in ended.err


@pytest.mark.parametrize(
    ("flag", "value"), [("--sigkills", "-1"), ("--sigstops", "-1"), ("--seconds", "0"), ("--seed", "-1")]
)
async def test_a_wrong_flag_exits_with_2_and_is_named(flag, value):
    ended = await isthmus("verify", "chaos", f"{flag}={value}")
    assert ended.code == 2
    assert flag in ended.err


def test_both_commands_are_there():
    assert {"chaos", "trace"} <= set(app["verify"])
