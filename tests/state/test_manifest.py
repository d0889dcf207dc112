"""The manifest: what is written is read back, and nothing else is read."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import BadInput, ManifestInvalid
from isthmus.core.limits import MANIFEST_BYTES_MAX
from isthmus.state.encoding import Encoding, Quant
from isthmus.state.identity import Identity, RopeState, TokenRange, WeightsRecord
from isthmus.state.manifest import (
    SCHEMA_VERSION,
    SCHEMA_VERSIONS_SPOKEN,
    decode_manifest,
    encode_manifest,
    negotiate_version,
)
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupRepresentation
from isthmus.state.runtime_kv_state import GroupState, KVRepresentation, Residency, RuntimeKVState
from isthmus.state.tokens import pack_tokens, tokens_digest
from tests.state.states import TOKENS, a_state, states


def refused(data: bytes) -> ManifestInvalid:
    with pytest.raises(ManifestInvalid) as caught:
        decode_manifest(data)
    return caught.value


def read(data: bytes) -> RuntimeKVState | ManifestInvalid:
    """What comes of some bytes; any other error is a failed test."""
    try:
        return decode_manifest(data)
    except ManifestInvalid as error:
        return error


def written(builtins: object, version: object = SCHEMA_VERSION) -> bytes:
    return msgspec.msgpack.encode({"schema_version": version, "state": builtins})


def parts_of(value: object, path: tuple = ()):
    """Every map in a tree, with the path to it."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from parts_of(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from parts_of(child, (*path, index))


@given(states())
def test_what_is_written_is_read_back(state):
    assert decode_manifest(encode_manifest(state)) == state


@given(states(), states())
def test_unequal_states_have_unequal_manifests(one, other):
    assert (encode_manifest(one) == encode_manifest(other)) == (one == other)


@given(states(), st.data())
def test_an_unknown_field_is_refused_at_every_level_by_its_name(state, data):
    tree = msgspec.to_builtins(state)
    path, part = data.draw(st.sampled_from(list(parts_of(tree))))
    part["kv_shape"] = 1
    error = refused(written(tree))
    assert error.field.endswith("kv_shape")
    assert all(str(step) in error.field for step in path)


DEFAULTED = {
    field.name
    for kind in (Quant, Encoding, Component, GroupRepresentation, Partition, Identity, RopeState, WeightsRecord)
    for field in msgspec.structs.fields(kind)
    if not field.required
}


@given(states(), st.data())
def test_a_missing_field_is_refused_by_its_name_unless_it_has_a_default(state, data):
    tree = msgspec.to_builtins(state)
    _, part = data.draw(st.sampled_from(list(parts_of(tree))))
    name = data.draw(st.sampled_from(sorted(part)))
    del part[name]
    found = read(written(tree))
    if name in DEFAULTED:
        assert isinstance(found, RuntimeKVState) or found.field != "manifest"
    else:
        assert found.field.endswith(name)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_manifest_invalid(data):
    refused(data)


@settings(max_examples=300)
@given(states(), st.data())
def test_damaged_manifests_are_refused_or_are_still_whole_states(state, data):
    raw = bytearray(encode_manifest(state))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "repeat", "insert"])):
            case "byte":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 20))]
            case "repeat":
                raw[at:at] = raw[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not raw:
            break
    found = read(bytes(raw))
    if isinstance(found, ManifestInvalid):
        assert found.field
    else:
        assert decode_manifest(encode_manifest(found)) == found


@st.composite
def wrong_values(draw):
    return draw(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(1 << 63), (1 << 64) - 1),
            st.floats(),
            st.text(max_size=5),
            st.binary(max_size=5),
            st.lists(st.integers(), max_size=3),
            st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
        )
    )


@settings(max_examples=300)
@given(states(), wrong_values(), st.data())
def test_any_value_in_any_place_is_refused_by_a_field_or_is_a_valid_one(state, value, data):
    tree = msgspec.to_builtins(state)
    _, part = data.draw(st.sampled_from(list(parts_of(tree))))
    name = data.draw(st.sampled_from(sorted(part)))
    part[name] = value
    try:
        encoded = written(tree)
    except OverflowError:  # not a number that msgpack has
        return
    found = read(encoded)
    assert isinstance(found, RuntimeKVState) or found.field != "manifest"


@pytest.mark.parametrize("version", [0, 1, SCHEMA_VERSION + 1, -1, 1 << 40])
def test_another_schema_version_is_refused_whatever_it_carries(version):
    error = refused(written({"future": True}, version))
    assert error.field == "schema_version"
    assert str(version) in str(error)


@pytest.mark.parametrize("version", ["1", None, 1.5, True, [1]])
def test_a_schema_version_of_another_type_is_refused(version):
    assert refused(written(msgspec.to_builtins(a_state()), version)).field == "schema_version"


def test_peers_take_the_highest_version_that_both_speak():
    highest = max(SCHEMA_VERSIONS_SPOKEN)
    assert negotiate_version([*SCHEMA_VERSIONS_SPOKEN, highest + 1]) == highest
    assert negotiate_version(iter(SCHEMA_VERSIONS_SPOKEN)) == highest
    for nothing in ([], [highest + 1], [0]):
        with pytest.raises(ManifestInvalid) as caught:
            negotiate_version(nothing)
        assert caught.value.field == "schema_version"


def test_a_manifest_larger_than_the_bound_is_neither_written_nor_read():
    assert "wanted at most" in str(refused(bytes(MANIFEST_BYTES_MAX + 1)))
    blocks = 1 << 20
    group = a_state().representation.groups[0]
    small = msgspec.structs.replace(group, block_size=1)
    state = RuntimeKVState(
        identity=a_state().identity,
        token_range=TokenRange(start=0, stop=blocks),
        tokens_digest=tokens_digest(pack_tokens(TOKENS)),
        representation=KVRepresentation(groups=(small,), partition=Partition()),
        groups=(GroupState(block_ids=tuple(range(1 << 20, blocks + (1 << 20))), logical_digest=0),),
        residency=Residency(tier="host", num_blocks=1 << 21),
        ownership=a_state().ownership,
    )
    assert decode_manifest(encode_manifest(state)) == state  # the largest request at one token a block still fits
    other = msgspec.structs.replace(small, layers=(2, 3))
    twice = msgspec.structs.replace(
        state,
        representation=KVRepresentation(groups=(small, other), partition=Partition()),
        groups=state.groups * 2,
    )
    with pytest.raises(ManifestInvalid, match="wanted at most"):
        encode_manifest(twice)


def test_the_digest_of_tokens_depends_on_every_id_and_its_place():
    digests = {
        tokens_digest(pack_tokens(ids)) for ids in ([], [0], [0, 0], [1, 2], [2, 1], [1, 2, 0], [258], [2, 1 << 31])
    }
    assert len(digests) == 8
    for wrong in (-1, 1 << 32):
        with pytest.raises(BadInput):
            pack_tokens([wrong])
