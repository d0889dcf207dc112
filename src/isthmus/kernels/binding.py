"""Binding a plan to two block tables: for each token, the block and the slot in it, on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.state.identity import TokenRange

__all__ = ["Binding", "Side", "bind", "bind_side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where tokens lie on one side: int64 [T] block ids and slots within the block, in a pool of `num_blocks`."""

    blocks: NDArray[np.int64]
    slots: NDArray[np.int64]
    num_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Both sides of `token_range`."""

    token_range: TokenRange
    producer: Side
    consumer: Side


def bind_side(token_range: TokenRange, block_ids: Sequence[int], block_size: int, num_blocks: int) -> Side:
    """Locate tokens, where `block_ids[0]` is the block that holds token `token_range.start`.

    Raises:
        ValueError: the table is too short, or names a block outside the pool.
    """
    first = token_range.start // block_size
    tokens = np.arange(token_range.start, token_range.stop, dtype=np.int64)
    index = tokens // block_size - first
    table = np.asarray(block_ids, dtype=np.int64)
    if len(table) <= index[-1]:
        raise ValueError(f"block_ids: got {len(table)}, wanted at least {index[-1] + 1} of {block_size} tokens")
    if table.min() < 0 or table.max() >= num_blocks:
        raise ValueError(f"block_ids: got one outside the pool of {num_blocks} blocks")
    return Side(blocks=table[index], slots=tokens % block_size, num_blocks=num_blocks)


def bind(
    token_range: TokenRange,
    *,
    producer_blocks: Sequence[int],
    producer_block_size: int,
    producer_num_blocks: int,
    consumer_blocks: Sequence[int],
    consumer_block_size: int,
    consumer_num_blocks: int,
) -> Binding:
    """Bind a token range to both block tables. Raises ValueError as `bind_side`."""
    return Binding(
        token_range=token_range,
        producer=bind_side(token_range, producer_blocks, producer_block_size, producer_num_blocks),
        consumer=bind_side(token_range, consumer_blocks, consumer_block_size, consumer_num_blocks),
    )
