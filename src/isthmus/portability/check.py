"""`check`: two descriptions to everything that is to be said of them, and its JSON form."""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from isthmus.catalogue.accelerators import accelerator_named
from isthmus.catalogue.measured import measured_loss
from isthmus.portability.connectors import ConnectorOutcome, without_isthmus
from isthmus.portability.differences import Difference
from isthmus.portability.facts import facts_of
from isthmus.portability.price import Figures, Price, price_of
from isthmus.portability.verdict import Verdict, judge
from isthmus.state.assumption import Assumption
from isthmus.state.description import Description
from isthmus.state.plan import Outcome, TransformPlan

__all__ = ["Check", "check", "differing", "figures_for", "report", "unknown_report"]

LINK_GBPS = 400.0
DESCRIPTOR_US = 0.5
TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A verdict with its price, what it rests on, and what would happen without Isthmus."""

    producer: Description
    consumer: Description
    verdict: Verdict
    price: Price | None
    figures: Figures
    assumed: tuple[Assumption, ...]
    without_isthmus: tuple[ConnectorOutcome, ...]


def figures_for(
    producer: Description, consumer: Description, *, tokens: int | None = None, link_gbps: float | None = None
) -> tuple[Figures, tuple[Assumption, ...]]:
    """Figures from the catalogue and the caller. What is assumed of them is said."""
    ours, theirs = (accelerator_named(side.accelerator)[1] for side in (producer, consumer))
    assumed = []
    if link_gbps is None:
        nics = [part.nic_gbps for part in (ours, theirs) if part.nic_gbps]
        link_gbps = min(nics) if len(nics) == 2 else LINK_GBPS
        why = "the slower of both parts' NICs" if len(nics) == 2 else "no NIC is known for one of the parts"
        assumed.append(Assumption(field="link_gbps", value=f"{link_gbps:g}", why=f"{why}; give --link-gbps"))
    figures = Figures(
        tokens=tokens or TOKENS,
        link_gbps=link_gbps,
        producer_memory_gbps=ours.memory_gbps,
        consumer_memory_gbps=theirs.memory_gbps,
        descriptor_us=DESCRIPTOR_US,
    )
    return figures, tuple(assumed)


def check(
    producer: Description, consumer: Description, *, tokens: int | None = None, link_gbps: float | None = None
) -> Check:
    """Judge two sides, and price what crosses. Never raises for a pair that may not cross."""
    verdict = judge((producer.identity, producer.representation), (consumer.identity, consumer.representation))
    figures, guesses = figures_for(producer, consumer, tokens=tokens, link_gbps=link_gbps)
    sides = [
        Assumption(field=f"{side}.{each.field}", value=each.value, why=each.why)
        for side, description in (("producer", producer), ("consumer", consumer))
        for each in description.assumed
    ]
    price = price_of(verdict.plans, figures) if verdict.plans else None
    return Check(
        producer=producer,
        consumer=consumer,
        verdict=verdict,
        price=price,
        figures=figures,
        assumed=(*sides, *verdict.gate.assumptions, *(guesses if price is not None else ())),
        without_isthmus=without_isthmus(facts_of(producer), facts_of(consumer), differing(verdict)),
    )


def differing(verdict: Verdict) -> frozenset[str]:
    """The fields that differ, as connectors' rules name them. What is only another name for the same is none."""
    fields = {d.field for d in verdict.differences if d.resolution != "none"}
    fields |= {"rope" if m.field.startswith("rope.") else m.field for m in verdict.gate.mismatches}
    if any(each.field == "weights" for each in verdict.gate.assumptions):
        fields.add("weights.dtype")
    return frozenset(fields)


def report(found: Check) -> dict[str, Any]:
    """The JSON object of `isthmus check --json`."""
    verdict, price = found.verdict, found.price
    return {
        "verdict": verdict.outcome.value,
        "lossless": verdict.lossless,
        "differences": [_mismatch(m.field, m.producer, m.consumer, m.unknown) for m in verdict.gate.mismatches]
        + [_difference(d) for d in verdict.differences],
        "loss": _loss(verdict),
        "bytes_per_token": {
            "producer": verdict.producer_bytes_per_token,
            "wire": None if price is None else price.wire_bytes,
            "consumer": verdict.consumer_bytes_per_token,
        },
        "bytes_per_sequence": {
            "producer": found.producer.representation.bytes_per_sequence,
            "consumer": found.consumer.representation.bytes_per_sequence,
        },
        "run_at": None if price is None else {"where": price.run_at, "why": price.why},
        "price": None if price is None else _price(price, found.figures),
        "assumed": msgspec.to_builtins(found.assumed),
        "without_isthmus": [asdict(outcome) for outcome in found.without_isthmus],
        "plan": _plans(verdict.plans, price),
    }


def unknown_report(why: str, field: str) -> dict[str, Any]:
    """The same object where a side could not be described at all."""
    return {
        "verdict": Outcome.UNKNOWN.value,
        "lossless": False,
        "differences": [],
        "loss": None,
        "bytes_per_token": None,
        "bytes_per_sequence": None,
        "run_at": None,
        "price": None,
        "assumed": [],
        "without_isthmus": [],
        "plan": None,
        "unknown": {"field": field, "why": why},
    }


def _mismatch(field: str, producer: str, consumer: str, unknown: bool) -> dict[str, str]:
    return {
        "field": field,
        "producer": producer,
        "consumer": consumer,
        "kind": "gate",
        "resolution": "unknown" if unknown else "reject",
    }


def _difference(difference: Difference) -> dict[str, str]:
    return {
        "field": difference.name,
        "producer": difference.producer,
        "consumer": difference.consumer,
        "kind": difference.kind,
        "resolution": difference.resolution,
    }


def _loss(verdict: Verdict) -> dict[str, Any] | None:
    """The bound of each component that is rewritten, and what was measured for its pair of encodings."""
    if not verdict.plans:
        return None
    components = {
        f"{plan.producer.kind.value}.{conversion.component}": msgspec.to_builtins(conversion.loss)
        | {"range_shrinks": conversion.range_shrinks}
        | {"measured": measured_loss(conversion.source, conversion.target)}
        for plan in verdict.plans
        for conversion in plan.conversions
        if conversion.ops
    }
    bounds = [conversion.loss for plan in verdict.plans for conversion in plan.conversions]
    return {
        "max_relative_error": max(bound.relative for bound in bounds),
        "max_error_per_row_max": max(bound.per_row_max for bound in bounds),
        "range_shrinks": any(c.range_shrinks for plan in verdict.plans for c in plan.conversions),
        "components": components,
    }


def _price(price: Price, figures: Figures) -> dict[str, Any]:
    return {
        **asdict(figures),
        "transfer_ms": price.transfer_ms,
        "convert_ms": price.convert_ms,
        "options_ms": price.options_ms,
        "arithmetic_intensity": price.arithmetic_intensity,
    }


def _plans(plans: tuple[TransformPlan, ...], price: Price | None) -> dict[str, Any] | None:
    if not plans or price is None:
        return None
    return {
        "fingerprint": "+".join(plan.fingerprint for plan in plans),
        "runs": {"bytes": price.run_bytes, "per_token": price.runs_per_token},
        "groups": [
            {
                "fingerprint": plan.fingerprint,
                "kind": plan.producer.kind.value,
                "outcome": plan.outcome.value,
                "parts": len(plan.parts),
                "ops": {
                    conversion.component: [msgspec.to_builtins(op) for op in conversion.ops]
                    for conversion in plan.conversions
                    if conversion.ops
                },
            }
            for plan in plans
        ],
    }
