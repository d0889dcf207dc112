"""The error tree: three kinds, and what each asks of whoever catches it.

    IsthmusError
    ├── Bug         ours: the process that raised it stops
    ├── Rejected    a user or peer asked for what cannot be: answer 4xx, refuse, and live on
    │   ├── BadInput, ConfigInvalid, ManifestInvalid, FrameInvalid
    │   ├── UnknownModel, UnknownHandoff, ContextTooLong, GateRefused, Unsupported, NotCovered
    │   ├── GrantUnknown, StaleEpoch, NotAuthorised, IncarnationFenced
    │   └── CapacityExceeded (try again later)
    │       └── QuotaExceeded (your own part is used up; others may still be served)
    └── Lost        the world failed: retry elsewhere or recompute
        ├── PeerLost, LeaseExpired, DeadlineExceeded, TransferFailed
        └── DigestMismatch, ConversionOutOfBounds (a doubt about bytes ends the hand-off, always)

Every error names the `field` it is about and says what would be right.
"""

from typing import ClassVar

from isthmus.core.units import Duration

__all__ = [
    "BadInput",
    "Bug",
    "CapacityExceeded",
    "ConfigInvalid",
    "ContextTooLong",
    "ConversionOutOfBounds",
    "DeadlineExceeded",
    "DigestMismatch",
    "FrameInvalid",
    "GateRefused",
    "GrantUnknown",
    "IncarnationFenced",
    "IsthmusError",
    "LeaseExpired",
    "Lost",
    "ManifestInvalid",
    "NotAuthorised",
    "NotCovered",
    "PeerLost",
    "QuotaExceeded",
    "Rejected",
    "StaleEpoch",
    "TransferFailed",
    "UnknownHandoff",
    "UnknownModel",
    "Unsupported",
    "error_named",
]


class IsthmusError(Exception):
    """Base of all. `str(error)` is one sentence for a person; `code` is one word for a program."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    @property
    def code(self) -> str:
        return type(self).__name__


class Bug(IsthmusError):
    """An invariant of ours does not hold. Never caught to go on."""


class Rejected(IsthmusError):
    """What was asked cannot be; asking again unchanged gives the same answer."""

    http_status: ClassVar[int] = 400


class BadInput(Rejected):
    """A request's field is missing, unknown or out of range."""


class ConfigInvalid(Rejected):
    """A configuration file, environment variable or flag is wrong."""


class ManifestInvalid(Rejected):
    """A peer's manifest does not parse, is too large, or contradicts itself."""


class FrameInvalid(Rejected):
    """A peer's control frame does not parse or is too large."""


class UnknownModel(Rejected):
    """The request names a model that is not served here."""

    http_status = 404


class UnknownHandoff(Rejected):
    """No worker knows a hand-off of this id, or none any more."""

    http_status = 404


class ContextTooLong(Rejected):
    """Prompt and completion do not fit the context."""


class GateRefused(Rejected):
    """The two sides' identities differ where no transformation helps."""

    http_status = 409


class Unsupported(Rejected):
    """Known, but not done by this version."""


class NotCovered(Rejected):
    """Understood, but no rule says what follows: the answer is `unknown`, which is refused."""


class GrantUnknown(Rejected):
    """No such grant: never made, or ended so long ago that its tombstone is gone."""


class StaleEpoch(Rejected):
    """The grant has ended, or its epoch is not the one named."""


class NotAuthorised(Rejected):
    """The blocks named are not all under the grant named, or the peer is not the grant's holder."""

    http_status = 403


class IncarnationFenced(Rejected):
    """This life of this worker was declared over; it may come back only as another."""

    http_status = 409


class CapacityExceeded(Rejected):
    """There is no room now; `retry_after` says when to ask again."""

    http_status = 503

    def __init__(self, message: str, *, field: str = "", retry_after: Duration | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class QuotaExceeded(CapacityExceeded):
    """There is room, but not for this tenant: it has all that its quota gives it, or too many of its own wait."""

    http_status = 429


class Lost(IsthmusError):
    """The world failed, not the asker: the same request may succeed elsewhere."""


class PeerLost(Lost):
    """A peer's connection closed or its incarnation was fenced."""


class LeaseExpired(Lost):
    """A lease ran out before what it covered was done."""


class DeadlineExceeded(Lost):
    """An answer did not come in time."""


class TransferFailed(Lost):
    """Bytes did not arrive, or not all of them."""


class DigestMismatch(Lost):
    """What arrived is not what was filled."""


class ConversionOutOfBounds(Lost):
    """A converted element is further from its source than the plan's bound (overflow, for instance)."""


def _tree(kind: type[IsthmusError]) -> dict[str, type[IsthmusError]]:
    found = {kind.__name__: kind}
    for child in kind.__subclasses__():
        found |= _tree(child)
    return found


def error_named(code: str, message: str, *, field: str = "") -> IsthmusError:
    """The error a peer reported, as ours. An unknown code, and a peer's `Bug`, is a loss: the peer failed."""
    kind = _tree(IsthmusError).get(code)
    if kind is None or not issubclass(kind, Rejected | Lost):
        return Lost(f"{code}: {message}", field=field)
    return kind(message, field=field)
