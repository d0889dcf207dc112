"""The gate: what must be equal, because no transformation could make it so.

Precision belongs to roles: INT8 weights may prefill for FP8 weights of one lineage. That is an assumption (the two
models agree), so it is printed. Equal precision with unequal weights is another model, and is refused.
"""

from dataclasses import dataclass

import msgspec

from isthmus.core.errors import GateRefused
from isthmus.state.identity import UNVERIFIED, Identity

__all__ = ["GateResult", "Mismatch", "gate", "refuse_unless_passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A field of identity in which the two sides differ."""

    field: str
    producer: str
    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Passed where there is no mismatch; then `assumptions` holds what was taken on trust."""

    mismatches: tuple[Mismatch, ...]
    assumptions: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.mismatches


def gate(producer: Identity, consumer: Identity) -> GateResult:
    """Compare two identities field by field."""
    mismatches = [
        Mismatch(field=field, producer=ours, consumer=theirs)
        for (field, ours), (_, theirs) in zip(_flat(producer), _flat(consumer), strict=True)
        if ours != theirs and not field.startswith("weights.")
    ]
    assumptions = []
    ours, theirs = producer.weights, consumer.weights
    if ours.dtype != theirs.dtype and producer.lineage.revision == consumer.lineage.revision == UNVERIFIED:
        # Across precisions weights cannot be compared, so the lineage must be known, and not guessed from a folder.
        mismatches.append(Mismatch(field="lineage.revision", producer=UNVERIFIED, consumer=UNVERIFIED))
    elif ours.dtype != theirs.dtype:
        assumptions.append(
            f"weights: prefill in {ours.dtype} and decode in {theirs.dtype} of one lineage "
            f"({producer.lineage.base_model}@{producer.lineage.revision}) are taken to agree"
        )
    elif ours.digest != theirs.digest:
        mismatches.append(Mismatch(field="weights.digest", producer=ours.digest, consumer=theirs.digest))
    elif not ours.digest:
        mismatches.append(Mismatch(field="weights.digest", producer="unknown", consumer="unknown"))
    return GateResult(mismatches=tuple(mismatches), assumptions=tuple(assumptions))


def refuse_unless_passed(result: GateResult) -> None:
    """Raise GateRefused naming every field that differs, and what would be right."""
    if result.passed:
        return
    said = "; ".join(f"{m.field}: producer {m.producer!r}, consumer {m.consumer!r}" for m in result.mismatches)
    raise GateRefused(
        f"identity differs where no transformation helps: {said}. Serve the same model on both sides",
        field=f"identity.{result.mismatches[0].field}",
    )


def _flat(value: msgspec.Struct, prefix: str = "") -> list[tuple[str, str]]:
    """All leaf fields in declaration order: ("lineage.base_model", "..."), ..."""
    found: list[tuple[str, str]] = []
    for name in value.__struct_fields__:
        child = getattr(value, name)
        if isinstance(child, msgspec.Struct):
            found.extend(_flat(child, f"{prefix}{name}."))
        else:
            found.append((f"{prefix}{name}", str(child)))
    return found
