"""Comparing grants, and who may be believed under one."""

import hmac

from isthmus.core.ids import GrantId

__all__ = ["same_grant"]


def same_grant(one: GrantId, other: GrantId) -> bool:
    """Constant-time, so that a grant cannot be guessed byte by byte."""
    return hmac.compare_digest(one.encode(), other.encode())
