"""Reads a pool's memory by a description and nothing else."""

from collections.abc import Sequence

import numpy as np

from isthmus.kernels.binding import bind_side
from isthmus.kernels.reference import gather
from isthmus.kernels.reference_codec import decode
from isthmus.state.identity import TokenRange
from isthmus.state.plan import Runs
from isthmus.state.runtime_kv_state import KVRepresentation


def read_kv(
    representation: KVRepresentation, storage: np.ndarray, block_ids: Sequence[int], num_blocks: int, tokens: int
) -> dict[str, np.ndarray]:
    """`key` and `value` as f32 [L, T, H, D], of one group on one rank whose one region is the flat uint8 `storage`."""
    (group,) = representation.groups
    ((shard,),) = representation.address()
    (region,) = shard.regions
    assert region.size_bytes(num_blocks) == storage.nbytes, "the description accounts for each byte"
    all_tokens = TokenRange(start=0, stop=tokens)
    side = bind_side(group, representation.partition, all_tokens, all_tokens, block_ids, num_blocks)
    found = {}
    for field in shard.fields:
        runs = Runs(field=field, head=0, num_heads=field.heads, head_start=0)
        raw = gather(storage, runs, range(group.num_layers), side.blocks, side.slots, num_blocks)
        encoding = group.component(field.name).encoding
        # A scale on the layer is not in the pool. Those that the description calls ones are.
        assert encoding.quant is None or encoding.quant.scale_values == "ones"
        with np.errstate(invalid="ignore"):
            found[field.name] = decode(raw, encoding)
    return found


def worst_rows(read: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """By layer, how far the worst row (a token and head) is off, relative to its norm; infinite where not a number."""
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.linalg.norm(read - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return np.nan_to_num(off, nan=np.inf).max(axis=(1, 2))
