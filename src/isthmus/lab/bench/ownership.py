"""`isthmus bench ownership`: what deciding, accounting, confirming and verifying cost, on one core."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

from isthmus.core.clock import Instant, ManualClock, SystemClock
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.lab.bench.control import bench_control
from isthmus.lab.bench.harness import Row, progress, result, row
from isthmus.lab.bench.verification import bench_verification
from isthmus.ownership import Capacity, DestinationOwner, Ledger, SourceOwner, TransportKind
from isthmus.ownership.owner import execute
from isthmus.ownership.protocol import destination, source
from isthmus.ownership.protocol.events import (
    Arrived,
    Complete,
    Confirm,
    Confirmed,
    ConvertDone,
    DestinationEvent,
    Finish,
    Publish,
    ReadSeen,
    ReserveDestination,
    ReserveSource,
    SourceEvent,
    Submit,
    VerifyOk,
)

__all__ = ["bench_ownership"]

PRODUCER, CONSUMER = WorkerId("prefill-0"), WorkerId("decode-0")
PRODUCER_LIFE, CONSUMER_LIFE = Incarnation("a" * 32), Incarnation("b" * 32)
TENANT, GRANT, HANDOFF = TenantId("default"), GrantId("c" * 64), HandoffId("d" * 32)
LEASE = Duration.of_seconds(10)
HANDOFFS = 2_000
TRANSITIONS = 12  # of one hand-off: 5 of the source, 7 of the destination, reservations included
IN_FLIGHT = (10, 100, 1_000, 10_000)


def bench_ownership(rounds: int = 5) -> dict[str, Any]:
    """All rows, with what is wanted of each."""
    progress("step and ledger")
    rows = [_transitions(blocks, rounds) for blocks in (1, 16, 64)]
    progress("control cost in two processes")
    rows += asyncio.run(bench_control(rounds))
    progress("hand-offs in flight")
    rows += asyncio.run(_in_flight())
    progress("digests and verification")
    rows += bench_verification(rounds)
    return result("ownership", rows, ("msgspec", "numpy", "numba", "torch"))


def _transitions(blocks: int, rounds: int) -> Row:
    rates = []
    for _ in range(rounds + 1):
        seconds = _seconds(lambda: _hand_offs(blocks))
        rates.append(HANDOFFS * TRANSITIONS / seconds)
    return row(f"step + ledger, {blocks} blocks a hand-off", rates[1:], "transitions/s", wanted=">= 150000")


def _hand_offs(blocks: int) -> None:
    """Hand-offs from nothing to released, both sides: decisions and every mutation of two ledgers, sums checked."""
    ledgers = [Ledger(num_blocks=4096, block_bytes=16_384, staging_bytes=1 << 30) for _ in range(2)]
    for _ in range(HANDOFFS):
        given = ledgers[0].try_reserve(HANDOFF, tenant=TENANT, blocks=blocks, staging_bytes=0)
        taken = ledgers[1].try_reserve(HANDOFF, tenant=TENANT, blocks=blocks, staging_bytes=4096)
        if given is None or taken is None:
            raise RuntimeError("the pool does not come free")
        _run(source.step, ledgers[0], _source_events(given.blocks, given.epoch))
        _run(destination.step, ledgers[1], _destination_events(taken.blocks, taken.epoch, given.epoch))


def _run(step: Callable[[Any, Any], Any], ledger: Ledger, events: tuple[Any, ...]) -> None:
    state = None
    for event in events:
        state, effects = step(state, event)
        for effect in effects:
            execute(ledger, effect)


def _source_events(blocks: tuple[Any, ...], epoch: Epoch) -> tuple[SourceEvent, ...]:
    return (
        ReserveSource(
            handoff=HANDOFF,
            holder=CONSUMER,
            holder_incarnation=CONSUMER_LIFE,
            tenant=TENANT,
            transport=TransportKind.TCP,
            sole_tenant=True,
            blocks=blocks,
            epoch=epoch,
        ),
        Complete(),
        Publish(now=Instant(1), grant=GRANT, lease=LEASE),
        ReadSeen(now=Instant(2), grant=GRANT, epoch=epoch, reader=CONSUMER),
        Confirm(now=Instant(3), grant=GRANT, epoch=epoch, holder=CONSUMER, holder_incarnation=CONSUMER_LIFE),
    )


def _destination_events(blocks: tuple[Any, ...], epoch: Epoch, offered: Epoch) -> tuple[DestinationEvent, ...]:
    return (
        ReserveDestination(
            handoff=HANDOFF,
            producer=PRODUCER,
            producer_incarnation=PRODUCER_LIFE,
            tenant=TENANT,
            transport=TransportKind.TCP,
            blocks=blocks,
            staging_bytes=4096,
            epoch=epoch,
        ),
        Submit(tenant=TENANT, grant=GRANT, epoch=offered),
        Arrived(),
        ConvertDone(),
        VerifyOk(),
        Confirmed(epoch=offered),
        Finish(),
    )


class _Worker:
    """Both owners of a pair, with their real shells: records, timelines, grants, queues."""

    def __init__(self, handoffs: int) -> None:
        clock = ManualClock()
        ledgers = [Ledger(num_blocks=handoffs, block_bytes=16_384, staging_bytes=1 << 40) for _ in range(2)]
        first, second = (Capacity(ledger=ledger, clock=clock) for ledger in ledgers)
        self.clock = clock
        self.source = SourceOwner(
            ledger=ledgers[0],
            capacity=first,
            clock=clock,
            worker=PRODUCER,
            incarnation=PRODUCER_LIFE,
            lease=LEASE,
            transport=TransportKind.TCP,
            sole_tenant=TENANT,
            of_peer_max=handoffs,
        )
        self.destination = DestinationOwner(
            ledger=ledgers[1],
            capacity=second,
            clock=clock,
            worker=CONSUMER,
            incarnation=CONSUMER_LIFE,
            transport=TransportKind.TCP,
        )

    async def begin(self, handoff: HandoffId) -> None:
        await self.destination.reserve(
            handoff,
            producer=PRODUCER,
            producer_incarnation=PRODUCER_LIFE,
            tenant=TENANT,
            blocks=1,
            staging_bytes=4096,
            deadline=LEASE,
        )
        await self.source.reserve(
            handoff, holder=CONSUMER, holder_incarnation=CONSUMER_LIFE, tenant=TENANT, blocks=1, deadline=LEASE
        )
        self.source.complete(handoff)
        offer = self.source.publish(handoff)
        self.destination.submit(handoff, grant=GrantId(str(offer.grant)), epoch=offer.epoch, tenant=TENANT)

    def end(self, handoff: HandoffId, spans: list[float], clock: SystemClock) -> None:
        """The rest of it, with each transition's microseconds."""
        offer = self.source.state(handoff)
        grant = GrantId(str(offer.grant))
        works: tuple[Callable[[], object], ...] = (
            lambda: self.source.check_read(grant, offer.epoch, CONSUMER, offer.blocks),
            lambda: self.source.renew(grant, offer.epoch, CONSUMER, CONSUMER_LIFE),
            lambda: self.destination.arrived(handoff),
            lambda: self.destination.converted(handoff),
            lambda: self.destination.verified(handoff, ok=True),
            lambda: self.source.confirm(grant, offer.epoch, CONSUMER, CONSUMER_LIFE),
            lambda: self.destination.install(handoff, offer.epoch),
            lambda: self.destination.finish(handoff),
        )
        for work in works:
            start = clock.now()
            work()
            spans.append((clock.now() - start) / 1e3)


async def _in_flight() -> list[Row]:
    """Of each number in flight at once: p99 of a transition, a hand-off's whole cost, and one look of the reaper."""
    rows = []
    clock = SystemClock()
    for number in IN_FLIGHT:
        wanted = "<= 1000" if number == IN_FLIGHT[-1] else ""
        worker, spans, costs = _Worker(number + 1), list[float](), list[float]()
        ids = [HandoffId(f"{index:032x}") for index in range(number + 2_000)]
        gc.collect()
        for handoff in ids[:number]:
            await worker.begin(handoff)
        for ended, begun in zip(ids, ids[number:], strict=False):
            start = clock.now()
            await worker.begin(begun)
            worker.end(ended, spans, clock)
            costs.append((clock.now() - start) / 1e3)
        reaped = _seconds(worker.source.reap) * 1e6
        spans.sort()
        rows.append(row(f"transition p99, {number:,} in flight", [spans[len(spans) * 99 // 100]], "us", wanted=wanted))
        rows.append(row(f"hand-off, both sides, {number:,} in flight", costs, "us"))
        rows.append(row(f"reaper's look, {number:,} in flight", [reaped], "us"))
    return rows


def _seconds(work: Callable[[], object]) -> float:
    clock = SystemClock()
    start = clock.now()
    work()
    return (clock.now() - start) / 1e9
