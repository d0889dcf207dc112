"""Which versions of the control messages are spoken, and how what an older peer says becomes what we say, and back.

One number counts for control messages and manifests alike: N, and N-1 so that a fleet can be upgraded worker by worker,
the gateway first. Whoever connects says what it speaks in its first message (`hello`, `peer_hello`), whose form tells
its version; from then on both speak the highest that both know. A table says what N has that N-1 has not: a field and
what its absence means. Up, it is added; down, it is left out where it says just that, or only people read it, and else
refused by its name: nothing is dropped that would be missed.

Owns that table. Refuses to know connections. Within a version an unknown field is refused.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from isthmus.core.errors import FrameInvalid, ManifestInvalid
from isthmus.core.limits import GRANTS_PER_PEER_MAX, HANDOFFS_SHOWN_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.handoff.request import TokenId
from isthmus.serve.messages import Message
from isthmus.state.manifest import (
    SCHEMA_VERSION,
    decode_manifest,
    encode_manifest,
    negotiate_version,
)
from isthmus.state.tokens import pack_tokens, unpack_tokens

__all__ = ["PROTOCOL_VERSION", "Conversation"]

PROTOCOL_VERSION: Final = SCHEMA_VERSION
_OLDER: Final = PROTOCOL_VERSION - 1

_Fields = dict[str, Any]
_BYTES = (bytes,)
_GRANT_ID_CHARS = 32
"""Of a grant, what version 2 carries: its random half. The tag that binds it never leaves this side then."""

_NOT_IN_2: Final = ("register", "written")
"""Messages of push and send."""


class _Added(NamedTuple):
    """A field that version 3 has and version 2 has not: what its absence means, and whether only people read it."""

    absent: Any
    for_people: bool = False


_ADDED_IN_3: Final[dict[str, dict[str, _Added]]] = {
    "prefill": {"have_tokens": _Added(0), "mode": _Added("pull"), "registration": _Added(None)},
    "prefilled": {"reused_tokens": _Added(0, for_people=True)},
    "peer_hello": {"version": _Added(2, for_people=True)},
    "pulse": {"unhealthy": _Added(None, for_people=True)},
    "snapshot_order": {"handoff": _Added(""), "limit": _Added(HANDOFFS_SHOWN_MAX, for_people=True)},
    "handoff_report": {
        "reused_tokens": _Added(0, for_people=True),
        "have_tokens": _Added(0, for_people=True),
        "have_bytes": _Added(0, for_people=True),
    },
}
_TOKENS_OF: Final = ("prefill", "generate")
"""Messages with a request, whose token ids version 2 lists as numbers and version 3 packs (`state.tokens`)."""

_TokenIds = Annotated[tuple[TokenId, ...], Meta(max_length=TOKENS_PER_REQUEST_MAX)]

_NOWHERE: Final = "0" * _GRANT_ID_CHARS
"""The host of a process that version 2 names by its pid alone: no kernel that we could ask is its."""


class Conversation:
    """What is said on one connection: its version, and the grants that the other side knows by half only.

    `version` is None until a connection that was accepted has been greeted.
    """

    def __init__(self, version: int | None = None) -> None:
        self.version = version
        self._grants: OrderedDict[str, str] = OrderedDict()

    def read(self, raw: msgspec.Raw) -> Message:
        """A message of this conversation; the first one settles the version.

        Raises:
            ManifestInvalid: the first message speaks no version that is spoken here.
            FrameInvalid: not a message of this version.
        """
        fields = msgspec.msgpack.decode(raw)
        if not isinstance(fields, dict):
            raise FrameInvalid(f"message: got {type(fields).__name__}, wanted a map", field="message")
        if self.version is None:
            self.version = _version_of_greeting(fields)
        if self.version == _OLDER:
            fields = self._upgraded(fields)
        return msgspec.convert(fields, Message, builtin_types=_BYTES)  # type: ignore[no-any-return]

    def written(self, message: Message) -> bytes:
        """The bytes of a message in this conversation's version.

        Raises:
            FrameInvalid: that version cannot say it; the error names the field.
        """
        if self.version != _OLDER:
            return msgspec.msgpack.encode(message)
        return msgspec.msgpack.encode(self._downgraded(msgspec.to_builtins(message, builtin_types=_BYTES)))

    # version 2 and back

    def _upgraded(self, fields: _Fields) -> _Fields:
        kind = str(fields.get("type"))
        if kind in _NOT_IN_2:
            raise FrameInvalid(f"type: version {_OLDER} has no {kind}", field="type")
        added = _ADDED_IN_3.get(kind, {})
        for field in added:
            if field in fields:
                raise FrameInvalid(f"{kind}.{field}: unknown in version {_OLDER}", field=field)
        fields = fields | {field: change.absent for field, change in added.items()}
        if kind in _TOKENS_OF and isinstance(fields.get("request"), dict):
            fields["request"] = _tokens_up(fields["request"])
        grant = fields.get("grant")
        if kind in ("confirm", "renew") and isinstance(grant, str):
            fields["grant"] = self._grants.get(grant, grant)
        return _members(fields, _member_up)

    def _downgraded(self, fields: _Fields) -> _Fields:
        kind = str(fields["type"])
        if kind in _NOT_IN_2:
            raise FrameInvalid(f"type: version {_OLDER} has no {kind}, which this peer speaks", field="type")
        for field, change in _ADDED_IN_3.get(kind, {}).items():
            value = fields.pop(field)
            if value != change.absent and not change.for_people:
                raise FrameInvalid(
                    f"{kind}.{field}: got {value!r}, which version {_OLDER} cannot say, as this peer does", field=field
                )
        if kind in _TOKENS_OF:
            request = fields["request"]
            fields["request"] = request | {"token_ids": unpack_tokens(request["token_ids"])}
        if kind in ("confirm", "renew"):
            fields["grant"] = self._halved(fields["grant"])
        if kind == "prefilled" and fields["manifest"]:
            fields["manifest"] = self._manifest_down(fields["manifest"])
        return _members(fields, _member_down)

    def _halved(self, grant: str) -> str:
        half = grant[:_GRANT_ID_CHARS]
        self._grants[half] = grant
        if len(self._grants) > GRANTS_PER_PEER_MAX:
            self._grants.popitem(last=False)
        return half

    def _manifest_down(self, manifest: bytes) -> bytes:
        state = decode_manifest(manifest)
        ownership = msgspec.structs.replace(state.ownership, grant=self._halved(state.ownership.grant))
        return encode_manifest(msgspec.structs.replace(state, ownership=ownership), _OLDER)


def _version_of_greeting(fields: _Fields) -> int | None:
    """Of the first message on a connection; None where it is no greeting, which whoever handles it will refuse."""
    kind = fields.get("type")
    if kind == "hello":
        spoken = fields.get("schema_versions")
    elif kind == "peer_hello":
        spoken = [fields.get("version", _OLDER)]
    else:
        return None
    if not isinstance(spoken, list | tuple) or not all(type(version) is int for version in spoken):
        raise ManifestInvalid("schema_versions: wanted a list of numbers", field="schema_version")
    return negotiate_version(spoken)


def _tokens_up(request: _Fields) -> _Fields:
    """Raises msgspec.ValidationError, as the older one's own form would: what is listed must be token ids."""
    if "token_ids" not in request:
        return request
    return request | {"token_ids": pack_tokens(msgspec.convert(request["token_ids"], _TokenIds))}


def _members(fields: _Fields, change: Callable[[_Fields], _Fields]) -> _Fields:
    """With every member that it tells of changed."""
    if isinstance(fields.get("member"), dict):
        return fields | {"member": change(fields["member"])}
    if isinstance(fields.get("members"), list | tuple):
        return fields | {"members": [change(each) if isinstance(each, dict) else each for each in fields["members"]]}
    return fields


def _member_up(member: _Fields) -> _Fields:
    for field in ("process", "imports", "schema_versions"):
        if field in member:
            raise FrameInvalid(f"member.{field}: unknown in version {_OLDER}", field=field)
    process = {"host": _NOWHERE, "pid": member.get("pid"), "started": 0}
    rest = {field: value for field, value in member.items() if field != "pid"}
    return rest | {"process": process, "imports": [], "schema_versions": [_OLDER]}


def _member_down(member: _Fields) -> _Fields:
    """Where it can be written to is left out: version 2 writes nowhere."""
    later = ("process", "imports", "schema_versions")
    rest = {field: value for field, value in member.items() if field not in later}
    return rest | {"pid": member["process"]["pid"]}
