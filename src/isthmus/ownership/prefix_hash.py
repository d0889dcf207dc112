"""Names of prefixes: a chain of keyed hashes, one for each full block of tokens.

    root  = H(salt, identity)                     model lineage, weights, RoPE, adapter, multimodal content
    block = H(salt, parent's hash, token ids)     the parent of the first block is the root

The key is the tenant's, made from a secret of the deployment and never from anything a client sends. So equal prompts
of two tenants have unlike names, nobody outside can compute the name of a prompt to ask whether it is held, and nobody
can look for two prompts of one name (I7). BLAKE2b keyed, 128 bits: xxHash is faster but has no key worth the name.

Refuses to know what is held, where, and for how long.
"""

import hashlib
import hmac

import msgspec

from isthmus.core.errors import Bug
from isthmus.core.ids import TenantId
from isthmus.state.identity import Identity
from isthmus.state.tokens import TOKEN_BYTES

__all__ = ["HASH_BYTES", "SECRET_BYTES_MIN", "block_hashes", "prefix_root", "tenant_salt"]

HASH_BYTES = 16
SECRET_BYTES_MIN = 16
_ROOT, _BLOCK = b"isthmus root", b"isthmus block"  # BLAKE2b's `person`: a root is never a block's hash

_encoder = msgspec.msgpack.Encoder()


def tenant_salt(secret: bytes, tenant: TenantId) -> bytes:
    """The 256-bit key of one tenant's prefixes. `secret` is the deployment's and stays inside it."""
    if len(secret) < SECRET_BYTES_MIN:
        raise Bug(f"secret: {len(secret)} bytes, wanted at least {SECRET_BYTES_MIN}", field="secret")
    return hmac.digest(secret, b"isthmus tenant\0" + tenant.encode(), "sha256")


def prefix_root(identity: Identity, *, salt: bytes) -> bytes:
    """The parent of a first block: all that KV of the same tokens may differ by, under the tenant's key."""
    return hashlib.blake2b(_encoder.encode(identity), digest_size=HASH_BYTES, key=salt, person=_ROOT).digest()


def block_hashes(tokens: bytes, block_size: int, *, salt: bytes, parent: bytes = b"") -> tuple[bytes, ...]:
    """The hash of every full block of packed `tokens`, each covering all blocks before it; a last partial one has none.

    `parent` is `prefix_root` for a prompt from its start, or the hash of the block before the first token given.

    Raises:
        Bug: no block size, no salt, or a parent that is no hash of this module.
    """
    if block_size < 1 or not salt or len(parent) not in (0, HASH_BYTES):
        raise Bug(
            f"prefix: block_size {block_size}, {len(salt)} bytes of salt, {len(parent)} of parent", field="parent"
        )
    ids, step = memoryview(tokens), block_size * TOKEN_BYTES
    found: list[bytes] = []
    for start in range(0, len(ids) - step + 1, step):
        # The parent's length is fixed but for "no parent", which a block of other tokens must not be able to imitate.
        state = hashlib.blake2b(bytes((len(parent),)), digest_size=HASH_BYTES, key=salt, person=_BLOCK)
        state.update(parent)
        state.update(ids[start : start + step])
        parent = state.digest()
        found.append(parent)
    return tuple(found)
