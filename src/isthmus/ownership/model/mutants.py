"""Each guard once taken away: the check must then find what the guard is for.

A guard of the protocol is taken out of production's own source (`loader`), so that drift fails loudly; a guard of the
shell around it is a switch of the scope.
"""

from dataclasses import dataclass, replace
from typing import Final

from isthmus.ownership.model.loader import mutated
from isthmus.ownership.model.rules import PRODUCTION, Rules
from isthmus.ownership.model.scope import Faults, Scope, Switches
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`module` is of the protocol; it is empty where the guard is the shell's, which `scope` has a switch for."""

    name: str
    removes: str
    violates: str
    scope: Scope
    module: str = ""
    fragment: str = ""
    replacement: str = ""

    def rules(self) -> Rules:
        """The protocol without the guard. Raises Bug where production has drifted."""
        return mutated(self.module, self.fragment, self.replacement) if self.module else PRODUCTION


_HOSTILE: Final = Faults(forges=True, renews=True, sees_reads=True, flips=True, source_gives_up=True)
_PULL: Final = Scope(
    name="mutant", about="two pulls through one source block", requests=2, source_slots=1, faults=_HOSTILE
)
_TENANTS: Final = replace(
    _PULL,
    tenants=(0, 1),
    faults=Faults(crashes=1, forges=True, source_gives_up=True, doubts=True),
)
_FENCED: Final = replace(_TENANTS, faults=Faults(pauses=1, fences=True))
_PUSH: Final = replace(
    _PULL, mode=TriggerMode.PUSH, source_slots=2, destination_slots=1, faults=replace(_HOSTILE, crashes=1)
)
_SEND: Final = replace(_PUSH, mode=TriggerMode.SEND, source_slots=1)
_PARTS: Final = Scope(name="mutant", about="a hand-off of two parts", requests=1, parts=2)


def _without(name: str, removes: str, violates: str, scope: Scope, *patch: str) -> Mutant:
    module, fragment, replacement = patch
    return Mutant(
        name=name,
        removes=removes,
        violates=violates,
        scope=scope,
        module=module,
        fragment=fragment,
        replacement=replacement,
    )


_OWNER: Final = (
    _without(
        "yes_to_the_ended",
        "a hand-off that ended otherwise than by success is not confirmed",
        "I9",
        _PULL,
        "source",
        "if state.ended and state.outcome is LogicalOutcome.SUCCEEDED:",
        "if state.ended:",
    ),
    _without(
        "yes_while_draining",
        "only an open grant is confirmed",
        "I9",
        _TENANTS,
        "source",
        """        released, effects = acknowledged(state, LogicalOutcome.FAILED)
        return released, (*effects, ReplyRefused(reason=Refusal.STALE_EPOCH))""",
        """        released, effects = acknowledged(state, LogicalOutcome.FAILED)
        return released, (*effects, ReplyConfirmed(epoch=state.epoch))""",
    ),
    _without(
        "anybody_confirms",
        "only the holder, in this life, is believed under a grant",
        "I1",
        _PULL,
        "grants",
        "    if not is_holder:\n",
        "    if False:\n",
    ),
    _without(
        "any_epoch_confirms",
        "a message under another epoch is not believed",
        "I1",
        _PULL,
        "grants",
        "return None if epoch == state.epoch else Refusal.STALE_EPOCH",
        "return None",
    ),
    _without(
        "any_grant_confirms",
        "a message under another grant is not believed",
        "I1",
        _PULL,
        "grants",
        "return hmac.compare_digest(one.encode(), other.encode())",
        "return True",
    ),
    _without(
        "renewal_shortens",
        "a renewal takes the later of two ends",
        "I6",
        _PULL,
        "source",
        "max(state.lease_ends, after(event.now, event.lease))",
        "after(event.now, event.lease)",
    ),
    _without(
        "strangers_abandon",
        "only the holder, in this life, may abandon",
        "I7",
        _TENANTS,
        "source",
        """    if (event.holder, event.holder_incarnation) != (state.holder, state.holder_incarnation):
        return _refused(state, Refusal.NOT_AUTHORISED)
""",
        "",
    ),
)

_SOURCE_ENDS: Final = (
    _without(
        "grant_never_closed",
        "the end of a lease closes its grant",
        "I4",
        _PULL,
        "source_ends",
        """    if state.grant_open:
        effects = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4
        outcome = LogicalOutcome.FAILED
""",
        """    if state.grant_open:
        outcome = LogicalOutcome.FAILED
""",
    ),
    _without(
        "grant_closed_twice",
        "what gave the hand-off up has closed its grant",
        "I4",
        _PULL,
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
    _without(
        "expiry_frees_across_tenants",
        "across tenants the end of a lease frees nothing",
        "I7",
        _TENANTS,
        "source_ends",
        "Evidence.LEASE_EXPIRED_ONE_TENANT if state.sole_tenant else Evidence.LEASE_EXPIRED_MANY_TENANTS",
        "Evidence.LEASE_EXPIRED_ONE_TENANT",
    ),
    _without(
        "freed_while_filling",
        "blocks that the engine fills wait until it has stopped",
        "I2",
        _PULL,
        "source_ends",
        "        return draining, (StopCompute(),)\n",
        """        use = EndUse(blocks=state.blocks, epoch=state.epoch)
        return _release(state, outcome, Evidence.OWN_WORK_ENDED, (StopCompute(), use))
""",
    ),
    _without(
        "freed_while_exposed",
        "blocks that somebody may read wait for evidence when the producer gives up",
        "I7",
        _TENANTS,
        "source_ends",
        "        return draining, (CloseGrant(blocks=state.blocks, epoch=state.epoch),)  # I4\n",
        """        closed = (CloseGrant(blocks=state.blocks, epoch=state.epoch),)
        return _release(state, outcome, Evidence.OWN_WORK_ENDED, closed)
""",
    ),
    _without(
        "old_death_counts",
        "the death of an old life says nothing of the present one",
        "I7",
        _TENANTS,
        "source_ends",
        "if (event.worker, event.incarnation) != (state.holder, state.holder_incarnation) or state.ended:",
        "if event.worker != state.holder or state.ended:",
    ),
    _without(
        "fence_stops_copies",
        "a fenced process that has mapped memory goes on copying",
        "I7",
        _FENCED,
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
    _without(
        "quarantine_for_ever",
        "the proven death of a reader releases what was kept for it",
        "I8",
        _TENANTS,
        "source_ends",
        "    return _release(given_up, given_up.outcome, event.evidence, effects)\n",
        "    return given_up, effects\n",
    ),
)

_READER: Final = (
    _without(
        "foreign_offer",
        "an offer of another tenant is not read",
        "I7",
        _PULL,
        "destination",
        "if event.tenant != state.tenant:  # I7",
        "if False:  # I7",
    ),
    _without(
        "any_yes_installs",
        "a yes for another epoch than the one that was read installs nothing",
        "I9",
        _PULL,
        "destination",
        "    if event.epoch != part.epoch:\n",
        "    if False:\n",
    ),
    _without(
        "bad_bytes_pass",
        "bytes that fail their check end the hand-off",
        "I1",
        _PULL,
        "destination",
        """        bad = replace(state, parts=with_part(state, event.part, PartStage.ENDED))
        return give_up(bad, LogicalOutcome.FAILED)
""",
        """        parts = with_part(state, event.part, PartStage.VERIFIED)
        return replace(state, parts=parts, phase=phase_of(parts)), ()
""",
    ),
    _without(
        "freed_while_converting",
        "blocks that our own conversion writes wait until it has stopped",
        "I2",
        _PULL,
        "destination_ends",
        """    if some_own_active(state):
        return state, ()
    if not some_peer_active""",
        """    if not some_peer_active""",
    ),
    _without(
        "staging_kept",
        "staging comes free with the commit",
        "I8",
        _PULL,
        "destination_ends",
        "    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True), *_staging(state))\n",
        "    return installed, (MarkResident(blocks=state.blocks, epoch=state.epoch, in_use=True),)\n",
    ),
    _without(
        "one_part_is_enough",
        "parts are installed together",
        "I9",
        _PARTS,
        "destination",
        "    if any(each.stage is not PartStage.CONFIRMED for each in confirmed.parts):\n",
        "    if all(each.stage is not PartStage.CONFIRMED for each in confirmed.parts):\n",
    ),
)

_WRITER: Final = (
    _without(
        "lease_frees_what_is_written",
        "what a producer may still write waits in quarantine",
        "I2",
        _PUSH,
        "destination_ends",
        """    if state.phase is DestinationPhase.ABORTING and state.lease_ends is None:
        return _quarantined(state)
""",
        """    if state.phase is DestinationPhase.ABORTING and state.lease_ends is None:
        return release(state, state.outcome, evidence)
""",
    ),
    _without(
        "anybody_has_written",
        "only the producer's own word, in this life, counts as written",
        "I1",
        _PUSH,
        "destination_push",
        "    if reason is None and (event.writer, event.writer_incarnation) != "
        "(state.producer, state.producer_incarnation):\n",
        "    if False:\n",
    ),
    _without(
        "freed_while_sending",
        "a source that our own transfer reads waits until it has ended",
        "I4",
        _PUSH,
        "source_push",
        "    if not state.computing and not state.sending:\n",
        "    if not state.computing:\n",
    ),
    _without(
        "freed_with_one_user_left",
        "a source is free when both its engine and its transfer have ended",
        "I4",
        _SEND,
        "source_push",
        "    if computing or sending:\n",
        "    if computing and sending:\n",
    ),
    _without(
        "write_grant_never_closed",
        "whatever ends a grant to write closes it",
        "I4",
        _PUSH,
        "destination_push",
        "    if before.grant_open and not state.grant_open:\n",
        "    if False:\n",
    ),
    _without(
        "written_for_ever",
        "what shows that a writer has stopped releases what was kept for it",
        "I8",
        _PUSH,
        "destination_ends",
        "        peer = drains_pushed(state.transport, evidence)\n",
        "        peer = False\n",
    ),
)


def _shell(name: str, removes: str, violates: str, scope: Scope, switches: Switches) -> Mutant:
    return Mutant(name=name, removes=removes, violates=violates, scope=replace(scope, switches=switches))


_SHELL: Final = (
    _shell(
        "asked_before_the_copy",
        "the owner is asked after the last byte, not before the first",
        "I1",
        replace(_PULL, faults=Faults()),
        Switches(confirm_before_copy=True),
    ),
    _shell(
        "quarantine_reused",
        "what is in quarantine is given to nobody",
        "I2",
        _PUSH,
        Switches(reuse_in_doubt=True),
    ),
    _shell(
        "prefix_evicted_in_use",
        "a prefix that a hand-off counts on is not evicted",
        "I1",
        replace(_PULL, source_slots=2, prefix=True, faults=Faults()),
        Switches(evict_while_used=True),
    ),
    _shell(
        "abandoned_before_stopped",
        "a reader says that it reads no more once it reads no more",
        "I7",
        _TENANTS,
        Switches(abandon_before_stop=True),
    ),
    _shell(
        "admitted_without_staging",
        "staging is counted before a request is admitted",
        "I10",
        replace(_PULL, staging=1, faults=Faults()),
        Switches(admit_without_staging=True),
    ),
    _shell(
        "the_dead_admitted",
        "nothing begins for a life whose death has been established",
        "I8",
        _TENANTS,
        Switches(admit_the_dead=True),
    ),
)

MUTANTS: Final = (*_OWNER, *_SOURCE_ENDS, *_READER, *_WRITER, *_SHELL)
