"""Where two representations differ, by the field's name, and what resolves each difference."""

from dataclasses import dataclass

from isthmus.state.representation import GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Difference", "Resolution", "differences"]

Resolution = str
"""`redistribute` (bytes move, unchanged), `convert` (elements are rewritten) or `reject`."""

_REDISTRIBUTE = ("layout", "kv_order", "block_size")
_CONVERT = ("storage_dtype",)
_REJECT = ("kind", "num_kv_heads", "head_size", "head_size_v", "interior", "layer_start", "layer_stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field, both values, and how the difference is resolved."""

    field: str
    producer: str
    consumer: str
    resolution: Resolution


def differences(producer: KVRepresentation, consumer: KVRepresentation) -> tuple[Difference, ...]:
    """Every field in which the two differ, groups in order."""
    found: list[Difference] = []
    if len(producer.groups) != len(consumer.groups):
        found.append(_difference("groups", len(producer.groups), len(consumer.groups), "reject"))
    for index, (ours, theirs) in enumerate(zip(producer.groups, consumer.groups, strict=False)):
        prefix = f"groups[{index}]." if len(producer.groups) > 1 else ""
        found.extend(_group_differences(ours, theirs, prefix))
    ours_tp, theirs_tp = producer.partition.tp_size, consumer.partition.tp_size
    if ours_tp != theirs_tp:
        found.append(_difference("tp_size", ours_tp, theirs_tp, "redistribute"))
    return tuple(found)


def _group_differences(ours: GroupRepresentation, theirs: GroupRepresentation, prefix: str) -> list[Difference]:
    found = []
    for fields, resolution in ((_REJECT, "reject"), (_REDISTRIBUTE, "redistribute"), (_CONVERT, "convert")):
        for field in fields:
            a, b = getattr(ours, field), getattr(theirs, field)
            if a != b:
                found.append(_difference(prefix + field, a, b, resolution))
    if ours.quant != theirs.quant:
        a, b = ours.quant, theirs.quant
        if a is not None and b is not None and a.granularity == b.granularity and a.scale_dtype == b.scale_dtype:
            found.append(
                _difference(f"{prefix}quant.scale_location", a.scale_location, b.scale_location, "redistribute")
            )
        else:
            found.append(
                _difference(
                    f"{prefix}quant.granularity",
                    a.granularity if a else "none",
                    b.granularity if b else "none",
                    "convert",
                )
            )
    return found


def _difference(field: str, producer: object, consumer: object, resolution: Resolution) -> Difference:
    return Difference(
        field=field,
        producer=str(getattr(producer, "value", producer)),
        consumer=str(getattr(consumer, "value", consumer)),
        resolution=resolution,
    )
