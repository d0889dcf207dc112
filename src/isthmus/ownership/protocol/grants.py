"""Comparing grants, and who may be believed under one."""

import hmac

from isthmus.core.ids import Epoch, GrantId
from isthmus.ownership.protocol.effects import Refusal
from isthmus.ownership.protocol.states import SourceHandoff

__all__ = ["refusal", "same_grant"]


def same_grant(one: GrantId, other: GrantId) -> bool:
    """Constant-time, so that a grant cannot be guessed byte by byte."""
    return hmac.compare_digest(one.encode(), other.encode())


def refusal(state: SourceHandoff, grant: GrantId, epoch: Epoch, *, is_holder: bool) -> Refusal | None:
    """Why a message under a grant is not to be believed; None when it is the holder's, of this very grant."""
    if state.grant is None or not same_grant(grant, state.grant):
        return Refusal.GRANT_UNKNOWN
    if not is_holder:
        return Refusal.NOT_AUTHORISED
    return None if epoch == state.epoch else Refusal.STALE_EPOCH
