"""Offered: parse the producer's manifest, and hold it against what was asked for."""

from isthmus.core.errors import ManifestInvalid
from isthmus.handoff.stages import Filled, Offered
from isthmus.state.manifest import decode_manifest
from isthmus.state.tokens import tokens_digest

__all__ = ["describe"]

_ASKED_FOR = (
    "ownership.handoff",
    "ownership.owner",
    "ownership.incarnation",
    "ownership.tenant",
    "token_range",
    "tokens_digest",
)


def describe(filled: Filled) -> Offered:
    """The state that is on offer.

    Raises:
        ManifestInvalid: it does not parse, or is about another hand-off, owner, or prompt than the one asked for.
    """
    placed = filled.reserved.placed
    state = decode_manifest(filled.reply.manifest)
    request, ownership = placed.request, state.ownership
    got = (
        ownership.handoff,
        ownership.owner,
        ownership.incarnation,
        ownership.tenant,  # I7
        (state.token_range.start, state.token_range.stop),
        state.tokens_digest,
    )
    wanted = (
        filled.reserved.handoff,
        placed.producer,
        placed.producer_incarnation,
        request.tenant,
        (filled.reserved.have_tokens, request.num_tokens),
        tokens_digest(request.tokens),
    )
    for field, one, other in zip(_ASKED_FOR, got, wanted, strict=True) if got != wanted else ():
        if one != other:
            raise ManifestInvalid(f"{field}: got {one!r}, wanted {other!r} as asked for", field=field)
    return Offered(filled=filled, state=state)
