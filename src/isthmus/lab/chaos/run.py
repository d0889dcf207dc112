"""One chaos run, top to bottom: prepare, start, load, faults, heal, look into every ledger, stop, replay the journals."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from isthmus.core.clock import Clock, Instant, SystemClock
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.units import Duration
from isthmus.lab.chaos.chance import Chance
from isthmus.lab.chaos.faults import Faults
from isthmus.lab.chaos.fleet import Death, Fleet
from isthmus.lab.chaos.forks import Forks
from isthmus.lab.chaos.load import Answered, Load
from isthmus.lab.chaos.model import KV_HEADS, Reference, answer_alone, prepare
from isthmus.lab.chaos.proxy import FaultProxy
from isthmus.lab.chaos.shapes import LEASE, shape_of

__all__ = ["ChaosOrder", "ChaosRun", "run_chaos"]

PROMPTS, ANSWER_TOKENS = 24, 24
CONCURRENCY = {"tiny": 12, "smollm2": 4}
HEAL_WITHIN = Duration.of_seconds(90)
EMPTY_WITHIN = Duration.of_seconds(20)
POLL = Duration.of_ms(200)
SAID_EVERY = Duration.of_seconds(10)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOrder:
    """What was asked for."""

    sigkills: int
    sigstops: int
    duration: Duration
    model: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRun:
    """What happened. `held` is what each worker still holds when all is healed and quiet: nothing, or a leak."""

    order: ChaosOrder
    folder: Path
    began: Instant
    ended: Instant
    dealt: dict[str, int]
    harmed: dict[str, int]
    deaths: list[Death]
    answered: list[Answered]
    held: dict[str, Any]
    unhealed: str
    quarantined_max: int


async def run_chaos(order: ChaosOrder, folder: Path, cache: Path, say: Say) -> ChaosRun:
    """Run, and return what happened; judging it is `report`'s."""
    clock = SystemClock()
    model = prepare(order.model, cache)
    references = await asyncio.to_thread(answer_alone, model, count=PROMPTS, tokens=ANSWER_TOKENS)
    say(f"{len(references)} reference answers by one engine alone; logs and journals in {folder}")
    shape = shape_of(model, folder, heads=KV_HEADS[order.model])
    async with AsyncExitStack() as stack:
        links = {
            link.name: await stack.enter_async_context(FaultProxy(link.listens, link.target, clock))
            for link in shape.links
        }
        forks = await stack.enter_async_context(Forks(shape.environment))
        fleet = await stack.enter_async_context(Fleet(shape, forks, folder / "logs", clock))
        say(f"started: {', '.join(fleet.names)}")
        return await _under_load(order, folder, fleet, links, references, clock, say)


async def _under_load(
    order: ChaosOrder,
    folder: Path,
    fleet: Fleet,
    links: dict[str, FaultProxy],
    references: tuple[Reference, ...],
    clock: Clock,
    say: Say,
) -> ChaosRun:
    load = Load(fleet.deployment.url, references, clock, Chance(order.seed + 1), concurrency=CONCURRENCY[order.model])
    faults = Faults(fleet, links, Chance(order.seed), clock, lease=LEASE)
    began = clock.now()
    await load.start()
    saying = asyncio.create_task(_say_progress(faults, fleet, load, clock, say))
    try:
        await faults.deal(sigkills=order.sigkills, sigstops=order.sigstops, duration=order.duration)
        for link in links.values():
            link.heal()
        unhealed = await _healed(fleet)
        await load.stop()
    finally:
        saying.cancel()
    held = await _emptied(fleet, clock)
    say(f"healed; {len(load.answered)} requests; held: {held or 'nothing'}")
    return ChaosRun(
        order=order,
        folder=folder,
        began=began,
        ended=clock.now(),
        dealt=dict(sorted(faults.dealt.items())),
        harmed={name: link.harmed for name, link in links.items()},
        deaths=fleet.deaths,
        answered=load.answered,
        held=held,
        unhealed=unhealed,
        quarantined_max=fleet.quarantined_max,
    )


async def _healed(fleet: Fleet) -> str:
    """Empty once every member is back; else what is missing."""
    try:
        await fleet.until_whole(HEAL_WITHIN)
    except DeadlineExceeded as error:
        return str(error)
    return ""


async def _emptied(fleet: Fleet, clock: Clock) -> dict[str, Any]:
    """What is still held when the time is up; empty as soon as nothing is, in any worker's ledger, quarantine included."""
    start = clock.now()
    while True:
        held = await _held(fleet)
        if not held or clock.now() - start > EMPTY_WITHIN.ns:
            return held
        await clock.sleep(POLL)


async def _held(fleet: Fleet) -> dict[str, Any]:
    try:
        ledgers = await fleet.ledgers()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return {"gateway": f"{type(error).__name__}: {error}"}
    found: dict[str, Any] = {name: "no answer" for name in fleet.names[1:] if name not in ledgers}
    for name, ledger in ledgers.items():
        blocks = ledger.get("blocks", {})
        if ledger.get("live") != [] or blocks.get("free") != blocks.get("total") or blocks.get("staging_bytes"):
            found[name] = ledger
    return found


async def _say_progress(faults: Faults, fleet: Fleet, load: Load, clock: Clock, say: Say) -> None:
    while True:
        await clock.sleep(SAID_EVERY)
        counts = ", ".join(f"{ending} {count}" for ending, count in load.counts().items() if count)
        dealt = f"{faults.dealt['sigkill']} SIGKILLs, {faults.dealt['sigstop']} SIGSTOPs"
        say(f"{dealt}, {len(fleet.deaths)} ends; requests: {counts}")
