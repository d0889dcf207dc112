"""A model on paper: KV as a function of the tokens up to a position, and the next token as one of all KV before it.

So one wrong byte of KV, read while decoding, changes the answer; and the right answer is known without any engine.
Values are small whole numbers, exact in every encoding that the forms use: converting loses nothing.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isthmus.kernels.mixing import mix64

__all__ = ["FIELDS", "HEADS", "HEAD_SIZE", "LAYERS", "TOKENS_MAX", "Values", "answer", "history", "kv", "next_token"]

LAYERS: Final = 2
HEADS: Final = 2
HEAD_SIZE: Final = 4
FIELDS: Final = ("key", "value")
TOKENS_MAX: Final = 64
VOCABULARY: Final = 1 << 20

Values = NDArray[np.float32]
"""KV as numbers: [fields, layers, tokens, heads, head size]."""

_SHAPE = (len(FIELDS), LAYERS, 1, HEADS)
_KEYS = np.array([mix64(7 + index) for index in range(len(FIELDS) * LAYERS * HEADS)], np.uint64).reshape(_SHAPE)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_START: Final = 0x1D872B41


def history(token_ids: Sequence[int], before: int = _START) -> list[int]:
    """A number for each position that stands for all tokens up to it; `before` is the number of the position before."""
    numbers = []
    for token in token_ids:
        before = mix64(before ^ (token + 1) * 0xD1342543DE82EF95)
        numbers.append(before)
    return numbers


def kv(numbers: Sequence[int]) -> Values:
    """The KV of positions, by their numbers."""
    mixed = (np.array(numbers, np.uint64)[None, None, :, None] ^ _KEYS) * _ODD
    bytes_ = mixed.view(np.int8).reshape(*mixed.shape, 8)
    values: Values = bytes_[..., 8 - HEAD_SIZE :].astype(np.float32)
    return values


def next_token(values: Values, index: int) -> int:
    """The token that follows, as number `index` of the answer, from all KV before it."""
    # NaN and -0 count: it is bytes that are hashed, in one fixed order.
    return zlib.crc32(np.ascontiguousarray(values).data, index) % VOCABULARY


@lru_cache(maxsize=1024)
def answer(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """What the model says to a prompt."""
    numbers = history(prompt)
    tokens: list[int] = []
    for index in range(max_tokens):
        tokens.append(next_token(kv(numbers), index))
        numbers += history(tokens[-1:], numbers[-1])
    return tuple(tokens)
