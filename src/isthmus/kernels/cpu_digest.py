"""Logical digests on the CPU, compiled: one pass over the bytes, at the speed of memory. Definition: `reference`.

Words are mixed in vector registers and never written back, so that a digest reads each byte once and writes nothing
but a sum per token. Gives up the interpreter lock: a worker's other threads go on.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from isthmus.kernels.mixing import MASK64, SPLIT_A, SPLIT_B, word_keys

__all__ = ["row_digests"]

_A, _B = np.uint64(SPLIT_A), np.uint64(SPLIT_B)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_TOKEN, _LAYER, _HEAD = np.uint64(24), np.uint64(14), np.uint64(4)


@njit(inline="always")
def _mix(value: Any) -> Any:
    value = (value ^ (value >> _30)) * _A
    value = (value ^ (value >> _27)) * _B
    return value ^ (value >> _31)


@njit(nogil=True, cache=True)
def _sum_rows(
    words: Any, keys: Any, layers: Any, token_start: Any, head_start: Any, field_index: Any, key: Any, sums: Any
) -> None:
    for layer in range(words.shape[0]):
        for token in range(words.shape[1]):
            total = np.uint64(0)
            for head in range(words.shape[2]):
                row = np.uint64(0)
                for word in range(words.shape[3]):
                    row += _mix(words[layer, token, head, word] ^ keys[word])
                place = ((token_start + np.uint64(token)) << _TOKEN) | (layers[layer] << _LAYER)
                place |= ((head_start + np.uint64(head)) << _HEAD) | field_index
                total += _mix(row + _mix(place ^ key))
            sums[token] += total


def row_digests(
    raw: NDArray[np.uint8],
    *,
    field_index: int,
    layers: Sequence[int],
    token_start: int,
    head_start: int,
    key: int = 0,
) -> NDArray[np.uint64]:
    """As `torch_digest.row_digests`: uint8 [L, T, H, row_bytes] to uint64 [T]."""
    row_bytes = raw.shape[-1]
    words = -(-row_bytes // 8)
    if row_bytes % 8:
        raw = np.pad(raw, ((0, 0), (0, 0), (0, 0), (0, words * 8 - row_bytes)))
    sums = np.zeros(raw.shape[1], dtype=np.uint64)
    _sum_rows(
        np.ascontiguousarray(raw).view("<u8"),
        _keys(words),
        np.asarray(layers, dtype=np.uint64),
        np.uint64(token_start),
        np.uint64(head_start),
        np.uint64(field_index),
        np.uint64(key & MASK64),
        sums,
    )
    return sums


@lru_cache(maxsize=256)
def _keys(words: int) -> NDArray[np.uint64]:
    return np.array(word_keys(words), dtype=np.uint64)
