"""The consumer's side, and the coordinator: reserve, plan, read, verify, and install once the owner has confirmed."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from isthmus.core.clock import Clock
from isthmus.core.errors import ContextTooLong, DeadlineExceeded, IsthmusError, Lost, ManifestInvalid, Rejected
from isthmus.core.ids import Epoch, HandoffId, Incarnation, WorkerId
from isthmus.core.units import Duration, blocks_for
from isthmus.core.waiting import through
from isthmus.handoff.exposure import Exposed, Exposures, order_prefill
from isthmus.handoff.images import image_blocks, image_bytes
from isthmus.handoff.orders import AbortOrder, ConfirmOrder, ConfirmReply, PrefillOrder, WrittenOrder
from isthmus.handoff.pull import Pulls
from isthmus.handoff.reuse import Reuse, reusable
from isthmus.handoff.seams import KVReader, Producer
from isthmus.handoff.stages import Arrived, Filled, Installed, Offered, Placed, Planned, Released, Reserved, Verified
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.prefix_cache import PrefixGone
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.portability.verdict import Verdict, judge, plans_or_refuse
from isthmus.state.identity import Identity
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import Endpoint, Importer, Reader, transport_name

__all__ = ["ConsumerSide", "Deadlines", "Peer"]

CONFIRM_TRIES = 3
"""A confirmation whose answer is lost is asked again: the owner answers the same (its tombstones see to that)."""

VERDICTS_KEPT = 256

TELL_PAUSE_MAX = Duration.of_seconds(30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each stage may take before the hand-off is given up."""

    reserve: Duration
    prefill: Duration
    transfer: Duration
    confirm: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A producer as the registry knows it, and the way to its bytes. Never taken from a request.

    `mode` says who moves them. Where it writes, `importer` is ours of the same transport; else None.
    """

    identity: Identity
    representation: KVRepresentation
    endpoint: Endpoint
    reader: Reader
    mode: TriggerMode = TriggerMode.PULL
    importer: Importer | None = None


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
        reuse: Reuse | None = None,
    ) -> None:
        self._engine = engine
        self._reuse = reuse or Reuse(engine.representation)
        self._owner = owner
        self._peer_of = peer_of
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._deadlines = deadlines
        self._exposures = Exposures(owner, clock)
        self._pulls = Pulls(owner, clock, worker=worker, incarnation=incarnation, deadline=deadlines.transfer)
        self._verdicts: dict[tuple[Identity, KVRepresentation], Verdict] = {}
        self._judged: dict[tuple[int, int], tuple[Identity, KVRepresentation, Verdict]] = {}
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
                f"token_ids: {request.num_tokens} tokens and up to {request.tokens_max - request.num_tokens} "
                f"more, this model's context is {self._engine.context_length}",
                field="token_ids",
            )
        peer = self._peer_of(placed.producer, placed.producer_incarnation)
        plans_or_refuse(self.judge(peer.identity, peer.representation))
        # The last: whether what it fills can be offered from a token in its midst on.
        if not self._reuse.on or not reusable(peer.representation):
            return await self._reserve_behind((), placed, peer, ())
        names = self._reuse.names(request, peer.identity, peer.representation)
        await self._reuse.bring_back(request, names)
        try:
            return await self._reserve_behind(self._reuse.here(request, names), placed, peer, names)
        except PrefixGone:
            return await self._reserve_behind((), placed, peer, names)

    async def _reserve_behind(
        self, prefix: tuple[bytes, ...], placed: Placed, peer: Peer, names: tuple[bytes, ...]
    ) -> Reserved:
        """Room for what is not here yet. Raises PrefixGone where some of `prefix` made room for others meanwhile."""
        request, block_size = placed.request, self._reuse.block_size
        have_tokens = len(prefix) * block_size
        destination = await self._owner.reserve(
            HandoffId(self._clock.token()),
            producer=placed.producer,
            producer_incarnation=placed.producer_incarnation,
            tenant=request.tenant,
            blocks=blocks_for(request.tokens_max, block_size) - len(prefix),
            staging_bytes=image_bytes(peer.representation, have_tokens, request.num_tokens),
            deadline=self._deadlines.reserve,
            prefix=prefix,
            mode=peer.mode,
            num_parts=len(peer.representation.parts) if peer.mode is TriggerMode.PULL else 1,
            transport=TransportKind(transport_name(peer.endpoint)) if peer.importer is not None else None,
        )
        return Reserved(
            placed=placed,
            handoff=destination.handoff,
            blocks=(*self._reuse.begun(destination.handoff).blocks, *destination.blocks),
            mode=destination.mode,
            num_parts=len(destination.parts),
            held_blocks=len(prefix),
            have_tokens=have_tokens,
            names=names,
        )

    async def ask_prefill(self, reserved: Reserved, producer: Producer) -> Filled:
        """Have the producer fill; where it writes, expose an image to it first. Raises what it raises.

        Raises:
            CapacityExceeded: no memory to expose. DeadlineExceeded: not filled in time.
        """
        exposed, mode = self._expose(reserved), reserved.mode
        order = PrefillOrder(
            handoff=reserved.handoff,
            holder=self._worker,
            holder_incarnation=self._incarnation,
            request=reserved.placed.request,
            have_tokens=reserved.have_tokens,
            mode=mode,
            registration=exposed.registration if exposed is not None and mode is TriggerMode.SEND else None,
        )
        reply = await order_prefill(producer, order, exposed, self._deadlines.prefill)
        return Filled(reserved=reserved, reply=reply)

    def _expose(self, reserved: Reserved) -> Exposed | None:
        """An image for what will cross, where the producer writes it; for as long as filling and writing may take."""
        placed = reserved.placed
        peer = self._peer_of(placed.producer, placed.producer_incarnation)
        if peer.importer is None:
            return None
        num_blocks = image_blocks(peer.representation, reserved.have_tokens, placed.request.num_tokens)[0]
        lease = Duration(self._deadlines.prefill.ns + self._deadlines.transfer.ns)
        return self._exposures.expose(reserved.handoff, peer.importer, peer.representation, num_blocks, lease)

    def judge(self, identity: Identity, representation: KVRepresentation) -> Verdict:
        """May KV of this identity and form be read here, and how? Remembered: it depends on nothing else."""
        # Looked up by the objects first, which are the same ones as long as a peer is what it was.
        found = self._judged.get((id(identity), id(representation)))
        if found is not None:
            return found[2]
        key = (identity, representation)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS_KEPT:
                self._verdicts.clear()
            verdict = self._verdicts[key] = judge(key, (self._engine.identity, self._engine.representation))
        if len(self._judged) >= VERDICTS_KEPT:
            self._judged.clear()
        self._judged[id(identity), id(representation)] = (identity, representation, verdict)
        return verdict

    def plan(self, offered: Offered) -> Planned:
        """Gate and plans, for what is really on offer. Raises GateRefused, Unsupported."""
        verdict = self.judge(offered.state.identity, offered.state.representation)
        return Planned(offered=offered, verdict=verdict, plans=plans_or_refuse(verdict))

    async def transfer(self, planned: Planned, producer: Producer) -> Arrived:
        """Read the offered blocks into staging, or have them written there.

        Raises:
            ManifestInvalid: another form than was registered, or other blocks than were asked for.
            Lost, Rejected: as the transport says. Nothing writes to the staging afterwards.
        """
        reserved, state = planned.offered.filled.reserved, planned.offered.state
        peer = self._peer_of(state.ownership.owner, state.ownership.incarnation)
        if state.representation != peer.representation:
            raise ManifestInvalid(
                "representation: the offer's is not the one this producer registered with", field="representation"
            )
        exposed = self._exposures.of(reserved.handoff)
        if exposed is not None:
            return await self._be_written(planned, exposed, producer)
        image, moved = await self._pulls.read(reserved.handoff, state, peer.reader, peer.endpoint)
        return Arrived(planned=planned, image=image, wire_bytes=moved, transport=transport_name(peer.endpoint))

    async def _be_written(self, planned: Planned, exposed: Exposed, producer: Producer) -> Arrived:
        state, handoff = planned.offered.state, exposed.handoff
        order = WrittenOrder(handoff=handoff, holder=self._worker, holder_incarnation=self._incarnation)
        await producer.written(order, self._deadlines.transfer)
        await self._exposures.take(exposed, state.ownership)
        return Arrived(
            planned=planned,
            image=exposed.image,
            wire_bytes=exposed.target.size_bytes,
            transport=exposed.transport,
        )

    async def convert_and_verify(self, arrived: Arrived) -> Verified:
        """Rewrite into the reserved blocks. A doubt about bytes ends the hand-off: DigestMismatch, and the like."""
        offered = arrived.planned.offered
        reserved = offered.filled.reserved
        try:
            checked = await self._engine.convert(
                arrived.planned.plans, offered.state, arrived.image, reserved.own_blocks
            )
        except IsthmusError:
            self._converted(reserved, ok=False)
            raise
        self._converted(reserved, ok=True)
        # The image is not passed on: whoever keeps the result through decode would keep staging that the ledger frees
        # at the commit (I10).
        return Verified(arrived=replace(arrived, image={}), checked=checked)

    def _converted(self, reserved: Reserved, *, ok: bool) -> None:
        """A digest is of a layer group and a conversion of all its ranks, so parts are verified as one."""
        parts = range(reserved.num_parts)
        for part in parts:
            self._owner.converted(reserved.handoff, part)
        for part in parts if ok else parts[:1]:
            self._owner.verified(reserved.handoff, ok=ok, part=part)

    async def commit(self, verified: Verified, producer: Producer) -> Installed:
        """Ask the owner whether the epoch still stands, now that the last byte is here; install only on yes (I1, I9).

        What was written here is at an epoch of our own: it is installed, and then the producer is told.

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
        reserved = offered.filled.reserved
        if reserved.mode is TriggerMode.PULL:
            confirmed = await self._confirm(order, producer)
            for part in range(reserved.num_parts):  # all were read under the one grant that was confirmed
                self._owner.install(reserved.handoff, Epoch(confirmed.epoch), part)
        else:
            self._owner.install_written(reserved.handoff)
            self._in_background(self._confirm(order, producer))  # lost: the producer's lease runs out
        self._keep(offered.filled)
        return Installed(verified=verified)

    def _keep(self, filled: Filled) -> None:
        """What is installed was verified: its whole blocks outlive the hand-off."""
        reserved = filled.reserved
        self._reuse.keep(
            reserved.handoff,
            reserved.placed.request,
            reserved.names,
            reserved.own_blocks,
            made_in_ms=filled.reply.prefill_ms,
        )

    async def _confirm(self, order: ConfirmOrder, producer: Producer) -> ConfirmReply:
        for _ in range(CONFIRM_TRIES - 1):
            try:
                return await producer.confirm(order, self._deadlines.confirm)
            except DeadlineExceeded:
                continue
        return await producer.confirm(order, self._deadlines.confirm)

    def release(self, installed: Installed) -> Released:
        """Over: the source was freed by the confirmation, the staging by the install."""
        return Released(filled=installed.verified.arrived.planned.offered.filled, installed=installed)

    def finish(self, reserved: Reserved) -> None:
        """Decode has ended and touches the blocks no more: they are free. Whatever ended it, this comes once."""
        self._owner.finish(reserved.handoff)

    async def release_unused(self, filled: Filled) -> Released:
        """The first token ended the answer: no KV crosses, and the reservation is given back."""
        handoff = filled.reserved.handoff
        self._owner.abort(handoff, "the answer ended with its first token")
        self._owner.drained(handoff)
        if not await through(self._exposures.let_go(handoff)):
            self._in_background(self._exposures.until_let_go(handoff))
        return Released(filled=filled, installed=None)

    async def producer_lost(self, worker: WorkerId, life: Incarnation, evidence: Evidence) -> None:
        """A life of a producer is proven over. What is under way with it ends by itself, and says so."""
        await self._exposures.producer_lost(worker, life, evidence)

    def giving_up(self, reserved: Reserved, producer: Producer) -> "_GivingUp":
        """Where the body of `async with` fails, give up both sides, and raise what it raised."""
        return _GivingUp(self, reserved, producer)

    async def give_up(self, reserved: Reserved, producer: Producer, reason: BaseException) -> None:
        """Give up both sides. Reads and conversions have ended by then: they promise it.

        A producer that may be writing is shut out, and where that proves nothing, what it may write to is kept away
        from everybody until something does (I2).
        """
        self._owner.abort(reserved.handoff, f"{type(reason).__name__}: {reason}")
        self._owner.drained(reserved.handoff)
        try:
            await through(self._exposures.let_go(reserved.handoff))
        finally:
            self._in_background(self._tell(producer, reserved))
            self._in_background(self._exposures.until_let_go(reserved.handoff))

    async def _tell(self, producer: Producer, reserved: Reserved) -> None:
        """Tell the producer, again and again until it has heard or its life is over.

        Where a pool serves many tenants the end of a lease frees nothing: it is our word that does, and what it never
        hears of would stay in quarantine for as long as we live (I8).
        """
        placed = reserved.placed
        order = AbortOrder(handoff=reserved.handoff, holder=self._worker, holder_incarnation=self._incarnation)
        pause = self._deadlines.confirm
        while True:
            self._peer_of(placed.producer, placed.producer_incarnation)  # raises PeerLost once it is no member
            try:
                return await producer.abort(order, self._deadlines.confirm)
            except Lost:
                await self._clock.sleep(pause)
                pause = min(pause * 2, TELL_PAUSE_MAX)

    def renewing(self, planned: Planned, producer: Producer) -> AbstractAsyncContextManager[None]:
        """Keep the lease while the body runs. A producer that writes has none to keep."""
        if planned.offered.filled.reserved.mode is not TriggerMode.PULL:
            return nullcontext()
        return self._pulls.renewing(planned.offered.state.ownership, producer)

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Do what nobody waits for; that a peer refuses or is lost is no news there."""

        async def work_quietly() -> None:
            with suppress(Rejected, Lost):
                await work

        task = asyncio.create_task(work_quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _GivingUp:
    def __init__(self, side: ConsumerSide, reserved: Reserved, producer: Producer) -> None:
        self._side = side
        self._reserved = reserved
        self._producer = producer

    async def __aenter__(self) -> None:
        return

    async def __aexit__(self, _: object, reason: BaseException | None, __: object) -> None:
        if reason is not None:
            await self._side.give_up(self._reserved, self._producer, reason)
