"""The verdict on two sides: gate, differences, plans, what is lost and what crosses."""

from dataclasses import dataclass

from isthmus.core.errors import Unsupported
from isthmus.portability.compiler import compile_plan
from isthmus.portability.differences import Difference, differences
from isthmus.portability.gate import GateResult, gate, refuse_unless_passed
from isthmus.state.identity import Identity
from isthmus.state.plan import Outcome, TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Verdict", "judge", "plans_or_refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided and why. `plans` has one plan per layer group, and is empty where the outcome is `reject`."""

    outcome: Outcome
    gate: GateResult
    differences: tuple[Difference, ...]
    plans: tuple[TransformPlan, ...]
    producer_bytes_per_token: int
    consumer_bytes_per_token: int

    @property
    def lossless(self) -> bool:
        return bool(self.plans) and all(plan.loss.lossless for plan in self.plans)


def judge(producer: tuple[Identity, KVRepresentation], consumer: tuple[Identity, KVRepresentation]) -> Verdict:
    """Decide whether the consumer may read the producer's KV, and how. Never raises for an incompatible pair."""
    gated = gate(producer[0], consumer[0])
    found = differences(producer[1], consumer[1])
    rejected = not gated.passed or any(difference.resolution == "reject" for difference in found)
    plans = () if rejected else _compile(producer[1], consumer[1])
    return Verdict(
        outcome=_combine(plans) if plans else Outcome.REJECT,
        gate=gated,
        differences=found,
        plans=plans,
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
            f"{d.field}: producer {d.producer}, consumer {d.consumer}"
            for d in verdict.differences
            if d.resolution == "reject"
        )
        raise Unsupported(f"representation differs where no plan resolves it: {said}", field="representation")
    return verdict.plans


def _compile(producer: KVRepresentation, consumer: KVRepresentation) -> tuple[TransformPlan, ...]:
    return tuple(
        compile_plan(ours, producer.partition, theirs, consumer.partition)
        for ours, theirs in zip(producer.groups, consumer.groups, strict=True)
    )


def _combine(plans: tuple[TransformPlan, ...]) -> Outcome:
    """The outcome of all groups together."""
    redistributes = any(plan.outcome in (Outcome.REDISTRIBUTE, Outcome.REDISTRIBUTE_CONVERT) for plan in plans)
    converts = any(plan.ops for plan in plans)
    if redistributes:
        return Outcome.REDISTRIBUTE_CONVERT if converts else Outcome.REDISTRIBUTE
    return Outcome.CONVERT if converts else Outcome.DIRECT
