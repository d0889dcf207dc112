"""What must always hold, looked at from outside: owners, sides and engines of the simulation tell of each step.

Nothing here decides anything, and nothing in production code knows of it. What it finds ends the run:

    I1 installed bytes are the reference's, confirmed by the owner after the last byte; each token is the right one
    I2 no write reaches a block of another hand-off      I3 ledgers recounted at each commit and at the end
    I6 no renewal shortens a lease                       I7 no install, and no copy, across tenants
    I9 no decode before commit                           I10 staging in use is within what the ledger counts
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.handoff.consumer import ConsumerSide
from isthmus.handoff.seams import Producer
from isthmus.handoff.stages import Installed, Placed, Reserved, Verified
from isthmus.lab.seeds.engine import PaperEngine
from isthmus.lab.seeds.forms import FORMS, verdict
from isthmus.lab.seeds.loop import VirtualLoop
from isthmus.lab.seeds.paper import history, kv
from isthmus.lab.seeds.transcript import Transcript
from isthmus.ownership import DestinationOwner, DestinationPhase, Ledger, LogicalOutcome, SourceOwner
from isthmus.ownership.protocol.events import DestinationEvent, SourceEvent
from isthmus.ownership.protocol.states import SourceHandoff, TriggerMode
from isthmus.ownership.side import Side
from isthmus.portability.verdict import Verdict
from isthmus.state.identity import Identity
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.transport.base import BlockRead

__all__ = ["Events", "Watch", "WatchedConsumer", "WatchedSource"]


@dataclass(slots=True, kw_only=True)
class _Grant:
    """What is known of a grant from outside."""

    owner: SourceOwner
    handoff: HandoffId
    tenant: TenantId
    last_byte: int = -1
    confirmed: int = -1


class Watch:
    """One world's."""

    def __init__(self, loop: VirtualLoop, transcript: Transcript) -> None:
        self._loop = loop
        self._transcript = transcript
        self._grants: dict[GrantId, _Grant] = {}
        self._tenants: dict[HandoffId, TenantId] = {}
        self._staged: dict[Ledger, int] = {}
        self._withdrawn: set[GrantId] = set()
        self.installs = 0
        self.handoffs = 0

    # told by the producer

    def reserved(self, handoff: HandoffId, tenant: TenantId) -> None:
        self.handoffs += 1
        self._tenants[handoff] = tenant

    def published(self, owner: SourceOwner, state: SourceHandoff) -> None:
        if state.grant is not None:
            self._grants[state.grant] = _Grant(owner=owner, handoff=state.handoff, tenant=state.tenant)

    def confirmed(self, grant: GrantId) -> None:
        known = self._grants.get(grant)
        if known is not None:
            known.confirmed = self._loop.callbacks

    def lease_ends(self, grant: GrantId) -> Instant | None:
        known = self._grants.get(grant)
        return None if known is None else known.owner.state(known.handoff).lease_ends

    def renewed(self, grant: GrantId, before: Instant | None) -> None:
        after = self.lease_ends(grant)
        if before is not None and (after is None or after < before):
            self._transcript.violated("I6", f"a renewal moved a lease's end from {before} to {after}")

    # told by engines and transports

    def touches(self, ledger: Ledger) -> Callable[[HandoffId, Sequence[BlockId]], None]:
        """For an engine to call before it writes blocks."""

        def look(handoff: HandoffId, blocks: Sequence[BlockId]) -> None:
            for block in blocks:
                if ledger.owner(block) != handoff:
                    self._transcript.violated(
                        "I2", f"block {block} is written for {handoff} and belongs to {ledger.owner(block)}"
                    )

        return look

    def copied(self, ledger: Ledger) -> Callable[[GrantId, Sequence[BlockId]], None]:
        """For a transport to call when it copies blocks out."""

        def look(grant: GrantId, blocks: Sequence[BlockId]) -> None:
            known = self._grants.get(grant)
            for block in blocks:
                owner = ledger.owner(block)
                if known is None or owner is None or owner not in self._tenants:
                    continue
                if self._tenants[owner] != known.tenant:
                    self._transcript.violated(
                        "I7", f"block {block} of {self._tenants[owner]} is read by {known.tenant}"
                    )

        return look

    def read_began(self, ledger: Ledger) -> Callable[[int], None]:
        def look(size: int) -> None:
            used = self._staged[ledger] = self._staged.get(ledger, 0) + size
            if used > ledger.held().staging_bytes:
                self._transcript.violated("I10", f"{used} staging bytes in use, {ledger.held().staging_bytes} counted")

        return look

    def withdrawn(self, ledger: Ledger) -> Callable[[GrantId, int], None]:
        """For an importer to call when the end of a producer's access is proven."""

        def look(grant: GrantId, size: int) -> None:
            self._staged[ledger] -= size
            self._withdrawn.add(grant)

        return look

    def late_write(self, grant: GrantId) -> None:
        """For a transport to call when it writes into an image that is said to be closed."""
        self._transcript.violated("I2", "an image is written after its writer was proven to have no access")

    def read_ended(self, ledger: Ledger) -> Callable[[BlockRead, int], None]:
        def look(request: BlockRead, size: int) -> None:
            self._staged[ledger] -= size
            known = self._grants.get(request.grant)
            if known is not None:
                known.last_byte = self._loop.callbacks

        return look

    # told by the consumer

    def installed(self, engine: PaperEngine, ledger: Ledger, owner: DestinationOwner, installed: Installed) -> None:
        """A commit, at the moment of it."""
        offered = installed.verified.arrived.planned.offered
        reserved = offered.filled.reserved
        self.installs += 1
        if owner.state(reserved.handoff).mode is TriggerMode.PULL:
            self._check_pull(offered.state.ownership.grant, owner, reserved.handoff)
        else:
            self._check_push(owner, reserved.handoff)
        token_ids = reserved.placed.request.token_ids
        found = engine.read(reserved.blocks, len(token_ids))
        if not np.array_equal(found, kv(history(token_ids))):
            self._transcript.violated("I1", f"hand-off {reserved.handoff}: what is installed is not the reference's KV")
        ledger.check_in_full()

    def _check_push(self, owner: DestinationOwner, handoff: HandoffId) -> None:
        state = owner.state(handoff)
        if any(part.grant not in self._withdrawn for part in state.parts):
            self._transcript.violated("I1", f"hand-off {handoff} is installed while its producer may still write")
        if state.tenant != self._tenants.get(handoff):
            self._transcript.violated("I7", f"hand-off {handoff} of {state.tenant} is installed from another's")

    def _check_pull(self, grant: GrantId, owner: DestinationOwner, handoff: HandoffId) -> None:
        known, state = self._grants.get(grant), owner.state(handoff)
        if known is None:
            self._transcript.violated("I1", f"hand-off {handoff} is installed from a grant that nobody made")
            return
        source = known.owner.state(known.handoff)
        if source.outcome is not LogicalOutcome.SUCCEEDED:
            self._transcript.violated(
                "I1", f"hand-off {handoff} is installed; its owner says {source.phase} ({source.outcome})"
            )
        if not known.last_byte < known.confirmed:
            self._transcript.violated("I1", f"hand-off {handoff}: the owner was not asked after the last byte")
        if state.tenant != known.tenant:
            self._transcript.violated("I7", f"hand-off {handoff} of {state.tenant} is installed from {known.tenant}")

    def decoding(self, owner: DestinationOwner, handoff: HandoffId) -> None:
        """Decode is about to begin."""
        state = owner.state(handoff)
        if state.phase is not DestinationPhase.INSTALLED:
            self._transcript.violated("I9", f"hand-off {handoff}: decode begins in {state.phase}")


class Events:
    """An owner's journal, as lines of the transcript."""

    def __init__(self, transcript: Transcript, worker: WorkerId) -> None:
        self._transcript = transcript
        self._worker = worker

    def record(self, *, side: Side, at: Instant, handoff: HandoffId, event: SourceEvent | DestinationEvent) -> None:
        self._transcript.note(self._worker, type(event).__name__, handoff[:8])


class WatchedSource(SourceOwner):
    """The producer's owner, as it is; it tells the watch what it has done."""

    watch: Watch

    def publish(self, handoff: HandoffId, lease: Duration | None = None) -> SourceHandoff:
        state = super().publish(handoff, lease)
        self.watch.published(self, state)
        return state

    def confirm(self, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation) -> Epoch:
        confirmed = super().confirm(grant, epoch, holder, holder_incarnation)
        self.watch.confirmed(grant)
        return confirmed

    def renew(self, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation) -> Duration:
        before = self.watch.lease_ends(grant)
        lasts = super().renew(grant, epoch, holder, holder_incarnation)
        self.watch.renewed(grant, before)
        return lasts


_FORM_OF: Mapping[KVRepresentation, int] = {form.representation: index for index, form in enumerate(FORMS)}


class WatchedConsumer(ConsumerSide):
    """The consumer's side, as it is; verdicts are remembered over worlds, and the watch hears of each commit."""

    watch: Watch
    engine: PaperEngine
    ledger: Ledger
    owner: DestinationOwner
    begun: Callable[[Reserved], None]

    def judge(self, identity: Identity, representation: KVRepresentation) -> Verdict:
        return verdict(FORMS[_FORM_OF[representation]], self.engine.form)

    async def reserve(self, placed: Placed) -> Reserved:
        reserved = await super().reserve(placed)
        self.begun(reserved)
        return reserved

    async def commit(self, verified: Verified, producer: Producer) -> Installed:
        installed = await super().commit(verified, producer)
        self.watch.installed(self.engine, self.ledger, self.owner, installed)
        return installed
