"""Strided views on flat regions: the address formula of `state.addressing`, as torch sees it."""

import torch
from torch import Tensor

from isthmus.core.errors import Unsupported
from isthmus.state.digits import Axis
from isthmus.state.fields import FieldAddress

__all__ = ["field_view"]

_UNITS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


def field_view(
    region: Tensor,
    field: FieldAddress,
    *,
    layers: int,
    num_blocks: int,
    block_size: int,
    head: int,
    num_heads: int,
) -> Tensor:
    """One field of the heads [head, head + num_heads) of a shard.

    Args:
        region: flat uint8, dense: [outer * num_blocks * block_bytes].

    Returns:
        A view [layers, num_blocks, block_size, num_heads, units], in the widest integer unit that divides every
        stride, so that gathers and scatters move words and not bytes.

    Raises:
        Unsupported: the field's rows are not runs of bytes.
    """
    if not field.contiguous:
        raise Unsupported(f"interior: rows of {field.name} are not runs of bytes; wanted row", field="interior")
    strides = []
    for axis in (Axis.LAYER, Axis.BLOCK, Axis.TOKEN, Axis.HEAD):
        stride = field.stride(axis)
        assert stride is not None
        strides.append(stride.at(num_blocks))
    offset = field.offset.at(num_blocks) + head * strides[3]
    measures = (*strides, offset, field.row_bytes, region.numel())
    width, dtype = next((width, dtype) for width, dtype in _UNITS if all(measure % width == 0 for measure in measures))
    units = region.view(dtype)
    return units.as_strided(
        (layers, num_blocks, block_size, num_heads, field.row_bytes // width),
        (*(stride // width for stride in strides), 1),
        units.storage_offset() + offset // width,
    )
