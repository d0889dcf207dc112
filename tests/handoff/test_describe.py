"""An offer is held against what was asked for, field by field, before anything of it is read."""

import msgspec
import pytest

from isthmus.core.errors import BadInput, ManifestInvalid
from isthmus.core.ids import BlockId, HandoffId
from isthmus.core.limits import MANIFEST_BYTES_MAX
from isthmus.handoff.describe import describe
from isthmus.handoff.orders import PrefillReply
from isthmus.handoff.stages import Filled, Placed, Reserved
from isthmus.state.identity import TokenRange
from isthmus.state.manifest import SCHEMA_VERSION, encode_manifest
from isthmus.state.runtime_kv_state import GroupState, Residency
from isthmus.state.tokens import pack_tokens, tokens_digest
from tests.handoff.worlds import PREFILL, PREFILL_LIFE, World, alone, ask
from tests.state.states import OWNERSHIP, TOKENS, a_state

OTHER = "9" * 32


def filled(manifest: bytes) -> Filled:
    placed = Placed(request=ask(TOKENS), producer=PREFILL, producer_incarnation=PREFILL_LIFE)
    reserved = Reserved(placed=placed, handoff=HandoffId(OWNERSHIP.handoff), blocks=(BlockId(0),))
    reply = PrefillReply(token=3, finish_reason=None, manifest=manifest, prefill_ms=1.0)
    return Filled(reserved=reserved, reply=reply)


def refused(manifest: bytes) -> ManifestInvalid:
    with pytest.raises(ManifestInvalid) as caught:
        describe(filled(manifest))
    return caught.value


def owned(**changes) -> bytes:
    return encode_manifest(a_state(ownership=msgspec.structs.replace(OWNERSHIP, **changes)))


def raw(**changes) -> dict:
    return {"schema_version": SCHEMA_VERSION, "state": msgspec.to_builtins(a_state())} | changes


def test_an_offer_of_what_was_asked_for_is_accepted():
    assert describe(filled(encode_manifest(a_state()))).state == a_state()


@pytest.mark.parametrize(
    ("field", "value"),
    [("handoff", OTHER), ("owner", "prefill-1"), ("incarnation", OTHER), ("tenant", "tenant-1")],
)
def test_an_offer_about_another_hand_off_owner_life_or_tenant_is_refused_by_the_fields_name(field, value):
    error = refused(owned(**{field: value}))
    assert error.field == f"ownership.{field}"
    assert repr(value) in str(error)
    assert "as asked for" in str(error)


@pytest.mark.parametrize(("start", "stop", "blocks"), [(0, 39, 3), (0, 41, 3), (1, 40, 3), (16, 40, 2)])
def test_an_offer_of_other_tokens_than_the_prompts_is_refused(start, stop, blocks):
    tokens = TokenRange(start=start, stop=stop)
    groups = (GroupState(block_ids=tuple(range(blocks)), logical_digest=1),)
    assert refused(encode_manifest(a_state(token_range=tokens, groups=groups))).field == "token_range"


@pytest.mark.parametrize(
    "digest", [tokens_digest(pack_tokens(TOKENS[::-1])), tokens_digest(pack_tokens(TOKENS[:-1])), ""]
)
def test_an_offer_for_another_prompt_is_refused(digest):
    assert refused(encode_manifest(a_state(tokens_digest=digest))).field == "tokens_digest"


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        (b"", "manifest"),
        (b"\xc1 garbage", "manifest"),
        (b"\x91" * 100_000, "manifest"),
        (msgspec.msgpack.encode(raw(schema_version=SCHEMA_VERSION + 1)), "schema_version"),
        (msgspec.msgpack.encode(raw(schema_version=0)), "schema_version"),
        (msgspec.msgpack.encode(raw(more=1)), "more"),
        (msgspec.msgpack.encode(raw(state=raw()["state"] | {"extra": 1})), "extra"),
        (encode_manifest(a_state())[:-1], "manifest"),
        (encode_manifest(a_state()) + b"\0", "manifest"),
        (bytes(MANIFEST_BYTES_MAX + 1), "manifest"),
    ],
)
def test_what_is_no_manifest_of_this_version_is_refused(manifest, field):
    assert refused(manifest).field == field


# in a whole hand-off


async def lie(world: World, request, change) -> Exception:
    """A producer whose offer is changed on its way."""
    prefill = world.side.prefill

    async def dishonest(order):
        reply = await prefill(order)
        fields = {name: getattr(reply, name) for name in reply.__struct_fields__}
        return PrefillReply(**fields | {"manifest": change(reply.manifest)})

    world.side.prefill = dishonest
    world._keep = lambda *_: None
    with pytest.raises((ManifestInvalid, BadInput)) as caught:
        await world.hand_off(request)
    world.side.prefill = prefill
    assert world.installs() == 0
    await world.drained()
    return caught.value


def changed(**changes):
    """A manifest with other fields, still valid in itself."""

    def change(manifest: bytes) -> bytes:
        found = msgspec.msgpack.decode(manifest)
        found["state"] |= {name: found["state"][name] | fields for name, fields in changes.items()}
        return msgspec.msgpack.encode(found)

    return change


async def test_a_lying_offer_ends_the_hand_off_and_frees_both_sides(model):
    request = ask(TOKENS[3:])
    async with World(model) as world:
        error = await lie(world, request, changed(ownership={"handoff": OTHER}))
        assert error.field == "ownership.handoff"
        error = await lie(world, request, lambda manifest: manifest[:100])
        assert error.field == "manifest"
        assert "read" not in world.hooks.seen
        released = await world.hand_off(request)
        assert await world.decode(request, released) == alone(model, "bfloat16", TOKENS[3:], 5).token_ids


async def test_an_offer_in_another_form_than_the_registered_one_is_refused_before_it_is_read(model):
    async with World(model) as world:

        def change(manifest: bytes) -> bytes:
            found = msgspec.msgpack.decode(manifest)
            found["state"]["representation"]["groups"][0]["layout"] = "LBHNC"
            return msgspec.msgpack.encode(found)

        error = await lie(world, ask(TOKENS[3:]), change)
        assert error.field == "representation"
        assert "read" not in world.hooks.seen


async def test_an_offer_of_another_pool_size_is_refused_by_the_owner_of_the_pool(model):
    async with World(model) as world:
        other = msgspec.to_builtins(Residency(tier="host", num_blocks=63))
        error = await lie(world, ask(TOKENS[3:]), changed(residency=other))
        assert error.field == "num_blocks"
