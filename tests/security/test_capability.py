"""A grant is good for exactly what it was minted for: every other claim is refused by the tag, and by the record."""

import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from isthmus.core.clock import ManualClock
from isthmus.core.errors import Bug, GrantUnknown, NotAuthorised, Rejected, StaleEpoch
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.ownership.capability import Claims, check, digest_of_blocks, draw_key, mint
from tests.ownership.worlds import DECODE, DECODE_LIFE, World, grant_of

KEY = hmac.new(bytes(range(32)), digestmod="sha256")
ID = "0123456789abcdef" * 2
CLAIMS = Claims(
    handoff=HandoffId("d" * 32),
    epoch=Epoch(7),
    tenant=TenantId("tenant-0"),
    owner=WorkerId("prefill-0"),
    owner_incarnation=Incarnation("a" * 32),
    holder=WorkerId("decode-0"),
    holder_incarnation=Incarnation("b" * 32),
    blocks=digest_of_blocks([3, 1, 4]),
)
OTHERWISE = {
    "handoff": "e" * 32,
    "epoch": 8,
    "tenant": "tenant-1",
    "owner": "prefill-1",
    "owner_incarnation": "c" * 32,
    "holder": "decode-1",
    "holder_incarnation": "c" * 32,
    "blocks": digest_of_blocks([3, 1, 5]),
}


def test_a_grant_is_64_hex_digits_and_good_for_what_it_was_minted_for():
    grant = mint(KEY, ID, CLAIMS)
    assert len(grant) == 64
    assert grant.startswith(ID)
    assert check(KEY, grant, CLAIMS)


def test_the_tag_is_hmac_sha256_of_the_id_and_all_claims_cut_to_128_bits():
    message = msgspec.msgpack.encode((ID, CLAIMS))
    assert mint(KEY, ID, CLAIMS) == ID + hmac.digest(bytes(range(32)), message, "sha256").hex()[:32]


@pytest.mark.parametrize("field", Claims.__struct_fields__)
def test_a_grant_presented_for_anything_else_is_refused(field):
    assert not check(KEY, mint(KEY, ID, CLAIMS), replace(CLAIMS, **{field: OTHERWISE[field]}))


@given(bit=st.integers(0, 255))
def test_no_bit_of_a_grant_can_be_changed(bit):
    grant = mint(KEY, ID, CLAIMS)
    changed = f"{int(grant, 16) ^ (1 << bit):064x}"
    assert not check(KEY, GrantId(changed), CLAIMS)


@given(text=st.text(max_size=80))
def test_what_is_no_grant_at_all_is_refused_and_not_an_error(text):
    assert not check(KEY, GrantId(text), CLAIMS)


def test_a_secret_dies_with_its_life():
    first, second = draw_key(ManualClock(1)), draw_key(ManualClock(2))
    assert check(draw_key(ManualClock(1)), mint(first, ID, CLAIMS), CLAIMS)
    assert not check(second, mint(first, ID, CLAIMS), CLAIMS)


@given(left=st.lists(st.integers(0, 1 << 24), max_size=6), right=st.lists(st.integers(0, 1 << 24), max_size=6))
def test_lists_of_blocks_have_one_digest_only_where_they_are_the_same(left, right):
    assert (digest_of_blocks(left) == digest_of_blocks(right)) == (left == right)


def test_names_cannot_flow_into_each_other():
    one = replace(CLAIMS, owner=WorkerId("ab"), tenant=TenantId("c"))
    other = replace(CLAIMS, owner=WorkerId("a"), tenant=TenantId("bc"))
    assert not check(KEY, mint(KEY, ID, one), other)


# in the owner


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epoch": 99}, StaleEpoch),
        ({"holder": WorkerId("decode-9")}, NotAuthorised),
        ({"life": Incarnation("9" * 32)}, NotAuthorised),
    ],
    ids=["epoch", "holder", "life"],
)
async def test_confirm_and_renew_refuse_a_grant_in_anothers_name_and_nothing_changes(change, error):
    world = World()
    offer = await world.publish(world.handoff())
    said = {"epoch": offer.epoch, "holder": DECODE, "life": DECODE_LIFE} | change
    for ask in (world.source.confirm, world.source.renew):
        with pytest.raises(error):
            ask(grant_of(offer), said["epoch"], said["holder"], said["life"])
    assert world.source.state(offer.handoff) == offer
    assert world.confirm(offer) == offer.epoch


async def test_a_grant_is_worth_nothing_for_the_blocks_of_another_grant():
    world = World()
    mine, other = await world.publish(world.handoff()), await world.publish(world.handoff())
    with pytest.raises(NotAuthorised):
        world.source.check_read(grant_of(mine), mine.epoch, DECODE, other.blocks)
    # half of one and half of another is neither
    crossed = GrantId(grant_of(mine)[:32] + grant_of(other)[32:])
    with pytest.raises(GrantUnknown):
        world.source.check_read(crossed, mine.epoch, DECODE, mine.blocks)


async def test_a_table_of_ours_that_has_gone_wrong_opens_nothing():
    """The lookup alone would say yes: the tag is what refuses."""
    world = World()
    mine, other = await world.publish(world.handoff()), await world.publish(world.handoff())
    minted = world.source._grants._minted
    minted[grant_of(mine)] = minted[grant_of(other)]
    with pytest.raises(Bug, match="not minted for it"):
        world.source.check_read(grant_of(mine), other.epoch, DECODE, other.blocks)


@given(grant=st.text("0123456789abcdef", min_size=64, max_size=64))
async def test_guessed_grants_are_unknown(grant):
    world = World()
    offer = await world.publish(world.handoff())
    with pytest.raises(Rejected):
        world.source.check_read(GrantId(grant), offer.epoch, DECODE, offer.blocks)


async def test_one_peer_cannot_take_the_places_of_all_the_others():
    from isthmus.core.errors import CapacityExceeded
    from isthmus.ownership.producer import SourceOwner

    world = World(source_blocks=16)
    owner: SourceOwner = world.source
    owner._of_peer_max = 3
    for _ in range(3):
        await world.reserve_source(world.handoff())
    with pytest.raises(CapacityExceeded, match="decode-0 has 3"):
        await world.reserve_source(world.handoff())
    await owner.reserve(
        world.handoff(),
        holder=WorkerId("decode-1"),
        holder_incarnation=DECODE_LIFE,
        tenant=TenantId("tenant-0"),
        blocks=1,
        deadline=world.far(),
    )
