"""Each guard once taken away: the check must then find what the guard is for."""

from dataclasses import replace
from typing import Final

from isthmus.ownership.model.mutant import FENCED, PARTS, PULL, PUSH, SEND, TENANTS, Mutant, of_the_shell, without
from isthmus.ownership.model.scope import Faults, Switches

__all__ = ["MUTANTS"]

_OWNER: Final = (
    without(
        "yes_to_the_ended",
        "a hand-off that ended otherwise than by success is not confirmed",
        "I9",
        PULL,
        "source",
        "if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:",
        "if state.ended:",
    ),
    without(
        "yes_while_draining",
        "only an open grant is confirmed",
        "I9",
        TENANTS,
        "source",
        """        released, effects = acknowledged(state, LogicalOutcome.FAILED)
        return released, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))""",
        """        released, effects = acknowledged(state, LogicalOutcome.FAILED)
        return released, (*effects, ReplyConfirmed(epoch=state.epoch))""",
    ),
    without(
        "anybody_confirms",
        "only the holder, in this life, is believed under a grant",
        "I1",
        PULL,
        "grants",
        "    if not is_holder:\n",
        "    if False:\n",
    ),
    without(
        "any_epoch_confirms",
        "a message under another epoch is not believed",
        "I1",
        PULL,
        "grants",
        "return None if epoch == state.epoch else Refusal.STALE_EPOCH",
        "return None",
    ),
    without(
        "any_grant_confirms",
        "a message under another grant is not believed",
        "I1",
        PULL,
        "grants",
        "return hmac.compare_digest(one.encode(), other.encode())",
        "return True",
    ),
    without(
        "renewal_shortens",
        "a renewal takes the later of two ends",
        "I6",
        PULL,
        "source",
        "max(state.lease_ends, after(event.now, event.lease))",
        "after(event.now, event.lease)",
    ),
    without(
        "strangers_abandon",
        "only the holder, in this life, may abandon",
        "I7",
        TENANTS,
        "source",
        """    if (event.holder, event.holder_incarnation) != (state.holder, state.holder_incarnation):
        return _refused(state, Refusal.NOT_AUTHORISED)
""",
        "",
    ),
)

_SOURCE_ENDS: Final = (
    without(
        "grant_never_closed",
        "the end of a lease closes its grant",
        "I4",
        PULL,
        "source_ends",
        """    if state.grant_open:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
        outcome = LogicalOutcome.FAILED
""",
        """    if state.grant_open:
        outcome = LogicalOutcome.FAILED
""",
    ),
    without(
        "grant_closed_twice",
        "what gave the hand-off up has closed its grant",
        "I4",
        PULL,
        "source_ends",
        """    if state.grant_open:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
        outcome = LogicalOutcome.FAILED
""",
        """    if True:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
        outcome = LogicalOutcome.FAILED
""",
    ),
    without(
        "expiry_frees_across_tenants",
        "across tenants the end of a lease frees nothing",
        "I7",
        TENANTS,
        "source_ends",
        "Evidence.LEASE_EXPIRED_ONE_TENANT if state.sole_tenant else Evidence.LEASE_EXPIRED_MANY_TENANTS",
        "Evidence.LEASE_EXPIRED_ONE_TENANT",
    ),
    without(
        "freed_while_filling",
        "blocks that the engine fills wait until it has stopped",
        "I2",
        PULL,
        "source_ends",
        "        return draining, (StopCompute(),)\n",
        """        use = EndUse(blocks=state.blocks, epoch=state.epoch)
        return _release(state, outcome, Evidence.OWN_WORK_ENDED, (StopCompute(), use))
""",
    ),
    without(
        "freed_while_exposed",
        "blocks that somebody may read wait for evidence when the producer gives up",
        "I7",
        TENANTS,
        "source_ends",
        "        return draining, (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4\n",
        """        closed = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)
        return _release(state, outcome, Evidence.OWN_WORK_ENDED, closed)
""",
    ),
    without(
        "old_death_counts",
        "the death of an old life says nothing of the present one",
        "I7",
        TENANTS,
        "source_ends",
        "if (event.worker, event.incarnation) != (state.holder, state.holder_incarnation) or state.ended:",
        "if event.worker != state.holder or state.ended:",
    ),
    without(
        "fence_stops_copies",
        "a fenced process that has mapped memory goes on copying",
        "I7",
        FENCED,
        "drain",
        """        Evidence.FENCED_AND_CLOSED: (
            False,
            False,
            "a stopped""",
        """        Evidence.FENCED_AND_CLOSED: (
            True,
            False,
            "a stopped""",
    ),
    without(
        "quarantine_for_ever",
        "the proven death of a reader releases what was kept for it",
        "I8",
        TENANTS,
        "source_ends",
        "    return _release(given_up, given_up.outcome, event.evidence, effects)\n",
        "    return given_up, effects\n",
    ),
)

_READER: Final = (
    without(
        "foreign_offer",
        "an offer of another tenant is not read",
        "I7",
        PULL,
        "destination",
        "if event.tenant != state.tenant:  # I7",
        "if False:  # I7",
    ),
    without(
        "any_yes_installs",
        "a yes for another epoch than the one that was read installs nothing",
        "I9",
        PULL,
        "destination",
        "    if event.epoch != part.epoch:\n",
        "    if False:\n",
    ),
    without(
        "bad_bytes_pass",
        "bytes that fail their check end the hand-off",
        "I1",
        PULL,
        "destination",
        """        bad = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
        return give_up(bad, LogicalOutcome.FAILED)
""",
        """        parts = with_part(state, event.part, PartStage.VERIFIED)
        return replace(state, parts=parts, phase=phase_of(parts)), ()
""",
    ),
    without(
        "freed_while_converting",
        "blocks that our own conversion writes wait until it has stopped",
        "I2",
        PULL,
        "destination_ends",
        """    if some_own_active(state):
        return state, ()
    if not some_peer_active""",
        """    if not some_peer_active""",
    ),
    without(
        "staging_kept",
        "staging comes free with the commit",
        "I8",
        PULL,
        "destination_ends",
        "    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True), *_staging(state))\n",
        "    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True),)\n",
    ),
    without(
        "one_part_is_enough",
        "parts are installed together",
        "I9",
        PARTS,
        "destination",
        "    if any(each.stage is not PartStage.CONFIRMED for each in confirmed.parts):\n",
        "    if all(each.stage is not PartStage.CONFIRMED for each in confirmed.parts):\n",
    ),
)

_WRITER: Final = (
    without(
        "lease_frees_what_is_written",
        "what a producer may still write waits in quarantine",
        "I2",
        PUSH,
        "destination_ends",
        """    if state.phase is DestinationPhase.ABORTING and state.lease_ends is None:
        return _quarantined(state)
""",
        """    if state.phase is DestinationPhase.ABORTING and state.lease_ends is None:
        return release(state, state.outcome, evidence)
""",
    ),
    without(
        "anybody_has_written",
        "only the producer's own word, in this life, counts as written",
        "I1",
        PUSH,
        "destination_push",
        "    if reason is None and (event.writer, event.writer_incarnation) != "
        "(state.producer, state.producer_incarnation):\n",
        "    if False:\n",
    ),
    without(
        "freed_while_sending",
        "a source that our own transfer reads waits until it has ended",
        "I4",
        PUSH,
        "source_push",
        "    if not state.computing and not state.sending:\n",
        "    if not state.computing:\n",
    ),
    without(
        "freed_with_one_user_left",
        "a source is free when both its engine and its transfer have ended",
        "I4",
        SEND,
        "source_push",
        "    if computing or sending:\n",
        "    if computing and sending:\n",
    ),
    without(
        "write_grant_never_closed",
        "whatever ends a grant to write closes it",
        "I4",
        PUSH,
        "destination_push",
        "    if before.grant_open and not state.grant_open:\n",
        "    if False:\n",
    ),
    without(
        "written_for_ever",
        "what shows that a writer has stopped releases what was kept for it",
        "I8",
        PUSH,
        "destination_ends",
        "        peer = drains_pushed(state.transport, evidence)\n",
        "        peer = False\n",
    ),
)


_SHELL: Final = (
    of_the_shell(
        "asked_before_the_copy",
        "the owner is asked after the last byte, not before the first",
        "I1",
        replace(PULL, faults=Faults()),
        Switches(confirm_before_copy=True),
    ),
    of_the_shell(
        "quarantine_reused",
        "what is in quarantine is given to nobody",
        "I2",
        PUSH,
        Switches(reuse_in_doubt=True),
    ),
    of_the_shell(
        "prefix_evicted_in_use",
        "a prefix that a hand-off counts on is not evicted",
        "I1",
        replace(PULL, source_slots=2, prefix=True, faults=Faults()),
        Switches(evict_while_used=True),
    ),
    of_the_shell(
        "abandoned_before_stopped",
        "a reader says that it reads no more once it reads no more",
        "I7",
        TENANTS,
        Switches(abandon_before_stop=True),
    ),
    of_the_shell(
        "admitted_without_staging",
        "staging is counted before a request is admitted",
        "I10",
        replace(PULL, staging=1, faults=Faults()),
        Switches(admit_without_staging=True),
    ),
    of_the_shell(
        "the_dead_admitted",
        "nothing begins for a life whose death has been established",
        "I8",
        TENANTS,
        Switches(admit_the_dead=True),
    ),
)

MUTANTS: Final[tuple[Mutant, ...]] = (*_OWNER, *_SOURCE_ENDS, *_READER, *_WRITER, *_SHELL)
