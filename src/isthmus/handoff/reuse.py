"""One side's way to the prefixes that it has kept: what a request's blocks are called, and which of them are here.

A name says all that the KV of a block may differ by: tenant (I7), identity, the tokens up to its end, and the elements'
encoding as the producer filled them, since a consumer that converts keeps what came of that. Layouts, block sizes on
the other side, and shards are not in it: they change where a row lies and not what it says.

Only whole blocks are shared, and at least the prompt's last token is always computed anew: it is what the next token
is sampled from, and it needs a block that nobody else has.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from isthmus.core.errors import Unsupported
from isthmus.core.ids import BlockId, Digest, HandoffId
from isthmus.handoff.request import Request
from isthmus.handoff.tiers import Tiers
from isthmus.ownership.prefix_cache import Pinned, PrefixCache
from isthmus.ownership.prefix_hash import HASH_BYTES, block_hashes, prefix_root, tenant_salt
from isthmus.state.identity import Identity
from isthmus.state.representation import GroupKind
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Reuse", "reusable"]

_REUSABLE = (GroupKind.FULL_ATTENTION, GroupKind.MLA)
_FORMS_KEPT = 256

_encoder = msgspec.msgpack.Encoder()


def reusable(representation: KVRepresentation) -> bool:
    """Whether a prefix's blocks alone are all that is needed to go on behind it.

    Not for groups with a state (Mamba, GDN): it is of the whole sequence and not of a block, so to go on at a token
    takes the checkpoint of the state at that very token, which nobody keeps. Not for windows, whose blocks behind the
    window are given up while the prompt goes on; and not where tokens are dealt to several ranks, or groups are
    several, so that blocks are not the same tokens everywhere.
    """
    groups = representation.groups
    return (
        len(groups) == 1
        and groups[0].kind in _REUSABLE
        and groups[0].tokens_per_state == 1
        and representation.partition.dcp_size == 1
    )


class Reuse:
    """`own` is how this side stores KV. Without a cache nothing is found and nothing kept.

    Raises:
        Unsupported: there is a cache, and prefixes of this representation cannot be reused.
    """

    def __init__(
        self,
        own: KVRepresentation,
        cache: PrefixCache | None = None,
        *,
        secret: bytes = b"",
        tiers: Tiers | None = None,
    ) -> None:
        if cache is not None and not reusable(own):
            raise Unsupported(
                f"prefix_caching: groups {', '.join(group.kind for group in own.groups)} cannot go on behind a prefix",
                field="prefix_caching",
            )
        self._cache = cache
        self._tiers = tiers
        self._secret = secret
        self.block_size = own.groups[0].block_size
        self._forms: dict[KVRepresentation, bytes] = {}

    @property
    def on(self) -> bool:
        """Whether anything is ever kept."""
        return self._cache is not None

    def names(self, request: Request, identity: Identity, filled_as: KVRepresentation) -> tuple[bytes, ...]:
        """The names of all whole blocks of a request's tokens, of KV that is filled in the form `filled_as`."""
        if self._cache is None:
            return ()
        salt = tenant_salt(self._secret, request.tenant)
        root = prefix_root(identity, salt=salt) + self._form(filled_as)
        parent = hashlib.blake2b(root, digest_size=HASH_BYTES, key=salt).digest()
        return block_hashes(request.tokens, self.block_size, salt=salt, parent=parent)

    async def bring_back(self, request: Request, names: tuple[bytes, ...]) -> None:
        """Have what lies further out where it can be used. Whatever fails only means that more is to be computed."""
        if self._cache is None or self._tiers is None:
            return
        usable = self._usable(request, names)
        matched = self._cache.match(usable)
        if matched < len(usable):
            await self._tiers.promote(usable, matched, label=self._label(request), tenant=request.tenant)

    def here(self, request: Request, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Those from the first on that are here now, and may be used for this request."""
        if self._cache is None:
            return ()
        usable = self._usable(request, names)
        return usable[: self._cache.match(usable)]

    def begun(self, handoff: HandoffId) -> Pinned:
        """What a hand-off that has been reserved uses; counted."""
        if self._cache is None:
            return Pinned()
        pinned = self._cache.pinned(handoff)
        self._cache.seen(len(pinned.blocks))
        return pinned

    def keep(
        self,
        handoff: HandoffId,
        request: Request,
        names: tuple[bytes, ...],
        own_blocks: Sequence[BlockId],
        *,
        token_digests: Sequence[Digest] = (),
        made_in_ms: float,
    ) -> None:
        """The KV of a hand-off's own blocks is whole: retain it when the hand-off ends.

        `token_digests` are of its own tokens, those behind the prefix; `made_in_ms` is what all its own blocks took.
        """
        if self._cache is None:
            return
        first = len(self._cache.pinned(handoff).blocks)
        digests = [
            tuple(token_digests[place * self.block_size : (place + 1) * self.block_size])
            for place in range(len(names) - first if token_digests else 0)
        ]
        self._cache.offer(
            handoff,
            names,
            own_blocks,
            label=self._label(request),
            digests=digests,
            recompute_ms=made_in_ms / max(1, len(own_blocks)),
        )

    def _usable(self, request: Request, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return names[: (request.num_tokens - 1) // self.block_size]

    def _label(self, request: Request) -> bytes:
        """Which tenant's a block is: no secret, and it says nothing to who does not know the salt."""
        salt = tenant_salt(self._secret, request.tenant)
        return hashlib.blake2b(salt, digest_size=HASH_BYTES).digest()

    def _form(self, representation: KVRepresentation) -> bytes:
        """What rows say, whatever the place they lie in: layers, and each component's encoding."""
        if representation not in self._forms:
            if len(self._forms) >= _FORMS_KEPT:
                self._forms.clear()
            says = [(group.kind, group.layers, group.components) for group in representation.groups]
            self._forms[representation] = hashlib.blake2b(_encoder.encode(says), digest_size=HASH_BYTES).digest()
        return self._forms[representation]
