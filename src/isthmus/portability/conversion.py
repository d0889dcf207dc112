"""One component's encoding to another's: which element operations, and what they lose."""

import math

from isthmus.portability.loss import cast_bound, quantise_bound, rebias_bound
from isthmus.state.encoding import IN_POOL, Encoding, Granularity, Quant, StorageDtype
from isthmus.state.plan import Cast, Conversion, Dequantise, ElementOp, LossBound, Quantise, Rebias, Reorder
from isthmus.state.representation import Component
from isthmus.state.sameness import meaning_of

__all__ = ["conversion_of"]

_E4M3 = (StorageDtype.F8_E4M3FN, StorageDtype.F8_E4M3FNUZ, StorageDtype.F8_E4M3)
"""Encodings of four bits of significand and four of exponent, which differ in bias and in specials."""


def conversion_of(ours: Component, theirs: Component) -> Conversion:
    """The conversion of a component from the producer's encoding to the consumer's.

    Heads and counts are taken to be equal. Static scales (on the layer) are operands of the plan, given when it runs.
    """
    source = meaning_of(ours.encoding, ours.heads, ours.count)
    target = meaning_of(theirs.encoding, theirs.heads, theirs.count)
    reorder = _reorder(ours, theirs)
    ops, loss, shrinks = _element_ops(source, target, bool(reorder))
    if reorder:
        at = 1 if ops and isinstance(ops[0], Dequantise) else 0
        ops = (*ops[:at], *reorder, *ops[at:])
    return Conversion(
        component=ours.name,
        source=source,
        target=target,
        ops=ops,
        loss=loss,
        range_shrinks=shrinks,
    )


def _reorder(ours: Component, theirs: Component) -> tuple[Reorder, ...]:
    if ours.element_order == theirs.element_order:
        return ()
    return (Reorder(source=ours.element_order, target=theirs.element_order),)


def _element_ops(source: Encoding, target: Encoding, reorders: bool) -> tuple[tuple[ElementOp, ...], LossBound, bool]:
    """The operations on values, their bound, and whether finite values may lie beyond the target's range."""
    shared_by_place = source.quant is not None and source.quant.granularity in (Granularity.BLOCK, Granularity.CHANNEL)
    if source == target and not (reorders and shared_by_place):
        return (), LossBound(), False
    if _same_but_nibbles(source, target) and not reorders:
        return (Reorder(source=source.nibble_order.value, target=target.nibble_order.value),), LossBound(), False
    exponent = _rebias(source, target)
    if exponent is not None and not (reorders and shared_by_place):
        op = Rebias(source=source.storage_dtype, target=target.storage_dtype, exponent=exponent)
        return (op,), rebias_bound(source.traits, target.traits, exponent), False
    if source.quant is None and target.quant is None:
        cast = Cast(source=source.storage_dtype, target=target.storage_dtype)
        return (cast,), cast_bound(source.traits, target), source.traits.largest > target.traits.largest
    ops: list[ElementOp] = []
    middle = source.storage_dtype
    if source.quant is not None:
        ops.append(_dequantise(source, source.quant))
        middle = StorageDtype.F32
    if target.quant is not None:
        ops.append(_quantise(target, target.quant))
        return tuple(ops), quantise_bound(target, target.quant), target.quant.static
    if middle is not target.storage_dtype:
        ops.append(Cast(source=middle, target=target.storage_dtype))
    return tuple(ops), cast_bound(None, target), target.storage_dtype is not StorageDtype.F32


def _rebias(source: Encoding, target: Encoding) -> int | None:
    """The exponent by which a scale that travels takes up the difference of two e4m3 encodings, if it can."""
    a, b = source.quant, target.quant
    family = source.storage_dtype in _E4M3 and target.storage_dtype in _E4M3
    if not family or source.storage_dtype is target.storage_dtype or a is None or b is None:
        return None
    if a.granularity not in IN_POOL or (a.granularity, a.block, a.scale_dtype) != (
        b.granularity,
        b.block,
        b.scale_dtype,
    ):
        return None
    if a.static or b.static or a.scale_dtype is not StorageDtype.F32:
        return None
    ratio = source.traits.largest / target.traits.largest
    return max(0, math.ceil(math.log2(ratio)))


def _same_but_nibbles(source: Encoding, target: Encoding) -> bool:
    return (source.storage_dtype, source.quant, source.transform) == (
        target.storage_dtype,
        target.quant,
        target.transform,
    )


def _dequantise(encoding: Encoding, quant: Quant) -> Dequantise:
    return Dequantise(source=encoding.storage_dtype, granularity=quant.granularity, static=quant.static)


def _quantise(encoding: Encoding, quant: Quant) -> Quantise:
    return Quantise(
        target=encoding.storage_dtype,
        granularity=quant.granularity,
        scale_dtype=quant.scale_dtype,
        static=quant.static,
    )
