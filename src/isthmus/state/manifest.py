"""The wire form of a `RuntimeKVState`: one msgpack map `{"schema_version": n, "state": {...}}`.

Within a version unknown fields are refused. Peers negotiate the highest version that both speak.
"""

import re
from collections.abc import Iterable

import msgspec

from isthmus.core.errors import ManifestInvalid
from isthmus.core.limits import MANIFEST_BYTES_MAX
from isthmus.state.runtime_kv_state import RuntimeKVState
from isthmus.state.structs import WireStruct

__all__ = ["SCHEMA_VERSION", "SCHEMA_VERSIONS_SPOKEN", "decode_manifest", "encode_manifest", "negotiate_version"]

SCHEMA_VERSION = 3
SCHEMA_VERSIONS_SPOKEN = (2, 3)
"""Version 2 differs in one thing: its grants are the random half of ours."""


_NAMED = re.compile(r"Object .* field `(?P<field>.*)`$|(?P<required>\w[\w., ]*): got ")


class _Envelope(WireStruct, frozen=True, kw_only=True):
    schema_version: int
    state: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_state_decoder = msgspec.msgpack.Decoder(RuntimeKVState)


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
    encoded = _encoder.encode(_Envelope(schema_version=version, state=msgspec.Raw(_encoder.encode(state))))
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
        envelope = _envelope_decoder.decode(data)
        if envelope.schema_version not in SCHEMA_VERSIONS_SPOKEN:
            negotiate_version([envelope.schema_version])
        return _state_decoder.decode(envelope.state)
    except msgspec.ValidationError as error:
        raise ManifestInvalid(f"manifest: {error}", field=_field_of(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"manifest: not msgpack of a Runtime KV State: {error}", field="manifest") from error


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
