"""Logical digests of tensors, on any device. `reference.row_hashes` is the definition.

Every word of a row is mixed by a strong bijection under its own key, the words of a row are summed, and the sum is
mixed again under the row's position. So one wrong word, or one row in the wrong place, always changes the digest, and
several do with all but a chance of 2**-64. The digest of a state is the sum over its rows, and does not depend on how
they are laid out or split. It detects accidents, not adversaries: whoever can choose bytes can find a second preimage.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from isthmus.core.ids import Digest
from isthmus.kernels.mixing import SPLIT_A, SPLIT_B, signed, word_keys

__all__ = ["fold", "row_digests", "tensor_digests", "warm_up"]


def row_digests(
    raw: Tensor,
    *,
    field_index: int,
    layers: Sequence[int],
    token_start: int,
    head_start: int,
    key: int = 0,
) -> Tensor:
    """Digest per token.

    Args:
        raw: uint8 [L, T, H, row_bytes], the encoded rows of one field.
        field_index: the field's index in `state.representation.FIELD_NAMES`.
        layers: the model's number of each layer in `raw`.
        token_start, head_start: logical position of raw[:, 0, 0].
        key: sets digests of one hand-off apart from another's; no secret, see above.

    Returns:
        int64 [T]: the sum over layers and heads of the row hashes, modulo 2**64.
    """
    if raw.device.type == "cpu":
        from isthmus.kernels import cpu_digest  # compiles: only where it is used

        sums = cpu_digest.row_digests(
            raw.numpy(), field_index=field_index, layers=layers, token_start=token_start, head_start=head_start, key=key
        )
        return torch.from_numpy(sums.view(np.int64))
    return tensor_digests(
        raw, field_index=field_index, layers=layers, token_start=token_start, head_start=head_start, key=key
    )


def warm_up(device: torch.device) -> None:
    """Have ready what digests on `device` need. Loading what is compiled takes a second or more, and stops the other
    threads of the process meanwhile: it is to happen before a worker is a member, not in its first request.
    """
    word = torch.zeros((1, 1, 1, 8), dtype=torch.uint8, device=device)
    row_digests(word, field_index=0, layers=(0,), token_start=0, head_start=0)


def fold(per_token: Tensor) -> Digest:
    """The digest of a token range: the sum of its per-token digests, as an unsigned number."""
    return Digest(int(per_token.sum().item()) % (1 << 64))


def tensor_digests(
    raw: Tensor, *, field_index: int, layers: Sequence[int], token_start: int, head_start: int, key: int
) -> Tensor:
    """In tensor operations, for any device. torch has no unsigned 64-bit arithmetic: int64 wraps to the same bits."""
    _, tokens, heads, row_bytes = raw.shape
    words = -(-row_bytes // 8)
    if row_bytes % 8:
        raw = torch.nn.functional.pad(raw, (0, words * 8 - row_bytes))
    rows = _mix(raw.contiguous().view(torch.int64) ^ _keys(words, raw.device)).sum(dim=-1)

    def index(start: int, extent: int, shift: int) -> Tensor:
        return torch.arange(start, start + extent, dtype=torch.int64, device=raw.device) << shift

    layer = torch.tensor(layers, dtype=torch.int64, device=raw.device) << 14

    position = (
        layer[:, None, None]
        | index(token_start, tokens, 24)[None, :, None]
        | index(head_start, heads, 4)[None, None, :]
        | field_index
    )
    return _mix(rows + _mix(position ^ signed(key))).sum(dim=(0, 2))


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser, a bijection on 64 bits. Shifts are logical: the sign bits are masked away."""
    value = ((value >> 30) & ((1 << 34) - 1)).bitwise_xor_(value).mul_(signed(SPLIT_A))
    value = ((value >> 27) & ((1 << 37) - 1)).bitwise_xor_(value).mul_(signed(SPLIT_B))
    return ((value >> 31) & ((1 << 33) - 1)).bitwise_xor_(value)


@lru_cache(maxsize=256)
def _keys(words: int, device: torch.device) -> Tensor:
    return torch.tensor([signed(word) for word in word_keys(words)], dtype=torch.int64, device=device)
