"""A prefill and a decode worker with real memory, and between them a network that loses, repeats and reorders.

The memory is one stamp a block: who wrote it. Reads are one-sided: they look at memory without asking anybody, so that
only the protocol stands between a late reader and somebody else's KV. Digests are left out on purpose.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from isthmus.core.errors import IsthmusError, Lost, Rejected
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId
from isthmus.core.units import Duration
from isthmus.ownership import DestinationPhase, Evidence, LogicalOutcome, SourceHandoff, SourcePhase, TransportKind
from isthmus.ownership.rows import Row
from tests.ownership.worlds import DECODE, LEASE, PREFILL_LIFE, World, grant_of

SOURCE_BLOCKS, DESTINATION_BLOCKS = 2, 3
NO_GRANT, NO_EPOCH = GrantId(""), Epoch(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is on the wire."""

    kind: str
    handoff: HandoffId
    tenant: TenantId
    life: Incarnation
    grant: GrantId = NO_GRANT
    epoch: Epoch = NO_EPOCH
    blocks: tuple[BlockId, ...] = ()


@dataclass(slots=True, kw_only=True)
class Reading:
    """A consumer's read: the offer, and the stamps that have arrived."""

    offer: Message
    staging: list[HandoffId | None] = field(default_factory=list)


class Cluster:
    """Everything between and around the two owners."""

    def __init__(self, *, transport: TransportKind, sole_tenant: TenantId | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World(source_blocks=5, destination_blocks=7, transport=transport, sole_tenant=sole_tenant)
        self.many_tenants = sole_tenant is None
        self.life = self.world.destination.incarnation
        self.dead: list[Incarnation] = []
        self.wire: list[Message] = []
        self.source_memory: list[HandoffId | None] = [None] * 5
        self.destination_memory: list[HandoffId | None] = [None] * 7
        self.tenant_of: dict[HandoffId, TenantId] = {}
        self.readings: dict[HandoffId, Reading] = {}
        self.engine: dict[HandoffId, tuple[BlockId, ...]] = {}  # what the prefill engine may write to, whoever owns it
        self.tasks: list[asyncio.Task[None]] = []
        self.installs = 0

    # running

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(self.loop.create_task(work))
        self.settle()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled():
                task.result()

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.settle()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    # the consumer

    async def begin(self, tenant: TenantId) -> None:
        handoff = self.world.handoff()
        self.tenant_of[handoff] = tenant
        try:
            await self.world.reserve_destination(handoff, blocks=DESTINATION_BLOCKS, tenant=tenant)
        except (Rejected, Lost):
            return
        self.wire.append(Message(kind="prefill", handoff=handoff, tenant=tenant, life=self.life))

    def read_block(self, handoff: HandoffId) -> None:
        """Copy one block, one-sidedly; after the last, convert, and ask the owner."""
        reading = self.readings[handoff]
        stamp = self.source_memory[reading.offer.blocks[len(reading.staging)]]
        if self.many_tenants and stamp is not None:
            assert self.tenant_of[stamp] == reading.offer.tenant, "another tenant's bytes were shown"
        reading.staging.append(stamp)
        if len(reading.staging) < len(reading.offer.blocks):
            return
        destination = self.world.destination
        destination.arrived(handoff)
        for block in destination.state(handoff).blocks:
            self.destination_memory[block] = reading.staging[0]
        destination.converted(handoff)
        destination.verified(handoff, ok=True)
        self.wire.append(replace(reading.offer, kind="confirm", life=self.life))

    def give_up(self, handoff: HandoffId) -> None:
        """Abort; our own read is one coroutine, so it has stopped when we say so."""
        destination = self.world.destination
        self.readings.pop(handoff, None)
        destination.abort(handoff, "test", outcome=LogicalOutcome.CANCELLED)
        destination.drained(handoff)
        self.wire.append(Message(kind="abandon", handoff=handoff, tenant=self.tenant_of[handoff], life=self.life))

    def renew(self, handoff: HandoffId) -> None:
        self.wire.append(replace(self.readings[handoff].offer, kind="renew", life=self.life))

    def finish(self, handoff: HandoffId) -> None:
        self.world.destination.finish(handoff)
        self.settle()

    # the producer

    def fill(self, handoff: HandoffId) -> None:
        """The engine writes all its blocks and has finished, whatever became of the hand-off meanwhile."""
        source = self.world.source
        for block in self.engine.pop(handoff):
            self.source_memory[block] = handoff
        try:
            source.complete(handoff)
            offer = source.publish(handoff)
        except IsthmusError:
            return
        self.wire.append(self.offer_of(offer))

    def give_up_source(self, handoff: HandoffId) -> None:
        self.world.source.abort(handoff)
        self.settle()

    def engine_stops(self, handoff: HandoffId) -> None:
        self.engine.pop(handoff, None)
        self.world.source.drained(handoff)
        self.settle()

    def offer_of(self, offer: SourceHandoff) -> Message:
        return Message(
            kind="offer",
            handoff=offer.handoff,
            tenant=offer.tenant,
            life=PREFILL_LIFE,
            grant=grant_of(offer),
            epoch=offer.epoch,
            blocks=offer.blocks,
        )

    # the wire

    def deliver_at(self, index: int) -> None:
        self.deliver(self.wire.pop(index))

    def repeat_at(self, index: int) -> None:
        self.deliver(self.wire[index])

    def deliver(self, message: Message) -> None:
        with suppress(Rejected, Lost):  # refused: the sender may be told or not, and not being told is the harder case
            getattr(self, f"_on_{message.kind}")(message)
        self.settle()

    def _on_prefill(self, message: Message) -> None:
        async def reserve() -> None:
            with suppress(Rejected, Lost):
                state = await self.world.reserve_source(
                    message.handoff, blocks=SOURCE_BLOCKS, tenant=message.tenant, life=message.life
                )
                self.engine[message.handoff] = state.blocks

        self.spawn(reserve())

    def _on_offer(self, message: Message) -> None:
        if message.handoff not in self.phases(DestinationPhase.RESERVED):
            return  # the coordinator asked once, and takes one answer
        self.world.destination.submit(message.handoff, grant=message.grant, epoch=message.epoch, tenant=message.tenant)
        self.readings[message.handoff] = Reading(offer=message)

    def _on_confirm(self, message: Message) -> None:
        try:
            epoch = self.world.source.confirm(message.grant, message.epoch, DECODE, message.life)
        except (Rejected, Lost):
            self.wire.append(replace(message, kind="no"))
        else:
            self.wire.append(replace(message, kind="yes", epoch=epoch))

    def _on_renew(self, message: Message) -> None:
        self.world.source.renew(message.grant, message.epoch, DECODE, message.life)

    def _on_abandon(self, message: Message) -> None:
        self.world.source.abandon(message.handoff, DECODE, message.life)

    def _on_yes(self, message: Message) -> None:
        before = self.world.destination.state(message.handoff).phase
        state = self.world.destination.install(message.handoff, message.epoch)
        if before is not DestinationPhase.INSTALLED and state.phase is DestinationPhase.INSTALLED:
            staging = self.readings.pop(message.handoff).staging
            assert set(staging) == {message.handoff}, "I1: stale or torn KV was installed"
            self.installs += 1

    def _on_no(self, message: Message) -> None:
        self.world.destination.confirm_refused(message.handoff)
        self.readings.pop(message.handoff, None)

    # the world

    def advance(self, duration: Duration) -> None:
        self.world.clock.advance(duration)
        self.world.source.reap()
        self.settle()

    def kill_consumer(self) -> None:
        """The decode worker dies and another is started under its name; the registry has not noticed yet."""
        died, self.life = self.life, Incarnation(self.world.clock.token())
        for task in self.tasks:
            task.cancel()
        self.settle()
        self.readings.clear()
        self.destination_memory = [None] * 7
        self.world.restart_destination(self.life)
        self.dead.append(died)

    def establish_death(self, life: Incarnation) -> None:
        for handoff in self.world.source.peer_lost(DECODE, life, Evidence.PROCESS_EXITED):
            self.engine_stops(handoff)
        if life in self.dead:
            self.dead.remove(life)
        self.settle()

    def phases(self, *phases: SourcePhase | DestinationPhase) -> list[HandoffId]:
        """Live hand-offs, of either side, in one of `phases`."""
        owner = self.world.source if isinstance(phases[0], SourcePhase) else self.world.destination
        wanted = {phase.value for phase in phases}
        return [handoff_of(row) for row in owner.snapshot() if row["phase"] in wanted]

    def ordinary(self) -> list[Callable[[], None]]:
        """What may happen next if nothing goes wrong, in no order."""
        steps: list[Callable[[], None]] = []
        steps += [partial(self.deliver_at, index) for index in range(len(self.wire))]
        steps += [partial(self.fill, handoff) for handoff in self.engine]
        for handoff in self.phases(DestinationPhase.RECEIVING):
            steps += [partial(self.read_block, handoff)] * 2 + [partial(self.renew, handoff)]
        steps += [partial(self.finish, handoff) for handoff in self.phases(DestinationPhase.INSTALLED)]
        return steps

    def faults(self) -> list[Callable[[], None]]:
        """What may go wrong now, the frequent first."""
        source, destination = self.world.source, self.world.destination
        steps: list[Callable[[], None]] = []
        steps += [partial(self.repeat_at, index) for index in range(len(self.wire))]
        steps += [partial(self.wire.pop, index) for index in range(len(self.wire))]
        steps += [partial(self.give_up, handoff_of(row)) for row in destination.snapshot()]
        steps += [partial(self.give_up_source, handoff_of(row)) for row in source.snapshot()]
        steps += [partial(self.engine_stops, handoff) for handoff in self.phases(SourcePhase.DRAINING)]
        steps += [partial(self.establish_death, life) for life in self.dead]
        return [*steps, self.kill_consumer]

    # what must hold after every step

    def check(self) -> None:
        self.world.check_in_full()  # I3
        source, destination = self.world.source, self.world.destination
        grants = 0
        for handoff in self.phases(SourcePhase.HELD, SourcePhase.PUBLISHED, SourcePhase.EXPOSED):
            state = source.state(handoff)
            stamps = {self.source_memory[block] for block in state.blocks}
            assert stamps == {handoff}, "I2: a write reached blocks of another epoch"
            grants += len(state.blocks) if state.grant_open else 0
        assert self.world.source_ledger.held().grants == grants, "I4: open grants and counts differ"
        for handoff in self.phases(DestinationPhase.INSTALLED):
            stamps = {self.destination_memory[block] for block in destination.state(handoff).blocks}
            assert stamps == {handoff}, "I2: a write reached installed blocks"
        assert self.world.destination_ledger.held().staging_bytes <= 1000  # I10

    def drain(self) -> None:
        """Everything ends: the network is gone, requests end, leases run out, peers are proven dead."""
        self.wire.clear()
        for task in self.tasks:
            task.cancel()
        self.settle()
        destination, source = self.world.destination, self.world.source
        for handoff in self.phases(DestinationPhase.INSTALLED):
            destination.finish(handoff)
        for row in destination.snapshot():
            self.give_up(handoff_of(row))
        for handoff in self.phases(SourcePhase.COMPUTING):
            source.abort(handoff)
        for handoff in self.phases(SourcePhase.DRAINING):
            self.engine_stops(handoff)
        self.advance(LEASE)
        self.advance(LEASE)
        for life in (*self.dead, self.life):
            self.establish_death(life)
        for handoff in self.phases(SourcePhase.HELD):
            source.abort(handoff)
        self.settle()


def handoff_of(row: Row) -> HandoffId:
    return HandoffId(str(row["handoff"]))
