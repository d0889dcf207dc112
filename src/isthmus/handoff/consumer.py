"""The consumer's side, and the coordinator: reserve, plan, read, verify, and install once the owner has confirmed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from isthmus.core.clock import Clock
from isthmus.core.errors import ContextTooLong, DeadlineExceeded, IsthmusError, Lost, ManifestInvalid, Rejected
from isthmus.core.ids import Epoch, HandoffId, Incarnation, RegionId, WorkerId
from isthmus.core.units import ByteCount, Duration, blocks_for
from isthmus.core.waiting import within
from isthmus.handoff.orders import AbortOrder, ConfirmOrder, ConfirmReply, PrefillOrder, RenewOrder
from isthmus.handoff.seams import KVReader, Producer
from isthmus.handoff.stages import Arrived, Filled, Installed, Offered, Placed, Planned, Released, Reserved, Verified
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.leases import renewal_interval
from isthmus.portability.verdict import Verdict, judge, plans_or_refuse
from isthmus.state.fields import RegionShape
from isthmus.state.identity import Identity
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import BlockRead, Endpoint, Reader, transport_name

__all__ = ["ConsumerSide", "Deadlines", "Peer"]

CONFIRM_TRIES = 3
"""A confirmation whose answer is lost is asked again: the owner answers the same (its tombstones see to that)."""

VERDICTS_KEPT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each stage may take before the hand-off is given up."""

    reserve: Duration
    prefill: Duration
    transfer: Duration
    confirm: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A producer as the registry knows it, and the way to its bytes. Never taken from a request."""

    identity: Identity
    representation: KVRepresentation
    endpoint: Endpoint
    reader: Reader


class ConsumerSide:
    """Brings KV here. `peer_of` resolves a producer against the registry and raises PeerLost where it is not there."""

    def __init__(
        self,
        engine: KVReader,
        owner: DestinationOwner,
        peer_of: Callable[[WorkerId, Incarnation], Peer],
        clock: Clock,
        *,
        worker: WorkerId,
        incarnation: Incarnation,
        deadlines: Deadlines,
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._peer_of = peer_of
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._deadlines = deadlines
        self._verdicts: dict[tuple[Identity, KVRepresentation], Verdict] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def reserve(self, placed: Placed) -> Reserved:
        """Blocks for the prompt and its whole growth, and staging for what will cross; all or nothing.

        Raises:
            ContextTooLong, CapacityExceeded, PeerLost: cannot be, not now, not there.
            GateRefused, Unsupported: this pair can never exchange KV; said before anything is computed.
        """
        request = placed.request
        if request.tokens_max > self._engine.context_length:
            raise ContextTooLong(
                f"token_ids: {len(request.token_ids)} tokens and up to {request.tokens_max - len(request.token_ids)} "
                f"more, this model's context is {self._engine.context_length}",
                field="token_ids",
            )
        peer = self._peer_of(placed.producer, placed.producer_incarnation)
        plans_or_refuse(self.judge(peer.identity, peer.representation))
        destination = await self._owner.reserve(
            HandoffId(self._clock.token()),
            producer=placed.producer,
            producer_incarnation=placed.producer_incarnation,
            tenant=request.tenant_id(),
            blocks=blocks_for(request.tokens_max, self._engine.representation.groups[0].block_size),
            staging_bytes=_staging_bytes(peer.representation, len(request.token_ids)),
            deadline=self._deadlines.reserve,
        )
        return Reserved(placed=placed, handoff=destination.handoff, blocks=destination.blocks)

    async def ask_prefill(self, reserved: Reserved, producer: Producer) -> Filled:
        """Have the producer fill. Raises what it raises, and DeadlineExceeded."""
        order = PrefillOrder(
            handoff=reserved.handoff,
            holder=self._worker,
            holder_incarnation=self._incarnation,
            request=reserved.placed.request,
        )
        reply = await within(self._clock, self._deadlines.prefill, producer.prefill(order), "prefill")
        return Filled(reserved=reserved, reply=reply)

    def judge(self, identity: Identity, representation: KVRepresentation) -> Verdict:
        """May KV of this identity and form be read here, and how? Remembered: it depends on nothing else."""
        key = (identity, representation)
        if key not in self._verdicts:
            if len(self._verdicts) >= VERDICTS_KEPT:
                self._verdicts.clear()
            self._verdicts[key] = judge(key, (self._engine.identity, self._engine.representation))
        return self._verdicts[key]

    def plan(self, offered: Offered) -> Planned:
        """Gate and plans, for what is really on offer. Raises GateRefused, Unsupported."""
        verdict = self.judge(offered.state.identity, offered.state.representation)
        return Planned(offered=offered, verdict=verdict, plans=plans_or_refuse(verdict))

    async def transfer(self, planned: Planned) -> Arrived:
        """Read the offered blocks into staging.

        Raises:
            ManifestInvalid: more bytes than were reserved for.
            Lost, Rejected: as the transport says. Nothing writes to the staging afterwards.
        """
        reserved, state = planned.offered.filled.reserved, planned.offered.state
        peer = self._peer_of(state.ownership.worker(), state.ownership.life())
        if state.representation != peer.representation:
            raise ManifestInvalid(
                "representation: the offer's is not the one this producer registered with", field="representation"
            )
        request = BlockRead(
            grant=state.ownership.grant_id(),
            epoch=state.ownership.fence(),
            reader=self._worker,
            regions=_regions(state.representation),
            blocks=state.groups[0].blocks(),
            num_blocks=state.residency.num_blocks,
        )
        image: Mapping[RegionId, memoryview] = {
            region.id: memoryview(bytearray(region.size_bytes(len(request.blocks)))) for region in request.regions
        }
        self._owner.submit(
            reserved.handoff,
            grant=state.ownership.grant_id(),
            epoch=state.ownership.fence(),
            tenant=state.ownership.tenant_id(),
        )
        moved = await peer.reader.read(request, peer.endpoint, image, self._deadlines.transfer)
        self._owner.arrived(reserved.handoff)
        return Arrived(
            planned=planned, image=image, wire_bytes=ByteCount(moved), transport=transport_name(peer.endpoint)
        )

    async def convert_and_verify(self, arrived: Arrived) -> Verified:
        """Rewrite into the reserved blocks. A doubt about bytes ends the hand-off: DigestMismatch, and the like."""
        offered = arrived.planned.offered
        reserved = offered.filled.reserved
        try:
            checked = await self._engine.convert(arrived.planned.plans, offered.state, arrived.image, reserved.blocks)
        except IsthmusError:
            self._owner.converted(reserved.handoff)
            self._owner.verified(reserved.handoff, ok=False)
            raise
        self._owner.converted(reserved.handoff)
        self._owner.verified(reserved.handoff, ok=True)
        # The image is not passed on: whoever keeps the result through decode would keep staging that the ledger frees
        # at the commit (I10).
        return Verified(arrived=replace(arrived, image={}), checked=checked)

    async def commit(self, verified: Verified, producer: Producer) -> Installed:
        """Ask the owner whether the epoch still stands, now that the last byte is here; install only on yes (I1, I9).

        Raises:
            GrantUnknown, StaleEpoch: it does not; what arrived may have been overwritten under the read.
            Lost: the owner cannot be reached, so nothing is installed.
        """
        offered = verified.arrived.planned.offered
        ownership = offered.state.ownership
        order = ConfirmOrder(
            grant=ownership.grant,
            epoch=ownership.epoch,
            holder=self._worker,
            holder_incarnation=self._incarnation,
        )
        confirmed = await self._confirm(order, producer)
        self._owner.install(offered.filled.reserved.handoff, Epoch(confirmed.epoch))
        return Installed(verified=verified)

    async def _confirm(self, order: ConfirmOrder, producer: Producer) -> ConfirmReply:
        for _ in range(CONFIRM_TRIES - 1):
            try:
                return await within(self._clock, self._deadlines.confirm, producer.confirm(order), "confirm")
            except DeadlineExceeded:
                continue
        return await within(self._clock, self._deadlines.confirm, producer.confirm(order), "confirm")

    def release(self, installed: Installed) -> Released:
        """Over: the source was freed by the confirmation, the staging by the install."""
        return Released(filled=installed.verified.arrived.planned.offered.filled, installed=installed)

    def finish(self, reserved: Reserved) -> None:
        """Decode has ended and touches the blocks no more: they are free. Whatever ended it, this comes once."""
        self._owner.finish(reserved.handoff)

    def release_unused(self, filled: Filled) -> Released:
        """The first token ended the answer: no KV crosses, and the reservation is given back."""
        self._owner.abort(filled.reserved.handoff, "the answer ended with its first token")
        self._owner.drained(filled.reserved.handoff)
        return Released(filled=filled, installed=None)

    @asynccontextmanager
    async def giving_up(self, reserved: Reserved, producer: Producer) -> AsyncIterator[None]:
        """Where the body fails, give up both sides. Reads and conversions have ended by then: they promise it."""
        try:
            yield
        except BaseException as reason:
            self._owner.abort(reserved.handoff, f"{type(reason).__name__}: {reason}")
            self._owner.drained(reserved.handoff)
            self._tell(producer, reserved.handoff)
            raise

    @asynccontextmanager
    async def renewing(self, planned: Planned, producer: Producer) -> AsyncIterator[None]:
        """Renew the lease every third of it while the body runs."""
        renewals = asyncio.create_task(self._renew(planned, producer))
        try:
            yield
        finally:
            renewals.cancel()
            await asyncio.wait({renewals})

    async def _renew(self, planned: Planned, producer: Producer) -> None:
        ownership = planned.offered.state.ownership
        order = RenewOrder(
            grant=ownership.grant, epoch=ownership.epoch, holder=self._worker, holder_incarnation=self._incarnation
        )
        interval = renewal_interval(Duration.of_ms(ownership.lease_ms))
        pause = interval
        while True:
            await self._clock.sleep(pause)
            try:
                await within(self._clock, interval / 4, producer.renew(order), "renew")
                pause = interval
            except Lost:
                pause = interval / 4  # it, or its answer: asked again while the lease still runs
            except Rejected:
                return  # the confirmation will meet the same refusal, and it is the one that decides

    def _tell(self, producer: Producer, handoff: HandoffId) -> None:
        """Tell the producer, without waiting: if this is lost, its lease runs out."""
        order = AbortOrder(handoff=handoff, holder=self._worker, holder_incarnation=self._incarnation)

        async def tell() -> None:
            try:
                await within(self._clock, self._deadlines.confirm, producer.abort(order), "abort")
            except (Rejected, Lost):
                return

        task = asyncio.create_task(tell())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _regions(representation: KVRepresentation) -> tuple[RegionShape, ...]:
    """All regions of all groups and shards, in the order that images and pools use."""
    return tuple(region for shards in representation.address() for shard in shards for region in shard.regions)


def _staging_bytes(representation: KVRepresentation, tokens: int) -> ByteCount:
    """What a pool image of `tokens` tokens takes."""
    return ByteCount(
        sum(
            region.size_bytes(blocks_for(tokens, group.block_size))
            for group, shards in zip(representation.groups, representation.address(), strict=True)
            for shard in shards
            for region in shard.regions
        )
    )
