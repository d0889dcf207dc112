"""Random representations, pools and block tables, shared by the property tests."""

import numpy as np
from hypothesis import strategies as st

from isthmus.state.addressing import address_shards
from isthmus.state.encoding import StorageDtype
from isthmus.state.representation import (
    GroupKind,
    GroupRepresentation,
    KvOrder,
    Layout,
    Partition,
    Quant,
    ScaleLocation,
)

ENCODINGS = [
    *((dtype, None) for dtype in StorageDtype if dtype is not StorageDtype.I8),
    *(
        (StorageDtype.I8, Quant(granularity="token_head", scale_dtype=StorageDtype.F32, scale_location=location))
        for location in ScaleLocation
    ),
]


@st.composite
def shapes(draw) -> dict:
    """The fields that both sides of a pair must share."""
    start = draw(st.integers(0, 3))
    return {
        "kind": GroupKind.FULL_ATTENTION,
        "layer_start": start,
        "layer_stop": start + draw(st.integers(1, 3)),
        "num_kv_heads": draw(st.sampled_from([1, 2, 3, 4, 6])),
        "head_size": (size := draw(st.sampled_from([1, 2, 3, 8, 16]))),
        "head_size_v": size,
    }


@st.composite
def sides(draw, shape: dict) -> tuple[GroupRepresentation, Partition]:
    """One side: everything that a worker may configure."""
    dtype, quant = draw(st.sampled_from(ENCODINGS))
    group = GroupRepresentation(
        **shape,
        block_size=draw(st.integers(1, 7)),
        layout=draw(st.sampled_from(Layout)),
        kv_order=draw(st.sampled_from(KvOrder)),
        storage_dtype=dtype,
        quant=quant,
    )
    heads = shape["num_kv_heads"]
    return group, Partition(tp_size=draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])))


@st.composite
def pairs(draw):
    """Two sides of one shape."""
    shape = draw(shapes())
    return draw(sides(shape)), draw(sides(shape))


def empty_regions(group: GroupRepresentation, partition: Partition, num_blocks: int) -> list[list[np.ndarray]]:
    """Flat regions by [rank][region], filled with a byte that no test writes on purpose."""
    return [
        [np.full(region.size_bytes(num_blocks), 0xA5, dtype=np.uint8) for region in shard.regions]
        for shard in address_shards(group, partition)
    ]


def block_table(rng: np.random.Generator, tokens: int, block_size: int, num_blocks: int) -> list[int]:
    """Enough distinct blocks for `tokens`, in random order."""
    return [int(block) for block in rng.permutation(num_blocks)[: -(-tokens // block_size)]]
