"""The verdict on two sides: gate, differences, outcome; then plans, and what crosses."""

from dataclasses import dataclass

from isthmus.core.errors import Unsupported
from isthmus.portability.compiler import compile_plans
from isthmus.portability.differences import Difference, differences
from isthmus.portability.gate import GateResult, gate, refuse_unless_passed
from isthmus.state.identity import Identity
from isthmus.state.plan import Outcome, TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Decision", "Side", "Verdict", "decide", "judge", "plans_or_refuse"]

Side = tuple[Identity, KVRepresentation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, and on what grounds."""

    outcome: Outcome
    gate: GateResult
    differences: tuple[Difference, ...]

    @property
    def crosses(self) -> bool:
        return self.outcome not in (Outcome.REJECT, Outcome.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision and its plans: one for each pair of layer groups that meet, none where nothing crosses.

    None either where blocks may cross only whole, because nobody has described what is in them.
    """

    decision: Decision
    plans: tuple[TransformPlan, ...]
    producer_bytes_per_token: float
    consumer_bytes_per_token: float

    @property
    def outcome(self) -> Outcome:
        return self.decision.outcome

    @property
    def gate(self) -> GateResult:
        return self.decision.gate

    @property
    def differences(self) -> tuple[Difference, ...]:
        return self.decision.differences

    @property
    def lossless(self) -> bool:
        if not self.plans:
            return self.outcome is Outcome.DIRECT  # whole blocks of an opaque interior
        return all(plan.lossless for plan in self.plans)


def decide(producer: Side, consumer: Side) -> Decision:
    """Whether the consumer may read the producer's KV. Never raises for an incompatible pair."""
    gated = gate(producer[0], consumer[0])
    found = differences(producer[1], consumer[1])
    return Decision(outcome=_outcome(gated, found), gate=gated, differences=found)


def judge(producer: Side, consumer: Side) -> Verdict:
    """Decide, and compile the plans."""
    decision = decide(producer, consumer)
    return Verdict(
        decision=decision,
        plans=compile_plans(producer[1], consumer[1]) if decision.crosses and not _opaque(producer[1]) else (),
        producer_bytes_per_token=producer[1].bytes_per_token,
        consumer_bytes_per_token=consumer[1].bytes_per_token,
    )


def plans_or_refuse(verdict: Verdict) -> tuple[TransformPlan, ...]:
    """The plans of a verdict.

    Raises:
        GateRefused: identities differ.
        Unsupported: representations differ in a way that no plan resolves.
    """
    refuse_unless_passed(verdict.gate)
    if not verdict.plans:
        said = "; ".join(
            f"{d.name}: producer {d.producer}, consumer {d.consumer}"
            for d in verdict.differences
            if d.resolution in ("reject", "unknown")
        )
        raise Unsupported(f"representation differs where no plan resolves it: {said}", field="representation")
    return verdict.plans


def _opaque(representation: KVRepresentation) -> bool:
    return any(group.opaque for group in representation.groups)


def _outcome(gated: GateResult, found: tuple[Difference, ...]) -> Outcome:
    """A known mismatch rejects; what is not known is refused as such; else what has to be done."""
    resolutions = {difference.resolution for difference in found}
    if "reject" in resolutions or not (gated.passed or gated.unknown):
        return Outcome.REJECT
    if "unknown" in resolutions or gated.unknown:
        return Outcome.UNKNOWN
    if "redistribute" in resolutions:
        return Outcome.REDISTRIBUTE_CONVERT if "convert" in resolutions else Outcome.REDISTRIBUTE
    return Outcome.CONVERT if "convert" in resolutions else Outcome.DIRECT
