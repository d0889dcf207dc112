"""Names of prefixes: the same for the same tokens of one tenant, and of no use to anybody else."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import BadInput, Bug
from isthmus.core.ids import TenantId
from isthmus.ownership.prefix_hash import HASH_BYTES, block_hashes, prefix_root, tenant_salt
from isthmus.state.tokens import pack_tokens
from tests.state.states import IDENTITY

SECRET = bytes(range(32))
SALT = tenant_salt(SECRET, TenantId("tenant-0"))
OTHER = tenant_salt(SECRET, TenantId("tenant-1"))
tokens = st.lists(st.integers(0, (1 << 31) - 1), max_size=60)


def hashes(ids, block_size, **arguments):
    return block_hashes(pack_tokens(ids), block_size, **arguments)


@given(ids=tokens, block_size=st.integers(1, 9), split=st.integers(0, 8))
def test_a_chain_may_be_continued_at_any_block(ids, block_size, split):
    whole = hashes(ids, block_size, salt=SALT, parent=prefix_root(IDENTITY, salt=SALT))
    assert len(whole) == len(ids) // block_size
    at = min(split, len(whole))
    parent = whole[at - 1] if at else prefix_root(IDENTITY, salt=SALT)
    assert whole[:at] + hashes(ids[at * block_size :], block_size, salt=SALT, parent=parent) == whole


@given(ids=tokens, block_size=st.integers(1, 9), data=st.data())
def test_a_changed_token_changes_its_block_and_all_after_it(ids, block_size, data):
    before = hashes(ids, block_size, salt=SALT)
    if not before:
        return
    at = data.draw(st.integers(0, len(before) * block_size - 1))
    changed = [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]]
    after = hashes(changed, block_size, salt=SALT)
    same = [one == other for one, other in zip(before, after, strict=True)]
    assert same == [index < at // block_size for index in range(len(before))]


@given(ids=st.lists(st.integers(0, 1 << 30), min_size=8, max_size=40))
def test_tenants_share_no_name_and_an_unkeyed_guess_finds_none(ids):
    ours = set(hashes(ids, 4, salt=SALT))
    assert not ours & set(hashes(ids, 4, salt=OTHER))
    words = b"".join(one.to_bytes(4, "little") for one in ids[:4])
    guesses = {hashlib.blake2b(words, digest_size=HASH_BYTES).digest(), hashlib.sha256(words).digest()[:HASH_BYTES]}
    assert not ours & guesses


def test_everything_that_kv_of_the_same_tokens_differs_by_is_in_the_root():
    changes = {"adapter": "lora-1", "multimodal_digest": "ab" * 16, "architecture_digest": "cd" * 16}
    identities = [IDENTITY, *(msgspec.structs.replace(IDENTITY, **{name: value}) for name, value in changes.items())]
    lineage = msgspec.structs.replace(IDENTITY.lineage, revision="other")
    identities.append(msgspec.structs.replace(IDENTITY, lineage=lineage))
    assert len({prefix_root(one, salt=SALT) for one in identities}) == len(identities)


def test_a_block_of_other_tokens_cannot_imitate_a_missing_parent():
    with_parent = hashes([1], 1, salt=SALT, parent=bytes(HASH_BYTES))
    without = hashes([0, 0, 0, 0, 1], 5, salt=SALT)
    assert not set(with_parent) & set(without)
    assert hashes([1], 1, salt=SALT) != with_parent


def test_what_is_no_token_or_no_key_is_refused():
    for ids in ([-1], [1 << 32]):
        with pytest.raises(BadInput):
            pack_tokens(ids)
    for arguments in ({"salt": b""}, {"salt": SALT, "parent": b"short"}):
        with pytest.raises(Bug):
            hashes([1], 1, **arguments)
    with pytest.raises(Bug):
        tenant_salt(b"guessable", TenantId("t"))
