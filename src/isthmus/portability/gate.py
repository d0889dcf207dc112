"""The gate: what must be equal, because no transformation could make it so.

Precision belongs to roles: INT8 weights may prefill for FP8 weights of one lineage. That is an assumption (the two
models agree), so it is printed. Equal precision with unequal weights is another model, and is refused.
"""

from dataclasses import dataclass

from isthmus.core.errors import GateRefused
from isthmus.state.assumption import Assumption
from isthmus.state.identity import UNVERIFIED, Identity

__all__ = ["GateResult", "Mismatch", "gate", "refuse_unless_passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A field of identity in which the two sides differ, or that is known of neither (`unknown`)."""

    field: str
    producer: str
    consumer: str
    unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Passed where there is no mismatch; then `assumptions` holds what was taken on trust."""

    mismatches: tuple[Mismatch, ...]
    assumptions: tuple[Assumption, ...]

    @property
    def passed(self) -> bool:
        return not self.mismatches

    @property
    def unknown(self) -> bool:
        """Whether nothing differs, and yet something is not known to be equal."""
        return bool(self.mismatches) and all(mismatch.unknown for mismatch in self.mismatches)


def gate(producer: Identity, consumer: Identity) -> GateResult:
    """Compare two identities field by field."""
    mismatches: list[Mismatch] = []
    ours, theirs = producer.lineage, consumer.lineage
    _compare(mismatches, "lineage.base_model", ours.base_model, theirs.base_model)
    _compare(mismatches, "lineage.revision", ours.revision, theirs.revision)
    if producer.rope != consumer.rope:
        for field in producer.rope.__struct_fields__:
            _compare(mismatches, f"rope.{field}", getattr(producer.rope, field), getattr(consumer.rope, field))
    for field in ("architecture_digest", "adapter", "multimodal_digest"):
        _compare(mismatches, field, getattr(producer, field), getattr(consumer, field))
    assumptions = _weights(producer, consumer, mismatches)
    return GateResult(mismatches=tuple(mismatches), assumptions=assumptions)


def _compare(mismatches: list[Mismatch], field: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        mismatches.append(Mismatch(field=field, producer=str(ours), consumer=str(theirs)))


def _weights(producer: Identity, consumer: Identity, mismatches: list[Mismatch]) -> tuple[Assumption, ...]:
    """Across precisions the lineage speaks; in one precision the weights themselves, or what they are published as."""
    ours, theirs, lineage = producer.weights, consumer.weights, producer.lineage
    if ours.dtype != theirs.dtype:
        if lineage.revision == consumer.lineage.revision == UNVERIFIED:
            # Weights of two precisions cannot be compared, so the lineage must be known, not guessed from a folder.
            mismatches.append(
                Mismatch(field="lineage.revision", producer=UNVERIFIED, consumer=UNVERIFIED, unknown=True)
            )
            return ()
        return (
            Assumption(
                field="weights",
                value=f"prefill in {ours.dtype}, decode in {theirs.dtype}",
                why=f"both are of one lineage ({lineage.base_model}@{lineage.revision}) and are taken to agree; "
                "the two precisions' weights cannot be compared byte by byte",
            ),
        )
    if ours.digest and theirs.digest:
        _compare(mismatches, "weights.digest", ours.digest, theirs.digest)
        return ()
    if ours.published and theirs.published:
        _compare(mismatches, "weights.published", ours.published, theirs.published)
        return (
            Assumption(
                field="weights.digest",
                value=f"as published: {ours.published}",
                why="nobody has read the weights yet; both sides name the same ones",
            ),
        )
    mismatches.append(
        Mismatch(
            field="weights.digest",
            producer=ours.digest or ours.published or "unknown",
            consumer=theirs.digest or theirs.published or "unknown",
            unknown=True,
        )
    )
    return ()


def refuse_unless_passed(result: GateResult) -> None:
    """Raise GateRefused naming every field that differs, and what would be right."""
    if result.passed:
        return
    said = "; ".join(f"{m.field}: producer {m.producer!r}, consumer {m.consumer!r}" for m in result.mismatches)
    raise GateRefused(
        f"identity differs where no transformation helps: {said}. Serve the same model on both sides",
        field=f"identity.{result.mismatches[0].field}",
    )
