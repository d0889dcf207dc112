"""Blocks that are given up lie in host memory, and behind it in files; what comes back is the same bits, or nothing."""

import asyncio
from collections.abc import Sequence

import pytest
import torch

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import Bug, ConfigInvalid, DigestMismatch
from isthmus.handoff.tier_store import TierStore
from isthmus.handoff.tiers import Tiers
from isthmus.ownership.residency import Discard, Item, Lie, MemoryOnly, NearestWithRoom, Tier, TierState
from tests.engines.models import DEVICE, random_prompt
from tests.handoff.test_prefix_reuse import drained_but_for_prefixes, same, serve
from tests.handoff.tiered import TieredWorld, wanted
from tests.handoff.worlds import LEASE, alone, ask

PROMPT, OTHER = random_prompt(70, seed=11), random_prompt(110, seed=12)
FEW = {"num_blocks": 8}


def within_bounds(*stores: TierStore) -> bool:
    return all(store.bytes_held <= store.state().capacity_bytes for store in stores)


def flip(world: TieredWorld, name: bytes) -> None:
    """One bit of the block of this name, in the producer's slab."""
    host = world.source_host
    (slot,) = [slot for slot in host._slots.values() if slot.key.prefix == name]
    host._view(slot.number)[-1] ^= 1


@pytest.mark.parametrize(
    ("producer", "consumer"),
    [
        ({"block_size": 16}, {"block_size": 16}),
        ({"block_size": 8, "tp_size": 2, "kv_layout": "HND"}, {"block_size": 32, "kv_cache_dtype": "float32"}),
        (
            {"kv_cache_dtype": "int8_per_token_head", "block_size": 16},
            {"kv_cache_dtype": "int8_per_token_head", "scale_location": "side_pool", "block_size": 5},
        ),
    ],
    ids=["same", "other-forms", "quantised"],
)
async def test_what_was_given_up_comes_back_from_memory_and_is_the_same_bits(model, producer, consumer):
    ours, theirs = producer["block_size"], consumer["block_size"]
    async with TieredWorld(model, producer, consumer, host_blocks=20) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (70 - 69 // ours * ours, 69 // theirs * theirs)
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)
        source, destination = world.source_tiers.row(), world.destination_tiers.row()
        name = world.source_host.tier
        assert (source[f"{name}_written"], source[f"{name}_loaded"]) == (70 // ours, 69 // ours)
        assert (destination[f"{name}_written"], destination[f"{name}_loaded"]) == (70 // theirs, 69 // theirs)
        assert (source["pool_discarded"], source[f"{name}_failed"]) == (0, 0)
        assert source[f"{name}_bytes"] == 70 // ours * (world.source_kv.block_bytes + 8 * ours)
        await drained_but_for_prefixes(world)
    found = await wanted(model, PROMPT, producer, consumer)
    assert found.tokens == again.tokens
    assert same(found.rows, again.rows)


async def test_full_memory_gives_up_what_is_worth_least_to_files_and_all_of_it_comes_back(model, tmp_path):
    """A prefix's last block leaves the pool first, so it is the one that has been in memory for longest."""
    async with TieredWorld(model, {}, {}, host_blocks=3, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(1, 1)
        assert within_bounds(world.source_host, world.destination_host)
        assert world.source_host.counts.discarded == 0
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)
        assert (world.source_host.counts.loaded, world.source_files.counts.loaded) == (3, 1)
        assert (world.destination_host.counts.loaded, world.destination_files.counts.loaded) == (3, 1)
        await drained_but_for_prefixes(world)


async def test_without_files_what_full_memory_gives_up_is_computed_again(model):
    async with TieredWorld(model, {}, {}, host_blocks=3) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        assert (world.source_host.counts.written, world.source_host.counts.discarded) == (4, 1)
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (70 - 48, 48)
        assert same(again.rows, first.rows)


async def test_memory_only_reads_files_and_writes_none(model, tmp_path):
    async with TieredWorld(model, {}, {}, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
    async with TieredWorld(model, {}, {}, host_blocks=1, folder=tmp_path, residency=_NoTime()) as world:
        await serve(world, ask(OTHER, name="other"))
        world.give_up()
        again = await serve(world, ask(PROMPT, name="two"))
        assert again.computed == 6
        assert same(again.rows, first.rows)
        assert (world.source_files.counts.written, world.source_files.counts.loaded) == (0, 4)
        assert world.source_host.counts.discarded == 5


class _NoTime(MemoryOnly):
    """On the tests' clock nothing takes any time, so nothing would ever pay."""

    def _pays(self, item: Item, tier: TierState) -> bool:
        return True


@pytest.mark.parametrize("which", [0, 1, 3])
async def test_a_block_whose_bytes_changed_in_memory_is_not_installed_but_computed_again(model, which):
    async with TieredWorld(model, {}, {}, host_blocks=4) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        names = [kept.entry.key for kept in world.source_prefixes._kept.values()]
        world.give_up()
        flip(world, names[which])
        before = world.source_host.bytes_held
        again = await serve(world, ask(PROMPT, name="two"))
        assert again.computed == 70 - 16 * which
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)
        assert (world.source_host.counts.loaded, world.source_host.counts.failed) == (which, 1)
        assert world.source_host.bytes_held == before * 3 // 4
        await drained_but_for_prefixes(world)


async def test_a_block_whose_bytes_changed_in_memory_does_not_become_a_whole_file(model, tmp_path):
    async with TieredWorld(model, {}, {}, host_blocks=4, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        names = [kept.entry.key for kept in world.source_prefixes._kept.values()]
        world.give_up()
        flip(world, names[0])
    async with TieredWorld(model, {}, {}, folder=tmp_path) as world:
        assert len(world.source_files._index) == 3
        again = await serve(world, ask(PROMPT, name="two"))
        assert again.computed == 70


async def test_a_block_whose_digests_do_not_add_up_to_what_was_kept_of_them_is_not_installed(model):
    async with TieredWorld(model, {}, {}, host_blocks=4) as world:
        await serve(world, ask(PROMPT, name="one"))
        names = [kept.entry.key for kept in world.source_prefixes._kept.values()]
        world.give_up()
        (slot,) = [slot for slot in world.source_host._slots.values() if slot.key.prefix == names[2]]
        slot.logical_digest ^= 1
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, world.source_host.counts.failed) == (70 - 32, 1)


async def test_the_digest_made_at_the_fill_travels_with_a_block_through_memory(model):
    """A pool that went bad before the block left it: the copy is whole, and what crosses is found out (I1)."""
    async with TieredWorld(model, {}, {}, host_blocks=8) as world:
        await serve(world, ask(PROMPT, name="one"))
        (first, *_) = world.source_prefixes._kept.values()
        for view in world.source_engine.pool._views["key"]:
            view.words[0, first.block] ^= 1
        world.source_prefixes.drop()
        world.destination_prefixes._on_evicted.clear()
        world.destination_prefixes.drop()
        with pytest.raises(DigestMismatch):
            await world.hand_off(ask(PROMPT, name="two"))
        assert world.source_host.counts.loaded == 4


async def test_I7_another_tenant_finds_nothing_in_memory_either(model):
    async with TieredWorld(model, {}, {}, host_blocks=8, sole_tenant=None) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        other = await serve(world, ask(PROMPT, name="two", tenant="tenant-1"))
        assert (other.computed, other.have_tokens) == (70, 0)
        await drained_but_for_prefixes(world)


async def test_what_a_load_pushes_out_of_the_pool_does_not_push_out_what_is_loaded(model, tmp_path):
    """Memory for four blocks, and all four are wanted: what leaves the pool for them goes to files meanwhile."""
    async with TieredWorld(model, FEW, FEW, host_blocks=4, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        world.clock.advance(LEASE / 4)
        await serve(world, ask(OTHER, name="two"))
        world.clock.advance(LEASE / 4)
        again = await serve(world, ask(PROMPT, name="three"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert again.tokens == alone(model, "bfloat16", PROMPT, 5).token_ids
        assert (world.source_host.counts.loaded, world.source_files.counts.loaded) == (4, 0)
        assert world.source_tiers.discarded == 0
        assert within_bounds(world.source_host, world.destination_host)
        await drained_but_for_prefixes(world)


async def test_two_prompts_that_begin_alike_load_the_same_blocks_at_once(model):
    async with TieredWorld(model, {}, {}, host_blocks=8) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        both = await asyncio.gather(*(serve(world, ask(PROMPT, name=name)) for name in ("two", "three")))
        for found in both:
            assert (found.computed, found.tokens) == (6, first.tokens)
            assert same(found.rows, first.rows)
        assert world.source_host.state().used_bytes == 0
        await drained_but_for_prefixes(world)


async def test_whatever_prompts_come_in_whatever_order_every_tier_keeps_within_its_bound(model, tmp_path):
    """Prompts that begin alike here and there, on a pool, memory and files that are each too small for them."""
    seed = int(SystemClock().token(), 16)
    print("seed", seed)
    clock = ManualClock(seed)

    def chance(start: int, stop: int) -> int:
        return start + int(clock.token(), 16) % (stop - start)

    beginnings = [random_prompt(50, seed=each) for each in range(3)]
    async with TieredWorld(model, FEW, FEW, host_blocks=3, folder=tmp_path, file_blocks=5) as world:
        for number in range(14):
            begin = beginnings[chance(0, 3)][: chance(20, 50)]
            prompt = (*begin, *random_prompt(chance(1, 40), seed=chance(0, 2)))
            world.clock.advance(LEASE / 4)
            found = await serve(world, ask(prompt, name=f"r{number}"))
            assert found.tokens == alone(model, "bfloat16", prompt, 5).token_ids
            stores = (world.source_host, world.source_files, world.destination_host, world.destination_files)
            assert within_bounds(*stores)
            if chance(0, 3) == 0:
                world.give_up()
        assert all(store.counts.failed == 0 for store in stores)
        assert world.source_host.counts.written > 3
        await drained_but_for_prefixes(world)


async def test_the_next_life_finds_in_files_what_the_last_one_had_in_memory(model, tmp_path):
    async with TieredWorld(model, {}, {}, host_blocks=8, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        assert world.source_files.counts.written == 0
    async with TieredWorld(model, {}, {}, host_blocks=8, folder=tmp_path) as world:
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert same(again.rows, first.rows)
        assert world.source_files.counts.loaded == 4


async def test_the_policy_is_asked_of_each_block_and_sees_every_tier(model, tmp_path):
    """One that lets the second block lie: of what is behind it nothing is of use."""
    asked: list[tuple[Tier, set[Tier]]] = []

    class FirstOnly(NearestWithRoom):
        def promote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie:
            asked.append((lies_in, {state.tier for state in tiers}))
            return Lie(tier=Tier.DEVICE if len(asked) == 1 else lies_in)

    async with TieredWorld(model, {}, {}, host_blocks=3, folder=tmp_path, residency=FirstOnly()) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.source_prefixes.drop()
        again = await serve(world, ask(PROMPT, name="two"))
        host = world.source_host.tier
        assert asked == [(host, {Tier.DEVICE, host, Tier.FILE})] * 2
        assert (again.computed, again.have_tokens) == (70 - 16, 64)
        await drained_but_for_prefixes(world)


async def test_a_policy_that_sends_a_block_where_nothing_is_is_a_bug(model):
    class ToFiles(NearestWithRoom):
        def demote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie | Discard:
            return Lie(tier=Tier.FILE)

    async with TieredWorld(model, {}, {}, host_blocks=8, residency=ToFiles()) as world:
        await serve(world, ask(PROMPT, name="one"))
        with pytest.raises(Bug, match="from device to file"):
            world.source_prefixes.drop()


def test_host_memory_is_pinned_where_the_pool_is_on_a_gpu_and_only_there(model):
    world = TieredWorld(model, {}, {}, host_blocks=2)
    on_gpu = DEVICE != "cpu"
    assert world.source_host.tier is (Tier.PINNED_HOST if on_gpu else Tier.HOST)
    memory = world.source_kv.host_memory(4096)
    assert (len(memory), memory.readonly, memory.format) == (4096, False, "B")
    assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned() == on_gpu


def test_memory_for_less_than_one_block_is_refused_with_the_field_that_says_so(model):
    with pytest.raises(ConfigInvalid, match=r"host_bytes_max: got \d+, wanted at least one block's") as caught:
        TieredWorld(model, {}, {}, host_blocks=0)
    assert caught.value.field == "host_bytes_max"


async def test_tiers_alike_or_in_the_pool_s_place_are_a_bug(model) -> None:
    world = TieredWorld(model, {}, {}, host_blocks=2)
    with pytest.raises(Bug, match="tiers behind the pool"):
        Tiers(
            [world.source_host, world.source_host],
            residency=NearestWithRoom(),
            pool=world.source_kv,
            cache=world.source_prefixes,
            ledger=world.source_ledger,
            clock=world.clock,
            identity=b"model",
            representation=b"form",
            digests_per_block=16,
            idle=lambda: True,
        )
