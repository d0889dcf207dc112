"""Token ids as one string of little-endian 32-bit words: how they are held, sent and digested.

Packed, because a long prompt is checked, copied and digested as one value then, and not id by id.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterable

from isthmus.core.errors import BadInput

__all__ = ["TOKEN_BYTES", "pack_tokens", "tokens_digest", "unpack_tokens", "well_packed"]

TOKEN_BYTES = 4
_BIG = sys.byteorder == "big"


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    """The ids as words.

    Raises:
        BadInput: one is not a 32-bit word.
    """
    try:
        words = array("I", token_ids)
    except (OverflowError, TypeError) as error:
        raise BadInput(f"token_ids: {error}", field="token_ids") from None
    if words.itemsize != TOKEN_BYTES:  # pragma: no cover - no such platform is supported
        raise BadInput("token_ids: array('I') is not 32 bits wide here", field="token_ids")
    if _BIG:
        words.byteswap()
    return words.tobytes()


def unpack_tokens(tokens: bytes) -> tuple[int, ...]:
    """The ids of whole words."""
    words = array("I", tokens)
    if _BIG:
        words.byteswap()
    return tuple(words)


def well_packed(tokens: bytes) -> bool:
    """Whether these are whole words, each below 2**31, as a token id is.

    A word is below 2**31 where the top bit of its last byte is clear: then those bytes, every fourth, are ASCII. So all
    ids are looked at in one pass.
    """
    return len(tokens) % TOKEN_BYTES == 0 and tokens[TOKEN_BYTES - 1 :: TOKEN_BYTES].isascii()


def tokens_digest(tokens: bytes) -> str:
    """SHA-256 over packed ids, in hex: what a KV state is the state of."""
    return hashlib.sha256(tokens).hexdigest()
