"""`isthmus top HANDOFF`: one hand-off of a real fleet, for people and for programs."""

import json

import pytest

from tests.serve.asking import ask, finish
from tests.serve.commands import isthmus

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

ANSWERS = ("holds", "accounts", "declares completion", "releases", "cleans up")


async def test_one_handoff_is_shown_from_both_ledgers_on_80_columns(pair, reference):
    stream = ask(pair.client, await pair.model(), 0, reference[0].prompt, max_tokens=3)
    await finish([stream])
    installed = (await pair.client.get("/v1/isthmus/handoffs", params={"limit": 1})).json()["installed"]
    assert len(installed) == 1
    handoff = installed[0]["handoff"]

    shown = await isthmus("top", handoff, "--json", "--url", pair.url)
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(shown.out)
    assert found["handoff"] == handoff
    assert [(row["side"], row["worker"]) for row in found["sides"]] == [
        ("producer", "prefill-0"),
        ("consumer", "decode-0"),
    ]
    for row in found["sides"]:
        events = [moment["event"] for moment in row["timeline"]]
        assert events[0] == "reserve"
        assert "confirm" in events or "confirmed" in events
        assert [moment["ms"] for moment in row["timeline"]] == sorted(moment["ms"] for moment in row["timeline"])

    for_people = await isthmus("top", handoff[:12], "--url", pair.url)
    assert for_people.code == 0, for_people.err
    assert all(for_people.out.count(answer) >= 2 for answer in ANSWERS)
    assert max(map(len, for_people.out.splitlines())) <= 80


async def test_a_handoff_that_nobody_knows_exits_with_2_and_says_so(pair):
    for handoff, says in (("0" * 32, "no worker knows"), ("nonsense", "hexadecimal")):
        ended = await isthmus("top", handoff, "--json", "--url", pair.url)
        assert (ended.code, ended.out) == (2, "")
        assert says in ended.err
