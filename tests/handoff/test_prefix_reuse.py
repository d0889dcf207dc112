"""What is kept is used: less is computed, less crosses, and not one bit of an answer is another for it."""

import asyncio
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.clock import ManualClock
from isthmus.core.errors import BadInput, DigestMismatch, ManifestInvalid, NotAuthorised, Unsupported
from isthmus.core.ids import BlockId, HandoffId
from isthmus.core.units import blocks_for
from isthmus.handoff.orders import PrefillOrder
from isthmus.handoff.request import Request
from isthmus.handoff.reuse import Reuse, reusable
from isthmus.handoff.stages import Released
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.retention import LeastRecent
from isthmus.state.manifest import decode_manifest
from isthmus.state.representation import GroupKind
from tests.engines.models import random_prompt
from tests.handoff.hooks import Gate
from tests.handoff.worlds import DECODE, DECODE_LIFE, SECRET, World, alone, ask, until
from tests.state.states import IDENTITY
from tests.strategies import shapes, sides

SHARED = random_prompt(70, seed=11)
BOTH = ("producer", "consumer")


@dataclass(frozen=True)
class Served:
    """What one request came to."""

    released: Released
    tokens: tuple[int, ...]
    rows: dict[str, torch.Tensor]

    @property
    def wire_bytes(self) -> int:
        return self.released.installed.verified.arrived.wire_bytes

    @property
    def computed(self) -> int:
        request = self.released.filled.reserved.placed.request
        return len(request.token_ids) - self.released.filled.reply.reused_tokens

    @property
    def have_tokens(self) -> int:
        return self.released.filled.reserved.have_tokens


async def serve(world: World, request: Request) -> Served:
    released = await world.hand_off(request)
    rows = world.installed_rows(request, released).fields
    return Served(released=released, tokens=await world.decode(request, released), rows=rows)


def bytes_of(world: World, tokens: int, start: int = 0) -> int:
    """What the blocks of the tokens [start, tokens) take in the producer's pool."""
    pool = world.source_engine.pool
    blocks = blocks_for(tokens, pool.group.block_size) - start // pool.group.block_size
    return sum(region.shape.size_bytes(blocks) for region in pool.regions)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


async def drained_but_for_prefixes(world: World) -> None:
    """I8: nothing is held but what is retained, and that can be dropped."""
    for ledger, prefixes in (
        (world.source_ledger, world.source_prefixes),
        (world.destination_ledger, world.destination_prefixes),
    ):
        held = ledger.held()
        kept = 0 if prefixes is None else len(prefixes)
        assert (held.blocks, held.resident, held.retention, held.active, held.grants) == (kept, kept, kept, 0, 0)
        ledger.check_in_full()
        if prefixes is not None:
            assert prefixes.drop() == kept
    await world.drained()


PAIRS = [
    ({"block_size": 16}, {"block_size": 16}),
    ({"block_size": 16}, {"block_size": 32}),
    ({"block_size": 32, "kv_layout": "HND"}, {"block_size": 16}),
    ({"block_size": 16, "tp_size": 2}, {"block_size": 5, "kv_layout": "HND", "tp_size": 4}),
    ({"block_size": 7}, {"block_size": 16}),
    ({"block_size": 1}, {"block_size": 64}),
    ({"kv_cache_dtype": "bfloat16", "block_size": 8}, {"kv_cache_dtype": "float32", "block_size": 16}),
    ({"kv_cache_dtype": "float32", "block_size": 8}, {"kv_cache_dtype": "int8_per_token_head", "block_size": 12}),
    ({"kv_cache_dtype": "int8_per_token_head"}, {"kv_cache_dtype": "int8_per_token_head", "block_size": 24}),
]
IDS = ["-".join(str(value) for side in pair for value in side.values()) for pair in PAIRS]


@pytest.mark.parametrize(("producer", "consumer"), PAIRS, ids=IDS)
@pytest.mark.parametrize("keeps", [("producer",), ("consumer",), BOTH], ids="+".join)
async def test_answers_and_kv_are_the_same_bits_with_and_without_reuse(model, producer, consumer, keeps):
    """Three prompts of which each continues the one before, on workers that keep nothing, one side's, or both's."""
    more = {"num_blocks": 300}
    requests = [ask(SHARED[:length], name=f"r{length}") for length in (40, 57, 70)]
    async with World(model, producer | more, consumer | more, keeps=keeps) as world:
        served = [await serve(world, request) for request in requests]
        await drained_but_for_prefixes(world)
    async with World(model, producer | more, consumer | more) as fresh:
        for request, found in zip(requests, served, strict=True):
            wanted = await serve(fresh, request)
            assert found.tokens == wanted.tokens
            assert same(found.rows, wanted.rows)
        await fresh.drained()
    ours, theirs = (side.get("block_size", 16) for side in (producer, consumer))
    for found, before in zip(served, (0, 40, 57), strict=True):
        tokens = len(found.released.filled.reserved.placed.request.token_ids)
        reused = before // ours * ours if "producer" in keeps else 0
        have = before // theirs * theirs if "consumer" in keeps else 0
        assert (found.computed, found.have_tokens) == (tokens - reused, have)
        assert found.wire_bytes == bytes_of(world, tokens, have)


async def test_the_same_prompt_again_computes_and_moves_one_block(model):
    """Its last block is full: it is computed and crosses again, because the next token is sampled from its end."""
    prompt = SHARED[:64]
    async with World(model, keeps=BOTH) as world:
        first, second = [await serve(world, ask(prompt, name=name)) for name in ("one", "two")]
        assert (second.computed, second.have_tokens) == (16, 48)
        assert second.wire_bytes * 4 == first.wire_bytes == bytes_of(world, 64)
        assert second.tokens == first.tokens == alone(model, "bfloat16", prompt, 5).token_ids
        assert same(second.rows, first.rows)
        assert (world.source_prefixes.counts.hits, world.source_prefixes.counts.misses) == (1, 1)
        assert world.destination_prefixes.counts.reused == 3
        await drained_but_for_prefixes(world)


async def test_answers_of_several_tokens_each_end_in_blocks_of_their_own(model):
    """Two answers grow behind one prefix at the same time, and neither writes where the other reads."""
    prompt, limit = SHARED[:50], 40
    async with World(model, {"num_blocks": 200}, {"num_blocks": 200}, keeps=BOTH) as world:
        await serve(world, ask(prompt, name="first"))
        requests = [ask((*prompt, 7 + each), name=f"r{each}", max_tokens=limit) for each in range(3)]
        served = await asyncio.gather(*(serve(world, request) for request in requests))
        assert [found.have_tokens for found in served] == [48] * 3
        shared = {found.released.filled.reserved.blocks[:3] for found in served}
        own = [block for found in served for block in found.released.filled.reserved.own_blocks]
        assert len(shared) == 1
        assert len(set(own)) == len(own)
        assert not set(own) & set(*shared)
        for request, found in zip(requests, served, strict=True):
            assert found.tokens == alone(model, "bfloat16", request.token_ids, limit).token_ids
        await drained_but_for_prefixes(world)


async def test_the_bytes_of_a_shared_prefix_are_never_written_again(model):
    async with World(model, keeps=BOTH) as world:
        await serve(world, ask(SHARED[:48], name="first"))
        pools = (world.source_engine.pool, world.destination_engine.pool)
        kept = [
            tuple(each.block for each in prefixes._kept.values())
            for prefixes in (world.source_prefixes, world.destination_prefixes)
        ]
        before = [pool.read_tokens(blocks, 48).fields for pool, blocks in zip(pools, kept, strict=True)]
        await serve(world, ask(SHARED, name="second", max_tokens=30))
        after = [pool.read_tokens(blocks, 48).fields for pool, blocks in zip(pools, kept, strict=True)]
        assert all(same(now, then) for now, then in zip(after, before, strict=True))
        await drained_but_for_prefixes(world)


async def test_I7_another_tenant_finds_nothing_and_gets_the_same_answer(model):
    async with World(model, keeps=BOTH, sole_tenant=None) as world:
        first = await serve(world, ask(SHARED, name="one"))
        other = await serve(world, ask(SHARED, name="two", tenant="tenant-1"))
        assert (other.computed, other.have_tokens, other.wire_bytes) == (70, 0, first.wire_bytes)
        assert other.tokens == first.tokens
        again = await serve(world, ask(SHARED, name="three", tenant="tenant-1"))
        assert (again.computed, again.have_tokens) == (6, 64)
        await drained_but_for_prefixes(world)


async def test_retained_blocks_give_way_to_a_request_that_needs_the_room(model):
    """Eight blocks on each side; the first prompt keeps four, the second needs six and has nothing in common."""
    few = {"num_blocks": 8}
    other = random_prompt(90, seed=5)
    async with World(model, few, few, keeps=BOTH) as world:
        await serve(world, ask(SHARED, name="one"))
        assert (len(world.source_prefixes), len(world.destination_prefixes)) == (4, 4)
        found = await serve(world, ask(other, name="two"))
        assert found.tokens == alone(model, "bfloat16", other, 5).token_ids
        assert world.source_prefixes.counts.evicted_room == world.destination_prefixes.counts.evicted_room == 2
        back = await serve(world, ask(SHARED, name="three"))
        assert back.tokens == alone(model, "bfloat16", SHARED, 5).token_ids
        await drained_but_for_prefixes(world)


async def test_a_prefix_in_use_is_not_given_up_and_who_needs_the_room_waits(model):
    few = {"num_blocks": 8}
    gate = Gate()
    async with World(model, few, few, keeps=BOTH) as world:
        await serve(world, ask(SHARED, name="one"))
        world.hooks.at("read", gate)
        held_up = asyncio.create_task(serve(world, ask(SHARED, name="two")))
        await gate.reached.wait()
        assert (world.source_prefixes.pinned_blocks, world.destination_prefixes.pinned_blocks) == (4, 4)
        assert world.source_prefixes.reclaim(1) == world.destination_prefixes.reclaim(1) == 0
        world.hooks.at("read", _at_once)
        waiting = asyncio.create_task(serve(world, ask(random_prompt(90, seed=5), name="three")))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not waiting.done()
        gate.open.set()
        assert (await held_up).tokens == alone(model, "bfloat16", SHARED, 5).token_ids
        assert (await waiting).tokens == alone(model, "bfloat16", random_prompt(90, seed=5), 5).token_ids
        await drained_but_for_prefixes(world)


async def _at_once() -> None:
    """Nothing to wait for."""


async def test_a_hand_off_that_fails_leaves_the_prefix_and_takes_nothing_with_it(model):
    async with World(model, keeps=BOTH) as world:
        await serve(world, ask(SHARED[:40], name="one"))

        async def refuse() -> None:
            raise NotAuthorised("not today")

        world.hooks.at("confirm", refuse)
        with pytest.raises(NotAuthorised):
            await world.hand_off(ask(SHARED, name="two"))
        world.hooks.at("confirm", _at_once)
        await until(lambda: not len(world.source) and not len(world.destination))
        assert world.destination_prefixes.pinned_blocks == world.source_prefixes.pinned_blocks == 0
        assert len(world.destination_prefixes) == 2  # what was never installed is not kept
        third = await serve(world, ask(SHARED, name="three"))
        assert third.have_tokens == 32
        assert third.tokens == alone(model, "bfloat16", SHARED, 5).token_ids
        await drained_but_for_prefixes(world)


async def test_a_retained_block_that_was_damaged_at_the_producer_is_found_when_it_crosses(model):
    """The digest made at the fill travels with the block through its retention (I1)."""
    async with World(model, keeps=("producer",)) as world:
        await serve(world, ask(SHARED[:48], name="one"))
        (first, *_) = world.source_prefixes._kept.values()
        pool = world.source_engine.pool
        for view in pool._views["value"]:
            view.words[1, first.block] ^= 1
        with pytest.raises(DigestMismatch):
            await world.hand_off(ask(SHARED, name="two"))
        await until(lambda: not len(world.source) and not len(world.destination))


async def test_the_digest_offered_is_of_the_suffix_alone(model):
    async with World(model, keeps=BOTH) as world:
        await serve(world, ask(SHARED[:48], name="one"))
        found = await serve(world, ask(SHARED, name="two"))
        state = decode_manifest(world.offers[-1][0].manifest)
        assert (state.token_range.start, state.token_range.stop) == (48, 70)
        assert len(state.groups[0].block_ids) == 2
        assert found.released.installed.verified.checked[0].producer_digest == state.groups[0].logical_digest


async def test_only_what_is_granted_may_be_read_of_a_shared_prefix(model):
    """A reader may read the prefix that its own hand-off uses, and no other retained block."""
    gate = Gate()
    async with World(model, keeps=("producer",)) as world:
        await serve(world, ask(SHARED[:32], name="one"))
        await serve(world, ask(random_prompt(40, seed=3), name="another"))
        world.hooks.at("read", gate)
        reading = asyncio.create_task(serve(world, ask(SHARED, name="two")))
        await gate.reached.wait()
        state = decode_manifest(world.offers[-1][0].manifest)
        grant, epoch = state.ownership.grant, state.ownership.epoch
        world.source.check_read(grant, epoch, DECODE, state.groups[0].block_ids)
        retained = {each.block for each in world.source_prefixes._kept.values()}
        others = retained - set(state.groups[0].block_ids)
        assert len(others) == 2
        for block in (*others, next(b for b in range(64) if world.source_ledger.state(BlockId(b)) is BlockState.FREE)):
            with pytest.raises(NotAuthorised, match="not under this grant"):
                world.source.check_read(grant, epoch, DECODE, [block])
        gate.open.set()
        await reading
        await drained_but_for_prefixes(world)


async def test_an_offer_that_begins_elsewhere_than_asked_is_refused(model):
    """A producer that offers all of it where a suffix was asked for would have rows written over the prefix."""
    async with World(model, keeps=("consumer",)) as world:
        await serve(world, ask(SHARED[:48], name="one"))
        inner = world.producer

        class Forgetful:
            def __getattr__(self, name):
                return getattr(inner, name)

            async def prefill(self, order: PrefillOrder, deadline):
                return await inner.prefill(PrefillOrder(**{**_fields(order), "have_tokens": 0}), deadline)

        world.producer = Forgetful()
        with pytest.raises(ManifestInvalid, match="token_range"):
            await world.hand_off(ask(SHARED, name="two"))
        await until(lambda: not len(world.source) and not len(world.destination))


def _fields(order: PrefillOrder) -> dict:
    return {name: getattr(order, name) for name in order.__struct_fields__}


async def test_a_holder_that_says_it_has_everything_is_refused(model):
    async with World(model) as world:
        for have_tokens in (70, 71, 1000):
            order = PrefillOrder(
                handoff="c" * 32,
                holder=DECODE,
                holder_incarnation=DECODE_LIFE,
                request=ask(SHARED),
                have_tokens=have_tokens,
            )
            with pytest.raises(BadInput, match="wanted at most 69"):
                await world.side.prefill(order)
        await world.drained()


async def test_every_number_of_tokens_that_a_holder_may_have_gives_it_exactly_the_rest(model):
    """Also where the cut lies within a block: then the block that has it crosses whole."""
    request = ask(SHARED[:37])
    async with World(model, keeps=("producer",)) as world:
        await serve(world, ask(SHARED[:20], name="before"))
        for have_tokens in range(37):
            order = PrefillOrder(
                handoff=f"{have_tokens:032x}",
                holder=DECODE,
                holder_incarnation=DECODE_LIFE,
                request=request,
                have_tokens=have_tokens,
            )
            reply = await world.side.prefill(order)
            state = decode_manifest(reply.manifest)
            assert (state.token_range.start, state.token_range.stop) == (have_tokens, 37)
            assert len(state.groups[0].block_ids) == 3 - have_tokens // 16
            world.source.abandon(HandoffId(order.handoff), DECODE, DECODE_LIFE)
        await drained_but_for_prefixes(world)


async def test_the_first_token_that_ends_an_answer_keeps_the_producer_s_prefix_only(model):
    async with World(model, keeps=BOTH) as world:
        released = await world.hand_off(ask(SHARED, name="one", max_tokens=1))
        assert released.installed is None
        assert (len(world.source_prefixes), len(world.destination_prefixes)) == (4, 0)
        await drained_but_for_prefixes(world)


async def test_a_reader_that_dies_leaves_what_it_had_pinned_free_to_go(model):
    gate = Gate()
    async with World(model, keeps=BOTH) as world:
        await serve(world, ask(SHARED[:48], name="one"))
        world.hooks.at("read", gate)
        reading = asyncio.create_task(world.hand_off(ask(SHARED, name="two")))
        await gate.reached.wait()
        assert world.source_prefixes.pinned_blocks == 3
        await world.side.peer_lost(DECODE, DECODE_LIFE)
        assert world.source_prefixes.pinned_blocks == 0
        assert len(world.source_prefixes) == 4
        reading.cancel()
        await asyncio.wait({reading})
        await until(lambda: not len(world.source) and not len(world.destination))
        await drained_but_for_prefixes(world)


@pytest.mark.parametrize("kind", [GroupKind.MAMBA, GroupKind.GDN, GroupKind.SLIDING_WINDOW])
@settings(max_examples=10)
@given(data=st.data())
def test_groups_that_blocks_alone_do_not_continue_are_refused(kind, data):
    """A state is of a whole sequence: without its checkpoint at the cut there is nothing to go on from."""
    representation = data.draw(sides(data.draw(shapes((kind,)))))
    ledger = Ledger(num_blocks=4, block_bytes=16, staging_bytes=0)
    cache = PrefixCache(ledger=ledger, clock=ManualClock(), retention=LeastRecent(), blocks_max=4)
    assert not reusable(representation)
    with pytest.raises(Unsupported, match=kind.value):
        Reuse(representation, cache, secret=SECRET)
    assert Reuse(representation).names(ask(SHARED), IDENTITY, representation) == ()
