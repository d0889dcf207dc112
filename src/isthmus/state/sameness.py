"""When are two descriptions the same? When they place every element in the same bytes, with the same meaning.

`placement_of` is a normal form: equal for two descriptions exactly if they are the same in this sense, whatever names
they use. (K and V as two slots, or on an axis of their own inside the layer, can be the same bytes; so can all layouts
that differ in an axis of extent one.) Block ids are names, so a block size is part of it.
"""

import msgspec

from isthmus.state.addressing import address_rank, stage_of
from isthmus.state.digits import canonical
from isthmus.state.encoding import Encoding, Granularity, Quant, ScaleLocation, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupRepresentation

__all__ = ["meaning_of", "placement_of", "same_placement"]


def placement_of(group: GroupRepresentation, partition: Partition) -> tuple[object, ...]:
    """The normal form of a description: hashable, comparable, no names of layouts in it."""
    components = [
        (c.name, c.heads, c.count, meaning_of(c.encoding, c.heads, c.count), c.element_order) for c in group.components
    ]
    return (
        group.kind,
        group.layers,
        group.block_size,
        group.sliding_window,
        group.tokens_per_state,
        group.interior if group.opaque else "",
        (group.layout, group.kv_order) if group.opaque else "",
        partition,
        tuple(sorted(components, key=lambda part: part[0])),
        _where(group, partition),
    )


def same_placement(
    ours: GroupRepresentation, our_partition: Partition, theirs: GroupRepresentation, their_partition: Partition
) -> bool:
    """Whether two groups put the same components of the same layers into the same bytes. Meanings are not compared."""
    if ours.opaque or theirs.opaque:
        return ours == theirs and our_partition == their_partition
    if _extents(ours, our_partition) != _extents(theirs, their_partition):
        return False
    return _where(ours, our_partition) == _where(theirs, their_partition)


def _extents(group: GroupRepresentation, partition: Partition) -> tuple[object, ...]:
    """What is cheap to compare, and must be equal for two placements to be."""
    stored = sorted((part.name, part.heads, part.count, part.encoding.storage_dtype) for part in group.components)
    return (partition.tp_size, partition.pp_starts, group.layers, group.block_size, stored)


def meaning_of(encoding: Encoding, heads: int, count: int) -> Encoding:
    """An encoding without what does not change values: where scales lie, other names for the same sharing of scales,
    and scales that are all one.
    """
    quant = encoding.quant
    if quant is None:
        return encoding
    granularity, block = quant.granularity, quant.block
    if granularity is Granularity.BLOCK and block >= count:
        granularity, block = Granularity.TOKEN_HEAD, 0
    if granularity is Granularity.CHANNEL and count == 1:
        granularity = Granularity.HEAD
    if granularity is Granularity.HEAD and heads == 1:
        granularity = Granularity.TENSOR
    on_layer = quant.scale_location is ScaleLocation.LAYER_ATTR
    ones = quant.scale_values == "ones"
    if on_layer and ones and encoding.traits.exponent_bits:
        return msgspec.structs.replace(encoding, quant=None)
    plain = Quant(
        granularity=granularity,
        block=block,
        # Of scales on the layer, f32 values are known: how they are stored there does not matter.
        scale_dtype=StorageDtype.F32 if on_layer else quant.scale_dtype,
        scale_location=ScaleLocation.LAYER_ATTR if on_layer else ScaleLocation.SIDE_POOL,
        scale_values=quant.scale_values if on_layer or not ones else "",
        tensor_scale=quant.tensor_scale and not ones,
    )
    return msgspec.structs.replace(encoding, quant=plain)


def _where(group: GroupRepresentation, partition: Partition) -> tuple[object, ...]:
    """The canonical addresses of the first rank of each stage: the other ranks' are the same, for other heads."""
    found = []
    for stage in range(partition.pp_size):
        start, stop = stage_of(group, partition, stage)
        if start < stop:
            regions, fields = address_rank(group, partition.tp_size, stop - start)
            places = [
                (
                    *(field.name, regions[field.region], field.heads, field.count, field.storage_dtype, field.offset),
                    *canonical(field.digits),
                )
                for field, _ in fields
            ]
            found.append((start, stop, tuple(sorted(regions)), tuple(places)))
    return (partition.tp_size, partition.pp_starts, *found)
