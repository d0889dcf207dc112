"""A grant is a capability: its holder may read these blocks, at this epoch, as this life of this worker; no more.

    grant = id, 128 random bits | tag, HMAC-SHA-256 cut to 128 bits     64 hex digits on the wire
    tag   = HMAC(secret, id, hand-off, epoch, tenant, owner's life, holder's life, digest of the block ids)

The secret is drawn by one life of one worker and dies with it: no grant outlives the ledger that it speaks of. The tag
is checked over what a peer presents and what our own record says, beside the lookup and not instead of it, so that
neither a guess, nor a grant presented by another, nor a table of ours gone wrong opens blocks to anybody.

Pure. Refuses to know the ledger, leases and the network.
"""

import hashlib
import hmac
import sys
from array import array
from collections.abc import Sequence

import msgspec

from isthmus.core.clock import Clock
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId

__all__ = ["Claims", "Key", "check", "digest_of_blocks", "draw_key", "mint"]

ID_CHARS = TAG_CHARS = 32

_encoder = msgspec.msgpack.Encoder()


class Claims(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All that a grant is for. `blocks` is `digest_of_blocks` of them, in their order."""

    handoff: HandoffId
    epoch: Epoch
    tenant: TenantId
    owner: WorkerId
    owner_incarnation: Incarnation
    holder: WorkerId
    holder_incarnation: Incarnation
    blocks: bytes


Key = hmac.HMAC
"""A secret, ready to tag: each tag begins with a copy."""


def draw_key(clock: Clock) -> Key:
    """256 bits for one life of one worker. Never stored, never sent."""
    return hmac.new(bytes.fromhex(clock.token() + clock.token()), digestmod="sha256")


def digest_of_blocks(blocks: Sequence[int]) -> bytes:
    """128 bits over block ids in their order. Fast: it is taken again at each read."""
    ids = array("Q", blocks)
    if sys.byteorder == "big":
        ids.byteswap()
    return hashlib.blake2b(ids, digest_size=16).digest()


def mint(key: Key, id_: str, claims: Claims) -> GrantId:
    """The grant for `claims`. `id_` is 32 hex digits of `Clock.token`, new for each."""
    return GrantId(id_ + _tag(key, id_, claims))


def check(key: Key, grant: GrantId, claims: Claims) -> bool:
    """Whether `grant` was minted under `key` for exactly these claims."""
    id_, tag = grant[:ID_CHARS], grant[ID_CHARS:]
    # Constant-time, so that a tag cannot be guessed byte by byte. As bytes: a peer's text need not be ASCII.
    return hmac.compare_digest(tag.encode(), _tag(key, id_, claims).encode())


def _tag(key: Key, id_: str, claims: Claims) -> str:
    tagging = key.copy()
    tagging.update(_encoder.encode((id_, claims)))  # lengths are in it: no two claims have one encoding
    return tagging.hexdigest()[:TAG_CHARS]
