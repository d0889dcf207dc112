"""One chaos run, top to bottom: prepare, start, load, faults, heal, look into every ledger, stop, read the journals."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import msgspec

from isthmus.core.clock import Clock, Instant, SystemClock
from isthmus.core.errors import DeadlineExceeded, Unsupported
from isthmus.core.units import Duration
from isthmus.lab.chaos.chance import Chance
from isthmus.lab.chaos.disk import TinyDisk
from isthmus.lab.chaos.faults import Faults
from isthmus.lab.chaos.fleet import Death, Fleet, Freeze
from isthmus.lab.chaos.forks import Forks
from isthmus.lab.chaos.load import Answered, Load
from isthmus.lab.chaos.model import KV_HEADS, Reference, answer_alone, prepare
from isthmus.lab.chaos.partitions import Network, Silence
from isthmus.lab.chaos.proxy import FaultProxy
from isthmus.lab.chaos.shapes import APART, LEASE, STARVED, answered_within, shape_of

__all__ = ["ChaosOrder", "ChaosRun", "run_chaos", "run_deployment"]

PROMPTS = {"tiny": 24, "smollm2": 7}
ANSWER_TOKENS = {"tiny": 24, "smollm2": 12}
CONCURRENCY = {"tiny": 6, "smollm2": 3}
"""The larger model's work is kept small, so that faults and not arithmetic fill the time."""
HEAL_WITHIN = Duration.of_seconds(90)
EMPTY_WITHIN = Duration.of_seconds(20)
POLL = Duration.of_ms(200)
SAID_EVERY = Duration.of_seconds(10)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOrder:
    """What was asked for. `partitions`: by `namespaces`, which must be permitted then, by `proxy`, or `auto`."""

    sigkills: int
    sigstops: int
    duration: Duration
    model: str
    seed: int
    mode: str = "pull"
    partitions: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRun:
    """What happened. `held` is what each worker still holds when all is healed and quiet: nothing, or a leak.

    `namespaces`: whether there were partitions by network namespaces; else the proxies lost one direction at most.
    """

    order: ChaosOrder
    folder: Path
    began: Instant
    ended: Instant
    dealt: dict[str, int]
    namespaces: bool
    harmed: dict[str, int]
    packets_lost: dict[str, int]
    deaths: list[Death]
    freezes: list[Freeze]
    silences: list[Silence]
    answered: list[Answered]
    held: dict[str, Any]
    unhealed: str
    quarantined_max: int


async def run_chaos(order: ChaosOrder, folder: Path, cache: Path, say: Say) -> ChaosRun:
    """Prepare, run, and return what happened; judging it is `report`'s."""
    model = prepare(order.model, cache)
    count, tokens = PROMPTS[order.model], ANSWER_TOKENS[order.model]
    references = await asyncio.to_thread(answer_alone, model, count=count, tokens=tokens)
    say(f"{len(references)} reference answers by one engine alone; logs and journals in {folder}")
    async with Forks() as forks:
        return await run_deployment(order, folder, model, references, forks, say)


async def run_deployment(
    order: ChaosOrder,
    folder: Path,
    model: Path,
    references: Sequence[Reference],
    forks: Forks,
    say: Say,
    *,
    environment: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> ChaosRun:
    """One deployment from its start to its clean end, with load and faults between.

    `environment` is what single members find in theirs, besides the shape's.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        network = _network(order, stack, say)
        disk = await stack.enter_async_context(TinyDisk(folder / "full", folder / "starved"))
        if not disk.mounted:
            say("no rights to mount a disk: no member is starved of it")
        full_disk = disk.at if disk.mounted else None
        heads = KV_HEADS[order.model]
        shape = shape_of(model, folder, heads=heads, mode=order.mode, full_disk=full_disk, network=network)
        links = {
            link.name: await stack.enter_async_context(FaultProxy(link.listens, link.target, clock, host=shape.host))
            for link in shape.links
        }
        everyone = {name: {**shape.environment.get(name, {}), **environment.get(name, {})} for name in shape.names}
        spawn = forks.spawner(everyone, None if network is None else network.path)
        fleet = await stack.enter_async_context(Fleet(shape, spawn, _log_folder(folder, full_disk), clock))
        say(f"started: {', '.join(fleet.names)}")
        run = await _under_load(order, folder, fleet, links, network, references, clock, say)
    (folder / "run.json").write_bytes(msgspec.json.encode(run, enc_hook=str))
    return run


def _network(order: ChaosOrder, stack: AsyncExitStack, say: Say) -> Network | None:
    """Namespaces for the members that are apart, left with `stack`; None where there are to be none, or can be none.

    Raises:
        Unsupported: they were asked for and are not to be had.
    """
    if order.partitions == "proxy":
        return None
    try:
        return stack.enter_context(Network(APART))
    except Unsupported as error:
        if order.partitions == "namespaces":
            raise
        say(f"no partitions but by proxy: {error}")
        return None


def _log_folder(folder: Path, full_disk: Path | None) -> Path:
    """Where logs go: one member's ends on the full disk."""
    logs = folder / "logs"
    logs.mkdir()
    if full_disk is not None:
        (logs / f"{STARVED}.log").symlink_to(full_disk / f"{STARVED}.log")
    return logs


async def _under_load(
    order: ChaosOrder,
    folder: Path,
    fleet: Fleet,
    links: dict[str, FaultProxy],
    network: Network | None,
    references: Sequence[Reference],
    clock: Clock,
    say: Say,
) -> ChaosRun:
    load = Load(
        fleet.deployment.url,
        references,
        clock,
        Chance(order.seed + 1),
        concurrency=CONCURRENCY[order.model],
        answered_within=answered_within(fleet.config),
    )
    faults = Faults(fleet, links, network, Chance(order.seed), clock, lease=LEASE)
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
        namespaces=network is not None,
        harmed={name: link.harmed for name, link in links.items()},
        packets_lost={} if network is None else network.packets_lost,
        deaths=fleet.deaths,
        freezes=fleet.freezes,
        silences=faults.silences,
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
    """What is still held when the time is up; empty as soon as no ledger holds anything, quarantine included."""
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
        unaccounted = blocks.get("total", -1) - blocks.get("free", 0) - blocks.get("retained", 0)
        if ledger.get("live") != [] or unaccounted or blocks.get("staging_bytes"):
            found[name] = ledger
    return found


async def _say_progress(faults: Faults, fleet: Fleet, load: Load, clock: Clock, say: Say) -> None:
    while True:
        await clock.sleep(SAID_EVERY)
        counts = ", ".join(f"{ending} {count}" for ending, count in load.counts().items() if count)
        dealt = f"{faults.dealt['sigkill']} SIGKILLs, {faults.dealt['sigstop']} SIGSTOPs"
        say(f"{dealt}, {len(fleet.deaths)} ends; requests: {counts}")
