"""The producer's side: fill, offer or write, answer for it until the consumer has confirmed, and free it then."""

import asyncio

from isthmus.core.errors import BadInput, Bug, ContextTooLong, Unsupported
from isthmus.core.ids import Digest, Epoch, GrantId, HandoffId, Incarnation, WorkerId
from isthmus.core.units import Duration, blocks_for
from isthmus.core.waiting import through
from isthmus.handoff.orders import (
    AbortOrder,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)
from isthmus.handoff.push import Holder, Pusher
from isthmus.handoff.reuse import Reuse, reusable
from isthmus.handoff.seams import KVWriter, Prefilled, PrefixWriter
from isthmus.ownership.prefix_cache import Pinned, PrefixGone
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.states import SourceHandoff, SourcePhase, TriggerMode
from isthmus.state.identity import TokenRange
from isthmus.state.manifest import encode_manifest
from isthmus.state.runtime_kv_state import GroupState, Ownership, RuntimeKVState
from isthmus.state.tokens import tokens_digest

__all__ = ["ProducerSide"]


class ProducerSide:
    """Prefills for consumers. Every method may be called by a peer: each checks that the caller is the holder."""

    def __init__(
        self,
        engine: KVWriter,
        owner: SourceOwner,
        *,
        worker: WorkerId,
        incarnation: Incarnation,
        wait: Duration,
        resuming: PrefixWriter | None = None,
        reuse: Reuse | None = None,
        pusher: Pusher | None = None,
    ) -> None:
        """`resuming` is the engine again, where it can begin behind a prefix: then suffixes can be offered.

        Without a `pusher` consumers can read, and nothing is written to them.
        """
        self._pusher = pusher
        self._engine = engine
        self._resuming = resuming if reusable(engine.representation) else None
        self._reuse = reuse or Reuse(engine.representation)
        self._owner = owner
        self._worker = worker
        self._incarnation = incarnation
        self._wait = wait

    async def prefill(self, order: PrefillOrder) -> PrefillReply:
        """Reserve, fill what no retained block holds, publish what the holder has not.

        Raises:
            ContextTooLong, CapacityExceeded: it does not fit, or not now.
            BadInput: the holder says that it has all of it, or a part where only all of it can be offered.
            Lost: the engine failed; nothing is held afterwards.
        """
        tokens = order.request.num_tokens
        if tokens > self._engine.context_length:
            raise ContextTooLong(
                f"token_ids: {tokens} tokens, this model's context is {self._engine.context_length}", field="token_ids"
            )
        handoff = HandoffId(order.handoff)
        if len(self._engine.representation.groups) != 1:
            raise BadInput("representation.groups: this version prefills one layer group", field="representation")
        have_most = tokens - 1 if self._resuming is not None else 0
        if order.have_tokens > have_most:
            raise BadInput(f"have_tokens: got {order.have_tokens}, wanted at most {have_most}", field="have_tokens")
        names: tuple[bytes, ...] = ()
        if self._reuse.on:
            names = self._reuse.names(order.request, self._engine.identity, self._engine.representation)
            await self._reuse.bring_back(order.request, names)
        try:
            source = await self._reserve(handoff, order, self._reuse.here(order.request, names))
        except PrefixGone:
            source = await self._reserve(handoff, order, ())
        prefix = self._reuse.begun(handoff)
        try:
            if order.mode is TriggerMode.SEND:
                await self._begin_push(order, source, prefix, fill=self._wait)
                self._pushing(order.mode).watch(handoff, self._reuse.block_size, order.have_tokens, len(prefix.blocks))
            filled = await self._fill(handoff, order, prefix, source)
            self._owner.complete(handoff)
            digests = filled.token_digests[0] if filled.token_digests else ()
            self._reuse.keep(
                handoff, order.request, names, source.blocks, token_digests=digests, made_in_ms=filled.prefill_ms
            )
            if filled.finish_reason is not None:
                left = self._owner.abort(handoff, "the answer ended with its first token: nobody needs the KV")
                if left.phase is SourcePhase.DRAINING:
                    await through(self._stop(handoff))
                return self._reply(filled, prefix, b"")
            published = await self._publish(order, source, prefix)
            return self._reply(filled, prefix, self._offer(order, published, prefix, filled))
        except BaseException as reason:
            self._owner.abort(handoff, f"{type(reason).__name__}: {reason}")
            await through(self._stop(handoff))
            raise
        finally:
            self._forget_registration(order)

    async def _reserve(self, handoff: HandoffId, order: PrefillOrder, prefix: tuple[bytes, ...]) -> SourceHandoff:
        """Blocks for what `prefix` does not hold. Raises PrefixGone where some of it made room for others meanwhile."""
        tokens, block_size = order.request.num_tokens, self._engine.representation.groups[0].block_size
        return await self._owner.reserve(
            handoff,
            holder=WorkerId(order.holder),
            holder_incarnation=Incarnation(order.holder_incarnation),
            tenant=order.request.tenant,
            blocks=blocks_for(tokens, block_size) - len(prefix),
            deadline=self._wait,
            prefix=prefix,
            mode=order.mode,
        )

    async def _fill(self, handoff: HandoffId, order: PrefillOrder, prefix: Pinned, source: SourceHandoff) -> Prefilled:
        request = order.request
        if not prefix.blocks:
            return await self._engine.prefill(handoff, request, source.blocks)
        if self._resuming is None:
            raise Bug(f"hand-off {handoff} uses a prefix that its engine cannot begin behind", field="resuming")
        computed = len(prefix.blocks) * self._reuse.block_size
        blocks = (*prefix.blocks, *source.blocks)
        return await self._resuming.prefill_from(handoff, request, blocks, computed_tokens=computed)

    async def confirm(self, order: ConfirmOrder) -> ConfirmReply:
        """The commit point: still the owner at this epoch? Yes also frees the blocks. Idempotent.

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised: no; install nothing.
        """
        epoch = self._owner.confirm(
            GrantId(order.grant),
            Epoch(order.epoch),
            holder=WorkerId(order.holder),
            holder_incarnation=Incarnation(order.holder_incarnation),
        )
        return ConfirmReply(epoch=epoch)

    async def renew(self, order: RenewOrder) -> None:
        """Begin the lease anew. Raises as `confirm`."""
        self._owner.renew(
            GrantId(order.grant),
            Epoch(order.epoch),
            holder=WorkerId(order.holder),
            holder_incarnation=Incarnation(order.holder_incarnation),
        )

    async def abort(self, order: AbortOrder) -> None:
        """The holder wants it no more and reads nothing of it from now on. May overtake the order to prefill."""
        handoff = HandoffId(order.handoff)
        self._forget_registration(order)
        left = self._owner.abandon(handoff, WorkerId(order.holder), Incarnation(order.holder_incarnation))
        if left is not None and left.phase is SourcePhase.DRAINING:
            await through(self._stop(handoff))

    async def peer_lost(
        self, worker: WorkerId, incarnation: Incarnation, evidence: Evidence = Evidence.FENCED_AND_CLOSED
    ) -> None:
        """This life of this worker is over, as proven by `evidence`; what that frees is the drain table's to say."""
        if self._pusher is not None:
            self._pusher.forget_peer(worker, incarnation)
        stopping = self._owner.peer_lost(worker, incarnation, evidence)
        await asyncio.gather(*(through(self._stop(handoff)) for handoff in stopping))  # at once, not one after another

    async def _stop(self, handoff: HandoffId) -> None:
        """Return once neither our engine nor our writing touches a hand-off that was given up."""
        await self._engine.stop_prefill(handoff)
        if self._pusher is not None:
            await self._pusher.stop(handoff)
        self._owner.drained(handoff)

    # push and send

    async def register(self, order: RegisterOrder) -> None:
        """The holder has memory ready to be written. Raises PeerLost, Unsupported: there is no way there."""
        self._pushing(TriggerMode.PUSH).register(_holder(order), order.registration)

    async def written(self, order: WrittenOrder) -> None:
        """Return when all is in the holder's memory. Raises NotAuthorised; TransferFailed and the like: it is not."""
        await self._pushing(TriggerMode.PUSH).written(_holder(order))

    async def _begin_push(
        self, order: PrefillOrder, source: SourceHandoff, prefix: Pinned, fill: Duration
    ) -> SourceHandoff:
        """Write what the holder wants into what it registers, as far as is filled."""
        pusher = self._pushing(order.mode)
        registration = order.registration
        if registration is None and order.mode is TriggerMode.SEND:
            raise BadInput("registration: missing; under send it comes with the order", field="registration")
        if registration is None:
            registration = await pusher.registration(_holder(order), self._wait)
        blocks = (*prefix.blocks, *source.blocks)[order.have_tokens // self._reuse.block_size :]
        return pusher.begin(source, registration, self._engine.representation.regions, blocks, fill)

    def _pushing(self, mode: TriggerMode) -> Pusher:
        if self._pusher is None:
            raise Unsupported(f"mode: this worker is read and does not write, got {mode}", field="mode")
        return self._pusher

    def _forget_registration(self, order: PrefillOrder | AbortOrder) -> None:
        if self._pusher is not None:
            self._pusher.forget(_holder(order))

    async def _publish(self, order: PrefillOrder, source: SourceHandoff, prefix: Pinned) -> SourceHandoff:
        """Let the holder have what is filled: to be read, or to be written from now on, or what is left of it."""
        if order.mode is TriggerMode.PULL:
            return self._owner.publish(source.handoff)
        if order.mode is TriggerMode.PUSH:
            await self._begin_push(order, source, prefix, fill=Duration(0))
        self._pushing(order.mode).whole(source.handoff)
        return self._owner.state(source.handoff)

    def _offer(self, order: PrefillOrder, published: SourceHandoff, prefix: Pinned, filled: Prefilled) -> bytes:
        """Offer the tokens from `have_tokens` on, whether they were computed now or lie in retained blocks."""
        start, digests = order.have_tokens, filled.digests
        if start or prefix.blocks:
            # A digest is a sum over tokens, and each token's was made when it was filled: what has lain in a retained
            # block since then is held against that (I1).
            (computed,) = filled.token_digests
            digests = (Digest(sum((*prefix.digests, *computed)[start:]) % (1 << 64)),)
        if published.grant is None:
            raise Bug(f"hand-off {published.handoff}: published without a grant", field="grant")
        blocks = (*prefix.blocks, *published.blocks)
        return encode_manifest(
            RuntimeKVState(
                identity=self._engine.identity,
                token_range=TokenRange(start=start, stop=order.request.num_tokens),
                tokens_digest=tokens_digest(order.request.tokens),
                representation=self._engine.representation,
                groups=tuple(
                    GroupState(block_ids=blocks[start // self._reuse.block_size :], logical_digest=digest)
                    for digest in digests
                ),
                residency=self._engine.residency,
                ownership=Ownership(
                    owner=self._worker,
                    incarnation=self._incarnation,
                    handoff=published.handoff,
                    grant=published.grant,
                    epoch=published.epoch,
                    tenant=published.tenant,
                    lease_ms=max(1, round(self._owner.lease_left(published.handoff).ms)),
                ),
            )
        )

    def _reply(self, filled: Prefilled, prefix: Pinned, manifest: bytes) -> PrefillReply:
        return PrefillReply(
            token=filled.token,
            finish_reason=filled.finish_reason,
            manifest=manifest,
            prefill_ms=filled.prefill_ms,
            reused_tokens=len(prefix.blocks) * self._reuse.block_size,
        )


def _holder(order: PrefillOrder | RegisterOrder | WrittenOrder | AbortOrder) -> Holder:
    return HandoffId(order.handoff), WorkerId(order.holder), Incarnation(order.holder_incarnation)
