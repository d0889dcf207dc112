"""Several parts of one hand-off: prepared one by one, installed together, released together, each in its own stage."""

import pytest
from msgspec.structs import replace

from isthmus.core.clock import Instant, after
from isthmus.core.errors import Bug
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import execute
from isthmus.ownership.protocol.destination import step
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import (
    BeginUse,
    CloseGrant,
    Effect,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    OpenGrant,
    QuarantineBlocks,
    ReleaseStaging,
    ReplyRefused,
    StopRead,
)
from isthmus.ownership.protocol.events import (
    Abort,
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Drained,
    Expire,
    Expose,
    Finish,
    Install,
    PeerLost,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    PartStage,
    TriggerMode,
)

PRODUCER, LIFE, TENANT = WorkerId("prefill-0"), Incarnation("b" * 32), TenantId("t")
GRANTS, EPOCHS = (GrantId("c" * 32), GrantId("d" * 32)), (Epoch(41), Epoch(42))
LEASE, START = Duration.of_seconds(2), Instant(1_000)
LATE = after(START, LEASE)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)
OWN_ENDED = Drained(evidence=Evidence.OWN_WORK_ENDED)


class Case:
    """One consumer's hand-off of two parts, with its effects carried out on a real ledger of four blocks."""

    def __init__(self, mode: TriggerMode, transport: TransportKind = TransportKind.TCP) -> None:
        self.ledger = Ledger(num_blocks=4, block_bytes=8, staging_bytes=9)
        self.seen: list[Effect] = []
        handoff = HandoffId("a" * 32)
        assignment = self.ledger.try_reserve(handoff, tenant=TENANT, blocks=2, staging_bytes=9)
        assert assignment is not None
        self.epoch = assignment.epoch
        reserve = ReserveDestination(
            handoff=handoff,
            producer=PRODUCER,
            producer_incarnation=LIFE,
            tenant=TENANT,
            transport=transport,
            blocks=assignment.blocks,
            staging_bytes=9,
            epoch=assignment.epoch,
            mode=mode,
            num_parts=2,
        )
        self.state, _ = step(None, reserve)

    def after(self, *events: DestinationEvent) -> DestinationHandoff:
        for event in events:
            self.state, effects = step(self.state, event)
            self.seen += effects
            for effect in effects:
                execute(self.ledger, effect)
            self.ledger.check_in_full()
        return self.state

    def count(self, *kinds: type) -> int:
        return sum(isinstance(effect, kinds) for effect in self.seen)

    def ended_cleanly(self) -> bool:
        """All is free again, and each thing that was begun has ended once."""
        held = self.ledger.held()
        nothing = held.blocks == held.staging_bytes == held.grants == held.active == 0
        pairs = self.count(MarkFilling, BeginUse) == self.count(EndUse) and self.count(OpenGrant) == self.count(
            CloseGrant
        )
        return self.state.ended and nothing and pairs and self.count(FreeBlocks) == self.count(ReleaseStaging) == 1


def pulling() -> Case:
    return Case(TriggerMode.PULL)


def pushed(transport: TransportKind = TransportKind.TCP) -> Case:
    case = Case(TriggerMode.PUSH, transport)
    case.after(Expose(now=START, grants=GRANTS, lease=LEASE))
    return case


def submit(part: int) -> Submit:
    return Submit(tenant=TENANT, grant=GRANTS[part], epoch=EPOCHS[part], part=part)


def write(part: int) -> WriteSeen:
    return WriteSeen(now=START, grant=GRANTS[part], epoch=Epoch(1), writer=PRODUCER, lease=LEASE, part=part)


def written(part: int, evidence: Evidence = Evidence.OWN_TRANSFER_ENDED) -> Written:
    return Written(
        now=START,
        grant=GRANTS[part],
        epoch=Epoch(1),
        writer=PRODUCER,
        writer_incarnation=LIFE,
        tenant=TENANT,
        evidence=evidence,
        part=part,
    )


def yes(part: int) -> Confirmed:
    return Confirmed(epoch=EPOCHS[part], part=part)


def verified(part: int) -> tuple[DestinationEvent, ...]:
    """Of one part, from arrived or written bytes on."""
    return ConvertDone(part=part), VerifyOk(part=part)


def read(part: int) -> tuple[DestinationEvent, ...]:
    return submit(part), Arrived(part=part), *verified(part)


def stages(case: Case) -> tuple[PartStage, ...]:
    return tuple(part.stage for part in case.state.parts)


# together


def test_pulled_parts_are_installed_with_the_last_confirmation_and_not_before() -> None:
    case = pulling()
    assert case.after(*read(0)).phase is DestinationPhase.RECEIVING  # the phase of the slowest part
    with pytest.raises(Bug):
        step(case.state, yes(0))  # not prepared: nobody is asked
    assert case.after(*read(1)).prepared
    assert case.after(yes(1)).phase is DestinationPhase.VERIFYING
    assert case.count(MarkResident) == 0
    assert case.after(yes(1)).phase is DestinationPhase.VERIFYING  # the same answer again is no second part's
    assert case.after(yes(0)).phase is DestinationPhase.INSTALLED
    assert case.after(yes(0), yes(1)).phase is DestinationPhase.INSTALLED
    assert case.count(MarkResident) == 1
    case.after(Finish())
    assert case.ended_cleanly()


def test_pushed_parts_are_installed_together_once_all_are_written_and_verified() -> None:
    case = pushed()
    case.after(written(1), *verified(1))
    assert case.state.phase is DestinationPhase.RECEIVING
    assert case.count(CloseGrant) == 0  # the other part may still be written
    with pytest.raises(Bug, match="before its bytes were verified"):
        step(case.state, Install())
    case.after(write(0), written(0))
    assert case.count(CloseGrant) == 1
    assert case.after(*verified(0), Install()).phase is DestinationPhase.INSTALLED
    case.after(Finish())
    assert case.ended_cleanly()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_part_that_is_verified_waits_for_its_sibling_at_every_stage(order: tuple[int, int]) -> None:
    case, (first, second) = pulling(), order
    case.after(*read(first))
    phases = [case.after(event).phase for event in read(second)]
    assert phases == [
        DestinationPhase.RECEIVING,
        DestinationPhase.CONVERTING,
        DestinationPhase.VERIFYING,
        DestinationPhase.VERIFYING,
    ]
    assert case.state.prepared


# one of them fails


def test_one_bad_part_ends_the_hand_off_and_waits_for_the_other_s_read() -> None:
    case = pulling()
    case.after(submit(1), submit(0), Arrived(part=0), ConvertDone(part=0), VerifyBad(part=0))
    assert (case.state.phase, case.state.outcome) == (DestinationPhase.ABORTING, LogicalOutcome.FAILED)
    assert case.count(StopRead) == 1
    assert case.count(FreeBlocks) == 0
    case.after(Arrived(part=1))
    assert case.ended_cleanly()


def test_one_bad_part_frees_at_once_where_nothing_touches_the_other() -> None:
    case = pulling()
    case.after(submit(0), Arrived(part=0), ConvertDone(part=0), VerifyBad(part=0))
    assert case.count(StopRead) == 0
    assert case.ended_cleanly()


@pytest.mark.parametrize("refusal", [ConfirmRefused(), Confirmed(epoch=Epoch(9), part=1)])
def test_I1_one_owner_s_no_after_the_other_s_yes_installs_nothing(refusal: DestinationEvent) -> None:
    case = pulling()
    case.after(*read(0), *read(1), yes(0), refusal)
    assert case.state.outcome is LogicalOutcome.FAILED
    assert case.count(MarkResident) == 0
    assert case.ended_cleanly()
    late, effects = step(case.state, yes(1))
    assert late.ended
    assert any(isinstance(effect, ReplyRefused) for effect in effects)


def test_a_bad_part_waits_for_the_writer_of_the_other() -> None:
    case = pushed()
    case.after(written(0), ConvertDone(part=0), VerifyBad(part=0))
    assert case.state.phase is DestinationPhase.ABORTING
    assert case.count(CloseGrant) == 1
    assert case.count(FreeBlocks) == 0
    case.after(written(1))
    assert case.ended_cleanly()


# given up with parts at different stages


def test_what_is_ours_ends_before_the_writer_does() -> None:
    case = pushed()
    case.after(written(0), write(1), ABORT)
    assert case.count(StopRead) == 1
    case.after(ConvertDone(part=0))
    assert stages(case) == (PartStage.ENDED, PartStage.RECEIVING)
    assert case.count(FreeBlocks) == 0
    case.after(written(1))
    assert case.ended_cleanly()


def test_the_writer_ends_before_what_is_ours_does() -> None:
    case = pushed()
    case.after(written(0), write(1), ABORT, written(1))
    assert stages(case) == (PartStage.CONVERTING, PartStage.ENDED)
    assert case.count(FreeBlocks) == 0
    case.after(OWN_ENDED)
    assert case.ended_cleanly()


def test_a_writer_s_death_ends_its_writes_and_nothing_of_ours() -> None:
    case = pushed()
    died = PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED)
    case.after(written(0), write(1), died)
    assert case.state.phase is DestinationPhase.ABORTING
    assert case.count(FreeBlocks) == 0
    case.after(OWN_ENDED)
    assert case.ended_cleanly()


def test_a_writer_s_death_does_not_end_what_it_has_written_in_full() -> None:
    case = pushed()
    died = PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED)
    case.after(written(0), written(1), died, *verified(0), *verified(1), Install())
    assert case.state.phase is DestinationPhase.INSTALLED


def test_a_part_that_is_still_exposed_when_the_lease_ends_is_quarantined_once_the_other_s_conversion_has_ended() -> (
    None
):
    case = pushed()
    case.after(written(0), Expire(now=LATE))
    assert case.count(QuarantineBlocks) == 0
    case.after(OWN_ENDED)
    assert case.state.phase is DestinationPhase.IN_DOUBT
    assert case.ledger.held().quarantined == 2
    assert case.ledger.held().staging_bytes == 9  # the writer may still write there
    case.after(written(1))
    assert case.ended_cleanly()


@pytest.mark.parametrize("transport", TransportKind)
def test_quarantine_ends_on_what_proves_the_writer_s_end_over_its_transport(transport: TransportKind) -> None:
    case = pushed(transport)
    case.after(ABORT, Expire(now=LATE))
    assert case.state.phase is DestinationPhase.IN_DOUBT
    case.after(Drained(evidence=Evidence.SILENCE), Drained(evidence=Evidence.CONNECTION_CLOSED), OWN_ENDED)
    assert case.state.phase is DestinationPhase.IN_DOUBT
    case.after(PeerLost(worker=PRODUCER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED))
    assert case.ended_cleanly()


def reached(part: int, stage: str) -> tuple[DestinationEvent, ...]:
    events = (write(part), written(part), *verified(part))
    return events[: ("exposed", "receiving", "converting", "verifying", "verified").index(stage)]


STAGES = ("exposed", "receiving", "converting", "verifying", "verified")


@pytest.mark.parametrize("one", STAGES)
@pytest.mark.parametrize("other", STAGES)
def test_given_up_at_any_two_stages_it_is_free_once_neither_we_nor_a_writer_touches_any_part(
    one: str, other: str
) -> None:
    case = pushed()
    case.after(*reached(0, one), *reached(1, other), ABORT)
    assert case.count(CloseGrant) == 1
    ours = any(stage in ("converting", "verifying") for stage in (one, other))
    theirs = [part for part, stage in enumerate((one, other)) if stage in ("exposed", "receiving")]
    for part in theirs:
        assert case.count(FreeBlocks) == 0
        case.after(written(part))
    if ours:
        assert case.count(FreeBlocks) == 0
        case.after(OWN_ENDED)
    assert case.ended_cleanly()


def test_a_grant_speaks_for_its_own_part_only() -> None:
    case = pushed()
    for wrong in (replace(write(0), part=1), replace(written(0), part=1), replace(write(0), part=2)):
        after_, effects = step(case.state, wrong)
        assert after_ == case.state
        assert [effect for effect in effects if isinstance(effect, ReplyRefused)]
