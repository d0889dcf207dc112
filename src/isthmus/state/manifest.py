"""The wire form of a `RuntimeKVState`: one msgpack map `{"schema_version": n, "state": {...}}`.

Within a version unknown fields are refused. Peers negotiate the highest version that both speak.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from isthmus.core.errors import ManifestInvalid
from isthmus.core.limits import FORM_BYTES_REMEMBERED_MAX, FORMS_REMEMBERED_MAX, MANIFEST_BYTES_MAX
from isthmus.state.identity import HexDigest, Identity, TokenRange
from isthmus.state.runtime_kv_state import GroupState, KVRepresentation, Ownership, Residency, RuntimeKVState
from isthmus.state.structs import WireStruct

__all__ = ["SCHEMA_VERSION", "SCHEMA_VERSIONS_SPOKEN", "decode_manifest", "encode_manifest", "negotiate_version"]

SCHEMA_VERSION = 3
SCHEMA_VERSIONS_SPOKEN = (2, 3)
"""Version 2 differs in one thing: its grants are the random half of ours."""

PartT = TypeVar("PartT", Identity, KVRepresentation)

_NAMED = re.compile(r"Object .* field `(?P<field>.*)`$|(?P<required>\w[\w., ]*): got ")


class _Envelope(WireStruct, frozen=True, kw_only=True):
    schema_version: int
    state: msgspec.Raw


class _State(WireStruct, frozen=True, kw_only=True):
    """A `RuntimeKVState` on the wire, with its two largest parts, the same in all of a worker's manifests, as bytes."""

    identity: msgspec.Raw
    token_range: TokenRange
    tokens_digest: HexDigest
    representation: msgspec.Raw
    groups: tuple[GroupState, ...]
    residency: Residency
    ownership: Ownership


class _Manifest(WireStruct, frozen=True, kw_only=True):
    schema_version: int
    state: _State


_encoder = msgspec.msgpack.Encoder()
_manifest_decoder = msgspec.msgpack.Decoder(_Manifest)
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_state_decoder = msgspec.msgpack.Decoder(RuntimeKVState)
_identity_decoder = msgspec.msgpack.Decoder(Identity)
_representation_decoder = msgspec.msgpack.Decoder(KVRepresentation)


def negotiate_version(peer_versions: Iterable[int]) -> int:
    """The highest schema version that both sides speak.

    Raises:
        ManifestInvalid: there is none.
    """
    peer = tuple(peer_versions)
    common = set(SCHEMA_VERSIONS_SPOKEN) & set(peer)
    if not common:
        raise ManifestInvalid(
            f"schema_version: the peer speaks {sorted(peer)}, this worker {sorted(SCHEMA_VERSIONS_SPOKEN)}; "
            "upgrade one of them by one version",
            field="schema_version",
        )
    return max(common)


def encode_manifest(state: RuntimeKVState, version: int = SCHEMA_VERSION) -> bytes:
    """The manifest of a state, at most `MANIFEST_BYTES_MAX` bytes. `state` is as `version` can say it.

    Raises:
        ManifestInvalid: it would be larger.
    """
    written = _State(
        identity=msgspec.Raw(_packed(state.identity)),
        token_range=state.token_range,
        tokens_digest=state.tokens_digest,
        representation=msgspec.Raw(_packed(state.representation)),
        groups=state.groups,
        residency=state.residency,
        ownership=state.ownership,
    )
    encoded = _encoder.encode(_Manifest(schema_version=version, state=written))
    _bound(len(encoded))
    return encoded


def decode_manifest(data: bytes) -> RuntimeKVState:
    """Parse and check a peer's manifest.

    Raises:
        ManifestInvalid: too large, not msgpack, of a version not spoken here, with an unknown or missing field, or
            contradicting itself. The message names the field.
    """
    _bound(len(data))
    try:
        return _well_formed(data) or _explained(data)
    except msgspec.ValidationError as error:
        raise ManifestInvalid(f"manifest: {error}", field=_field_of(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"manifest: not msgpack of a Runtime KV State: {error}", field="manifest") from error


def _well_formed(data: bytes) -> RuntimeKVState | None:
    """What it says; None where anything is wrong with it. Bytes that were parsed before are not parsed again."""
    try:
        manifest = _manifest_decoder.decode(data)
        if manifest.schema_version not in SCHEMA_VERSIONS_SPOKEN:
            return None
        state = manifest.state
        return RuntimeKVState(
            identity=_identity(bytes(state.identity)),
            token_range=state.token_range,
            tokens_digest=state.tokens_digest,
            representation=_representation(bytes(state.representation)),
            groups=state.groups,
            residency=state.residency,
            ownership=state.ownership,
        )
    except (msgspec.MsgspecError, ValueError):
        return None


def _explained(data: bytes) -> RuntimeKVState:
    """The same in small steps, which say what is wrong, and where."""
    envelope = _envelope_decoder.decode(data)
    if envelope.schema_version not in SCHEMA_VERSIONS_SPOKEN:
        negotiate_version([envelope.schema_version])
    return _state_decoder.decode(envelope.state)


def _remembered(parse: Callable[[bytes], PartT]) -> Callable[[bytes], PartT]:
    """What `parse` makes of bytes, kept for when the same come again: both are immutable, and both are bounded."""
    known = functools.lru_cache(FORMS_REMEMBERED_MAX)(parse)
    return lambda data: known(data) if len(data) <= FORM_BYTES_REMEMBERED_MAX else parse(data)


_identity = _remembered(_identity_decoder.decode)
_representation = _remembered(_representation_decoder.decode)


@functools.lru_cache(FORMS_REMEMBERED_MAX)
def _packed(part: Identity | KVRepresentation) -> bytes:
    return _encoder.encode(part)


def _bound(size: int) -> None:
    if size > MANIFEST_BYTES_MAX:
        raise ManifestInvalid(f"manifest: {size} bytes, wanted at most {MANIFEST_BYTES_MAX}", field="manifest")


def _field_of(message: str) -> str:
    """The field a message of msgspec is about, as a path: "groups[0].block_ids".

    A message ends with the path of what was being decoded ("... - at `$.groups[0]`"), unless that is the whole state,
    and names a field in it where one is unknown, missing, or was refused by `require` ("block_ids: got ...").
    """
    said, _, path = message.partition(" - at `$")
    named = _NAMED.match(said)
    parts = [path.rstrip("`").lstrip("."), (named["field"] or named["required"]) if named else ""]
    return ".".join(part for part in parts if part) or "manifest"
