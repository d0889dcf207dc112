"""The digest of token ids: what a KV state is the state of."""

import hashlib
import sys
from array import array
from collections.abc import Sequence

__all__ = ["tokens_digest"]


def tokens_digest(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids as little-endian 32-bit words, in hex."""
    words = array("I", token_ids)
    if words.itemsize != 4:  # pragma: no cover - no such platform is supported
        raise OverflowError("array('I') is not 32 bits wide here")
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.sha256(words.tobytes()).hexdigest()
