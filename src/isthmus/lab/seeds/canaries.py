"""The simulation with one check taken out: each of these must turn it red within a stated number of seeds.

A check is taken out by putting a class of ours in the place of the real one, never by a switch in production code.
Where two checks guard against the same thing, both are taken out: what one alone still catches is no canary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from isthmus.core.errors import Rejected
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
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
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.seams import Producer
from isthmus.handoff.stages import Arrived, Installed, Planned, Reserved, Verified
from isthmus.lab.seeds.engine import PaperEngine
from isthmus.lab.seeds.forms import Rows
from isthmus.lab.seeds.mix import Fault, Mix
from isthmus.lab.seeds.watch import WatchedConsumer, WatchedSource
from isthmus.lab.seeds.worker import Kinds
from isthmus.lab.seeds.world import run_seed
from isthmus.lab.seeds.writes import Image, OneSidedImporter
from isthmus.ownership import Evidence, Ledger, SourcePhase, TransportKind
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["CANARIES", "Canary", "Caught", "run_canary"]


class _SaysYes:
    """A producer whose word at the commit is taken for granted."""

    def __init__(self, inner: Producer) -> None:
        self._inner = inner

    async def prefill(self, order: PrefillOrder, deadline: Duration) -> PrefillReply:
        return await self._inner.prefill(order, deadline)

    async def register(self, order: RegisterOrder, deadline: Duration) -> None:
        await self._inner.register(order, deadline)

    async def written(self, order: WrittenOrder, deadline: Duration) -> None:
        await self._inner.written(order, deadline)

    async def confirm(self, order: ConfirmOrder, deadline: Duration) -> ConfirmReply:
        return ConfirmReply(epoch=order.epoch)

    async def renew(self, order: RenewOrder, deadline: Duration) -> None:
        await self._inner.renew(order, deadline)

    async def abort(self, order: AbortOrder, deadline: Duration) -> None:
        await self._inner.abort(order, deadline)


class _InstallsUnasked(WatchedConsumer):
    async def commit(self, verified: Verified, producer: Producer) -> Installed:
        return await super().commit(verified, _SaysYes(producer))


class _AsksBeforeCopy(_InstallsUnasked):
    async def transfer(self, planned: Planned, producer: Producer) -> Arrived:
        ownership = planned.offered.state.ownership
        worker, incarnation = self.owner.worker, self.owner.incarnation
        order = ConfirmOrder(
            grant=ownership.grant, epoch=ownership.epoch, holder=worker, holder_incarnation=incarnation
        )
        await producer.confirm(order, self._deadlines.confirm)
        return await super().transfer(planned, producer)


class _DecodesEarly(WatchedConsumer):
    async def commit(self, verified: Verified, producer: Producer) -> Installed:
        return Installed(verified=verified)


class _NeverFinishes(WatchedConsumer):
    def finish(self, reserved: Reserved) -> None:
        pass


class _ConfirmsAnything(WatchedSource):
    def confirm(self, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation) -> Epoch:
        try:
            return super().confirm(grant, epoch, holder, holder_incarnation)
        except Rejected:
            return epoch


class _FreesInDoubt(WatchedSource):
    def reap(self) -> int:
        reaped = super().reap()
        for row in self.snapshot():
            if row["phase"] == SourcePhase.IN_DOUBT.value:
                self.drained(HandoffId(str(row["handoff"])), Evidence.ACKNOWLEDGED)
        return reaped


class _HearsNoAbort(ProducerSide):
    async def abort(self, order: AbortOrder) -> None:
        pass


class _BelievesBytes(PaperEngine):
    def check_arrived(self, arrived: Rows, offered: int) -> None:
        pass


class _StopsWithoutWaiting(PaperEngine):
    async def stop_prefill(self, handoff: HandoffId) -> None:
        pass

    async def stop_decode(self, handoff: HandoffId) -> None:
        pass


class _SealsAtOnce(OneSidedImporter):
    def mapped(self, image: Image) -> bool:
        return False


class _CountsNoStaging(Ledger):
    def try_reserve(
        self, handoff: HandoffId, *, tenant: TenantId, blocks: int, staging_bytes: int
    ) -> Assignment | None:
        return super().try_reserve(handoff, tenant=tenant, blocks=blocks, staging_bytes=0)

    def release_staging(self, epoch: Epoch) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """`rule` is what its absence must break, in one of `within` seeds. `only` draws worlds in which that can be."""

    name: str
    without: str
    rule: str
    kinds: Kinds
    within: int = 100
    only: Callable[[Mix], Mix] = lambda mix: mix


def _faults(mode: TriggerMode = TriggerMode.PULL, **rates: float) -> Callable[[Mix], Mix]:
    """Worlds with these faults and no others."""
    return lambda mix: replace(mix, mode=mode, rates={Fault(name): rate for name, rate in rates.items()})


def _slow_strangers(mode: TriggerMode) -> Callable[[Mix], Mix]:
    """Worlds of two tenants and small pools, in which whoever copies by itself is stopped in the midst of it."""

    def change(mix: Mix) -> Mix:
        prompts = tuple(replace(prompt, tenant=f"tenant-{index % 2}") for index, prompt in enumerate(mix.prompts))
        rates = {Fault.PAUSE: 3.0, Fault.DROP_REQUEST: 0.1, Fault.DELAY: 0.1}
        return replace(
            mix,
            mode=mode,
            transport=TransportKind.SHM,
            sole_tenant=False,
            chunk_bytes=64,
            producers=mix.producers[:1],
            prompts=prompts,
            rates=rates,
        )

    return change


CANARIES: Final = (
    Canary(
        name="reassigned-block",
        without="the owner's check of grant and epoch at the confirmation, and the digest of what arrived",
        rule="I1",
        kinds=Kinds(source=_ConfirmsAnything, engine=_BelievesBytes),
        within=200,
    ),
    Canary(
        name="flipped-byte",
        without="the digest of what arrived",
        rule="I1",
        kinds=Kinds(engine=_BelievesBytes),
        only=_faults(flip_bit=0.5),
    ),
    Canary(
        name="torn-copy",
        without="the digest of what arrived",
        rule="I1",
        kinds=Kinds(engine=_BelievesBytes),
        only=_faults(tear=0.5),
    ),
    Canary(
        name="ask-before-copy",
        without="the confirmation after the last byte: it is asked for before the first",
        rule="I1",
        kinds=Kinds(consumer=_AsksBeforeCopy),
    ),
    Canary(name="install-unasked", without="the confirmation", rule="I1", kinds=Kinds(consumer=_InstallsUnasked)),
    Canary(
        name="stale-epoch",
        without="the owner's check of grant and epoch at the confirmation",
        rule="I1",
        kinds=Kinds(source=_ConfirmsAnything),
        within=500,
    ),
    Canary(
        name="own-late-write",
        without="waiting for our own engine before its blocks are freed",
        rule="I2",
        kinds=Kinds(engine=_StopsWithoutWaiting),
        within=500,
    ),
    Canary(
        name="quarantine",
        without="the quarantine of what a reader of another tenant may still read",
        rule="I7",
        kinds=Kinds(source=_FreesInDoubt),
        within=500,
        only=_slow_strangers(TriggerMode.PULL),
    ),
    Canary(
        name="late-write",
        without="waiting for a writer to let go of an image before that is said to be closed",
        rule="I2",
        kinds=Kinds(importer=_SealsAtOnce),
        within=500,
        only=_slow_strangers(TriggerMode.PUSH),
    ),
    Canary(
        name="flipped-byte-pushed",
        without="the digest of what was written",
        rule="I1",
        kinds=Kinds(engine=_BelievesBytes),
        only=_faults(TriggerMode.SEND, flip_bit=0.5),
    ),
    Canary(
        name="abandon",
        without="the consumer's word that it has given up",
        rule="I8",
        kinds=Kinds(producer=_HearsNoAbort),
        within=200,
    ),
    Canary(name="release", without="the release after decode", rule="I8", kinds=Kinds(consumer=_NeverFinishes)),
    Canary(name="early-decode", without="the commit before decode", rule="I9", kinds=Kinds(consumer=_DecodesEarly)),
    Canary(name="staging", without="the count of staging bytes", rule="I10", kinds=Kinds(ledger=_CountsNoStaging)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What became of a canary: the first seed that went red by the rule it is about, or None."""

    canary: Canary
    seed: int | None
    seeds: int
    violation: str


def run_canary(canary: Canary) -> Caught:
    """Seeds from 0 on, until the rule is broken or there are no more to try."""
    for seed in range(canary.within):
        outcome = run_seed(seed, canary.kinds, canary.only)
        for violation in outcome.violations:
            if violation.startswith(f"{canary.rule}:"):
                return Caught(canary=canary, seed=seed, seeds=seed + 1, violation=violation)
    return Caught(canary=canary, seed=None, seeds=canary.within, violation="")
