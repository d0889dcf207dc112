"""The base of every type that crosses a wire: frozen, keyword-only, unknown fields refused, checked once at birth."""

from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta

from isthmus.core.limits import NAME_CHARS_MAX

__all__ = ["GRANT_TOKEN", "NAME", "TOKEN", "GrantToken", "Name", "Token", "WireStruct", "refuse", "require"]

NAME = Meta(min_length=1, max_length=NAME_CHARS_MAX)
"""A name that must be there."""

TOKEN = Meta(pattern=r"^[0-9a-f]{32}\Z")
"""A 128-bit id, as `core.clock.Clock.token` mints it."""

GRANT_TOKEN = Meta(pattern=r"^[0-9a-f]{32}(?:[0-9a-f]{32})?\Z")
"""A grant, as `ownership.capability.mint` makes it: a 128-bit id and the tag that binds it to what it is for. A peer of
schema version 2 makes the id alone.
"""

Name = Annotated[str, NAME]
Token = Annotated[str, TOKEN]
GrantToken = Annotated[str, GRANT_TOKEN]


class WireStruct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value that msgspec encodes. Subclasses check themselves in `__post_init__` with `require`.

    They repeat `frozen=True, kw_only=True`: msgspec does not inherit the second, mypy not the first.
    """


def require(condition: bool, field: str, got: object, wanted: str) -> None:
    """Raise ValueError naming the field, the value and what would be right. msgspec turns it into a ValidationError."""
    if not condition:
        refuse(field, got, wanted)


def refuse(field: str, got: object, wanted: str) -> NoReturn:
    """As `require` does: where a check runs at every message, its words should be made only when it fails."""
    raise ValueError(f"{field}: got {got!r}, wanted {wanted}")
