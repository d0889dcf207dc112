"""The producer's side: fill, offer, answer for it until a reader has confirmed, and free it then."""

from isthmus.core.errors import BadInput, Bug, ContextTooLong
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, WorkerId
from isthmus.core.units import Duration, blocks_for
from isthmus.core.waiting import through
from isthmus.handoff.orders import AbortOrder, ConfirmOrder, ConfirmReply, PrefillOrder, PrefillReply, RenewOrder
from isthmus.handoff.seams import KVWriter, Prefilled
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.states import SourceHandoff, SourcePhase
from isthmus.state.identity import TokenRange
from isthmus.state.manifest import encode_manifest
from isthmus.state.runtime_kv_state import GroupState, Ownership, RuntimeKVState
from isthmus.state.tokens import tokens_digest

__all__ = ["ProducerSide"]


class ProducerSide:
    """Prefills for consumers. Every method may be called by a peer: each checks that the caller is the holder."""

    def __init__(
        self, engine: KVWriter, owner: SourceOwner, *, worker: WorkerId, incarnation: Incarnation, wait: Duration
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._worker = worker
        self._incarnation = incarnation
        self._wait = wait

    async def prefill(self, order: PrefillOrder) -> PrefillReply:
        """Reserve, fill, publish.

        Raises:
            ContextTooLong, CapacityExceeded: it does not fit, or not now.
            Lost: the engine failed; nothing is held afterwards.
        """
        tokens = len(order.request.token_ids)
        if tokens > self._engine.context_length:
            raise ContextTooLong(
                f"token_ids: {tokens} tokens, this model's context is {self._engine.context_length}", field="token_ids"
            )
        handoff = HandoffId(order.handoff)
        if len(self._engine.representation.groups) != 1:
            raise BadInput("representation.groups: this version prefills one layer group", field="representation")
        block_size = self._engine.representation.groups[0].block_size
        source = await self._owner.reserve(
            handoff,
            holder=WorkerId(order.holder),
            holder_incarnation=Incarnation(order.holder_incarnation),
            tenant=order.request.tenant_id(),
            blocks=blocks_for(tokens, block_size),
            deadline=self._wait,
        )
        try:
            filled = await self._engine.prefill(handoff, order.request, source.blocks)
            self._owner.complete(handoff)
            if filled.finish_reason is not None:
                self._owner.abort(handoff, "the answer ended with its first token: nobody needs the KV")
                return self._reply(filled, b"")
            return self._reply(filled, self._publish(order, source, filled))
        except BaseException as reason:
            self._owner.abort(handoff, f"{type(reason).__name__}: {reason}")
            await through(self._stop(handoff))
            raise

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
        left = self._owner.abandon(handoff, WorkerId(order.holder), Incarnation(order.holder_incarnation))
        if left is not None and left.phase is SourcePhase.DRAINING:
            await through(self._stop(handoff))

    async def peer_lost(
        self, worker: WorkerId, incarnation: Incarnation, evidence: Evidence = Evidence.FENCED_AND_CLOSED
    ) -> None:
        """This life of this worker is over, as proven by `evidence`; what that frees is the drain table's to say."""
        for handoff in self._owner.peer_lost(worker, incarnation, evidence):
            await through(self._stop(handoff))

    async def _stop(self, handoff: HandoffId) -> None:
        await self._engine.stop_prefill(handoff)
        self._owner.drained(handoff)

    def _publish(self, order: PrefillOrder, source: SourceHandoff, filled: Prefilled) -> bytes:
        published = self._owner.publish(source.handoff)
        if published.grant is None:
            raise Bug(f"hand-off {source.handoff}: published without a grant", field="grant")
        return encode_manifest(
            RuntimeKVState(
                identity=self._engine.identity,
                token_range=TokenRange(start=0, stop=len(order.request.token_ids)),
                tokens_digest=tokens_digest(order.request.token_ids),
                representation=self._engine.representation,
                groups=tuple(
                    GroupState(block_ids=published.blocks, logical_digest=digest) for digest in filled.digests
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

    def _reply(self, filled: Prefilled, manifest: bytes) -> PrefillReply:
        return PrefillReply(
            token=filled.token,
            finish_reason=filled.finish_reason,
            manifest=manifest,
            prefill_ms=filled.prefill_ms,
        )
