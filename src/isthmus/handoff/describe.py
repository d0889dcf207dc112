"""Offered: parse the producer's manifest, and hold it against what was asked for."""

from isthmus.core.errors import ManifestInvalid
from isthmus.handoff.stages import Filled, Offered
from isthmus.state.manifest import decode_manifest
from isthmus.state.tokens import tokens_digest

__all__ = ["describe"]


def describe(filled: Filled) -> Offered:
    """The state that is on offer.

    Raises:
        ManifestInvalid: it does not parse, or is about another hand-off, owner, or prompt than the one asked for.
    """
    placed = filled.reserved.placed
    state = decode_manifest(filled.reply.manifest)
    token_ids = placed.request.token_ids
    for field, got, wanted in (
        ("ownership.handoff", state.ownership.handoff_id(), filled.reserved.handoff),
        ("ownership.owner", state.ownership.worker(), placed.producer),
        ("ownership.incarnation", state.ownership.life(), placed.producer_incarnation),
        ("ownership.tenant", state.ownership.tenant_id(), placed.request.tenant_id()),  # I7
        (
            "token_range",
            (state.token_range.start, state.token_range.stop),
            (filled.reserved.have_tokens, len(token_ids)),
        ),
        ("tokens_digest", state.tokens_digest, tokens_digest(token_ids)),
    ):
        if got != wanted:
            raise ManifestInvalid(f"{field}: got {got!r}, wanted {wanted!r} as asked for", field=field)
    return Offered(filled=filled, state=state)
