"""A gateway under pressure: who is refused hears so, with the time to ask again; failures do not multiply the load."""

import asyncio

import pytest

from isthmus.core.clock import ManualClock
from isthmus.core.errors import CapacityExceeded, Lost, QuotaExceeded
from isthmus.core.units import Duration
from isthmus.serve.gateway.retries import RetryBudget
from isthmus.serve.messages import Generate, Message
from tests.serve.scripted import ScriptedGateway, scripted, until


async def fails(_: Generate) -> Message:
    raise Lost("the engine fell over", field="engine")


async def never(_: Generate) -> Message:
    await asyncio.Event().wait()
    raise AssertionError("an event that nobody sets was set")


async def test_a_fleet_that_fails_everything_is_asked_a_fifth_more_and_not_twice_as_much() -> None:
    gateway = ScriptedGateway(burst=3)
    async with scripted(gateway, fails, names=("decode-0", "decode-1")) as workers:
        answers = [await gateway.ask() for _ in range(40)]
        asked = sum(len(worker.asked) for worker in workers.values())
    granted = asked - 40
    assert 3 <= granted <= 3 + 0.2 * 40
    refused = [answer for answer in answers if answer.json()["error"]["param"] == "retries"]
    assert len(refused) == 40 - granted
    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "the engine fell over; not tried again: retries are limited to 20%" in answer.json()["error"]["message"]
    text = gateway.metrics.text().decode()
    assert f'isthmus:retries_total{{answer="granted"}} {granted}.0' in text
    assert f'isthmus:retries_total{{answer="refused"}} {len(refused)}.0' in text


async def test_a_single_failure_is_tried_again_elsewhere() -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails, names=("decode-0", "decode-1")) as workers:
        answer = await gateway.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "Lost")
        assert [len(workers[name].asked) for name in ("decode-0", "decode-1")] == [1, 1]


def test_the_budget_earns_by_requests_and_by_time_and_never_more_than_one_burst() -> None:
    clock = ManualClock()
    budget = RetryBudget(clock, ratio=0.25, floor_per_second=2.0, burst=2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    assert budget.next_in() == Duration.of_ms(500)
    for _ in range(4):
        budget.request()
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.advance(Duration.of_ms(500))
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.advance(Duration.of_seconds(3600))
    assert [budget.take() for _ in range(3)] == [True, True, False]


async def test_a_workers_refusal_reaches_the_client_with_its_time_to_ask_again() -> None:
    async def full(_: Generate) -> Message:
        raise CapacityExceeded("no room", field="blocks", retry_after=Duration.of_ms(12_300))

    gateway = ScriptedGateway()
    async with scripted(gateway, full):
        answer = await gateway.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "13")
    assert answer.json()["error"]["type"] == "overloaded"


async def test_a_tenant_that_has_used_up_its_quota_gets_429() -> None:
    async def over(_: Generate) -> Message:
        raise QuotaExceeded("tenant 'default' holds 8 blocks", field="tenant", retry_after=Duration.of_seconds(2))

    gateway = ScriptedGateway()
    async with scripted(gateway, over):
        answer = await gateway.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("rate_limit_error", "QuotaExceeded")


async def test_what_a_quota_can_never_hold_is_the_requests_own_fault() -> None:
    async def over(_: Generate) -> Message:
        raise QuotaExceeded("wants 9 blocks; tenant 'default' may have 4", field="blocks")

    gateway = ScriptedGateway()
    async with scripted(gateway, over):
        answer = await gateway.ask()
    assert (answer.status_code, "retry-after" in answer.headers) == (400, False)


async def test_a_worker_that_takes_nothing_new_is_routed_around_until_it_is_well() -> None:
    gateway = ScriptedGateway(burst=64)
    async with scripted(gateway, fails, names=("decode-0", "decode-1")) as workers:
        sick, well = workers["decode-0"], workers["decode-1"]
        seat = gateway.registry.seat("decode-0")
        sick.pulse("quarantine: 5 of 8 blocks")
        await until(lambda: seat.unhealthy is not None)
        for _ in range(4):
            await gateway.ask()
        assert (len(sick.asked), len(well.asked)) == (0, 8)
        assert (await gateway.client.get("/ready")).status_code == 200
        assert 'isthmus:workers_unhealthy{role="decode"} 1.0' in (await gateway.client.get("/metrics")).text
        sick.pulse(None)
        await until(lambda: seat.unhealthy is None)
        await gateway.ask()
        assert len(sick.asked) == 1


async def test_where_every_worker_is_unhealthy_the_client_hears_why_and_the_gateway_is_not_ready() -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails) as workers:
        workers["decode-0"].pulse("quarantine: 5 of 8 blocks")
        await until(lambda: gateway.registry.seat("decode-0").unhealthy is not None)
        answer = await gateway.ask()
        assert answer.status_code == 503
        assert "decode-0: quarantine: 5 of 8 blocks" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        ready = await gateway.client.get("/ready")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["decode"])


async def test_a_request_ends_at_its_deadline_and_its_worker_is_told() -> None:
    gateway = ScriptedGateway(request_deadline=Duration.of_seconds(7))
    async with scripted(gateway, never) as workers:
        asked = asyncio.create_task(gateway.ask())
        await until(lambda: len(workers["decode-0"].asked) == 1)
        gateway.clock.advance(Duration.of_seconds(6))
        await asyncio.sleep(0)
        assert not asked.done()
        gateway.clock.advance(Duration.of_seconds(1))
        answer = await asked
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "DeadlineExceeded"
        assert "not answered within 7000 ms" in answer.json()["error"]["message"]
        await until(lambda: len(workers["decode-0"].cancelled) == 1)
        assert len(workers["decode-0"].asked) == 1  # a deadline is no failure of the worker's to try again elsewhere


LIVE = {"handoff": "ab" * 16, "side": "consumer", "worker": "decode-0", "timeline": []}
ENDED = {"handoff": "ab" * 16, "side": "producer", "worker": "prefill-0", "timeline": []}
OTHER = {"handoff": "abab" + "c" * 28, "side": "producer", "worker": "prefill-0", "timeline": []}


async def test_one_handoff_is_found_by_the_beginning_of_its_id_on_both_sides() -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails) as workers:
        workers["decode-0"].snapshot["live"] = [LIVE]
        workers["prefill-0"].snapshot["ended"] = [ENDED, OTHER]
        found = await gateway.client.get(f"/v1/isthmus/handoffs/{'ab' * 8}")
        assert found.status_code == 200
        assert found.json()["handoff"] == "ab" * 16
        assert [row["side"] for row in found.json()["sides"]] == ["producer", "consumer"]
        assert workers["decode-0"].orders[-1].handoff == "ab" * 8


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/" + "0" * 32, 404, "no worker knows 0000"),
        ("/nonsense", 400, "wanted 32 hexadecimal digits"),
        ("/" + "ab" * 3, 200, ""),
        ("?limit=0", 400, "limit: got '0', wanted 1 to 512"),
        ("?limit=all", 400, "limit: got 'all'"),
        ("?limit=513", 400, "wanted 1 to 512"),
        ("?limit=2", 200, ""),
    ],
)
async def test_a_wrong_handoff_or_limit_is_said_to_be_so(path: str, status: int, says: str) -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails) as workers:
        workers["decode-0"].snapshot["live"] = [LIVE]
        answer = await gateway.client.get("/v1/isthmus/handoffs" + path)
        assert answer.status_code == status, answer.text
        if says:
            assert says in answer.json()["error"]["message"]
        if path == "?limit=2":
            assert {order.limit for worker in workers.values() for order in worker.orders} == {2}


async def test_an_ambiguous_beginning_names_the_handoffs_it_may_be() -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails) as workers:
        workers["decode-0"].snapshot["live"] = [LIVE, OTHER | {"handoff": "ababab" + "c" * 26}, "nonsense", {}]
        answer = await gateway.client.get("/v1/isthmus/handoffs/ababab")
        assert answer.status_code == 400
        assert "2 begin with ababab" in answer.json()["error"]["message"]


async def test_a_worker_that_does_not_answer_is_named_beside_those_that_do() -> None:
    gateway = ScriptedGateway()
    async with scripted(gateway, fails) as workers:
        workers["decode-0"].snapshot = [1]  # type: ignore[assignment]
        workers["prefill-0"].snapshot["ended"] = [ENDED]
        answer = await gateway.client.get("/v1/isthmus/handoffs/" + "ab" * 16)
        assert answer.json()["unanswered"] == {"decode-0": "answered something that is not an object"}
        assert len(answer.json()["sides"]) == 1
