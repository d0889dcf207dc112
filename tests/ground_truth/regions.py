"""Reads memory by a description and nothing else, where each component has a region of its own (`two_tensors`)."""

import numpy as np

from isthmus.kernels.reference import gather
from isthmus.kernels.reference_codec import decode
from isthmus.state.fields import FieldAddress
from isthmus.state.plan import Runs
from isthmus.state.representation import Component, GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation

Values = dict[str, np.ndarray]
"""By component's name: f32 [L, T, H, D]."""


def read_regions(
    representation: KVRepresentation, regions: dict[str, np.ndarray], places: list[int], extent: int
) -> Values:
    """`key` and `value`, in the model's order of elements, of one rank.

    Args:
        regions: flat uint8, by component.
        places: of each token, where among the pool's `extent` places for tokens it is.
    """
    found = {}
    for group, (shard,) in zip(representation.groups, representation.address(), strict=True):
        assert extent % group.block_size == 0
        for part in group.components:
            field, region = shard.field(part.name), regions[part.name]
            size = shard.regions[field.region].size_bytes(extent // group.block_size)
            assert size == region.nbytes, f"{part.name}: the description accounts for {size} of {region.nbytes} bytes"
            scales = None
            if part.encoding.quant is not None:
                scales = _rows(group, shard.field(f"{part.name}_scale"), region, places, extent)
            values = decode(_rows(group, field, region, places, extent), part.encoding, scales)
            found[part.name] = in_model_order(values, part)
    return found


def _rows(
    group: GroupRepresentation, field: FieldAddress, region: np.ndarray, places: list[int], extent: int
) -> np.ndarray:
    index = np.asarray(places, dtype=np.int64)
    runs = Runs(field=field, head=0, num_heads=field.heads, head_start=0)
    blocks, slots = index // group.block_size, index % group.block_size
    return gather(region, runs, range(group.num_layers), blocks, slots, extent // group.block_size)


def in_model_order(values: np.ndarray, part: Component) -> np.ndarray:
    """Undo a component's rotation, then its order of elements."""
    if part.encoding.transform != "none":
        name, size = part.encoding.transform.split(":")
        assert name == "hadamard"
        values = (values.reshape(*values.shape[:-1], -1, int(size)) @ hadamard(int(size))).reshape(values.shape)
    if part.element_order == "rope_pairs":
        pairs = values.reshape(*values.shape[:-1], part.count // 2, 2)
        values = np.swapaxes(pairs, -1, -2).reshape(values.shape)
    return values


def hadamard(size: int) -> np.ndarray:
    """The orthonormal Walsh-Hadamard matrix, its own inverse: f32 [size, size]."""
    found = np.ones((1, 1), np.float32)
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found / np.float32(size) ** np.float32(0.5)
