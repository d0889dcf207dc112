"""Blocks that are given up lie in files, come back when they are wanted, and are never believed without proof."""

import pytest
import torch

from isthmus.core.clock import ManualClock
from isthmus.core.errors import ConfigInvalid, DigestMismatch
from isthmus.handoff.file_tier import kept_secret
from isthmus.ownership.index_file import read_file
from isthmus.ownership.residency import NearestThatPays
from tests.engines.models import random_prompt
from tests.handoff.test_prefix_reuse import drained_but_for_prefixes, same, serve
from tests.handoff.tiered import TieredWorld, wanted
from tests.handoff.worlds import LEASE, World, alone, ask

PROMPT, OTHER = random_prompt(70, seed=11), random_prompt(110, seed=12)
FEW = {"num_blocks": 8}


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
async def test_what_was_given_up_comes_back_and_is_the_same_bits(model, tmp_path, producer, consumer):
    ours, theirs = producer["block_size"], consumer["block_size"]
    async with TieredWorld(model, producer, consumer, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(70 // ours, 70 // theirs)
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (70 - 69 // ours * ours, 69 // theirs * theirs)
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)
        assert (world.source_files.counts.loaded, world.destination_files.counts.loaded) == (69 // ours, 69 // theirs)
        await drained_but_for_prefixes(world)
    found = await wanted(model, PROMPT, producer, consumer)
    assert found.tokens == again.tokens
    assert same(found.rows, again.rows)


async def test_a_prompt_that_was_pushed_out_by_another_is_not_computed_again(model, tmp_path):
    async with TieredWorld(model, FEW, FEW, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.clock.advance(LEASE / 4)
        await serve(world, ask(OTHER, name="two"))
        await world.written(3, 4)
        world.clock.advance(LEASE / 4)
        assert (len(world.source_prefixes), world.source_ledger.available().blocks) == (7, 1)
        again = await serve(world, ask(PROMPT, name="three"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert again.tokens == alone(model, "bfloat16", PROMPT, 5).token_ids
        await drained_but_for_prefixes(world)


async def test_the_next_life_of_a_worker_finds_what_the_last_one_left(model, tmp_path):
    sides = {"block_size": 16}, {"block_size": 32}
    async with TieredWorld(model, *sides, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
    async with TieredWorld(model, *sides, folder=tmp_path) as world:
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)


async def test_I7_another_tenant_finds_nothing_in_files_either(model, tmp_path):
    async with TieredWorld(model, {}, {}, sole_tenant=None, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(4, 4)
        other = await serve(world, ask(PROMPT, name="two", tenant="tenant-1"))
        assert (other.computed, other.have_tokens) == (70, 0)
        await drained_but_for_prefixes(world)


@pytest.mark.parametrize("which", [0, 1, 3])
async def test_a_damaged_file_ends_what_comes_back_there_and_the_answer_is_the_same(model, tmp_path, which):
    async with TieredWorld(model, {}, {}, folder=tmp_path) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        names = [kept.entry.key for kept in world.source_prefixes._kept.values()]
        world.give_up()
        await world.written(4, 4)
        index = world.source_files._index
        path = index._folder / (await _name_of(world, names[which]))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        again = await serve(world, ask(PROMPT, name="two"))
        assert again.computed == 70 - 16 * which
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)
        assert index.counts.dropped == 1
        await drained_but_for_prefixes(world)


async def _name_of(world: TieredWorld, name: bytes) -> str:
    """The file of a prefix's name, whatever the tenant's label."""
    folder = world.source_files._index._folder
    (found,) = [path.name for path in folder.glob("*.kv") if read_file(path).header.key.prefix == name]
    return found


async def test_the_digest_made_at_the_fill_travels_with_a_block_through_its_file(model, tmp_path):
    """A pool that went bad before the block was written: the file is whole, and what crosses is found out (I1)."""
    async with TieredWorld(model, {}, {}, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        (first, *_) = world.source_prefixes._kept.values()
        for view in world.source_engine.pool._views["key"]:
            view.words[0, first.block] ^= 1
        world.give_up()
        await world.written(4, 4)
        for path in (tmp_path / "consumer").glob("*.kv"):
            path.unlink()
        with pytest.raises(DigestMismatch):
            await world.hand_off(ask(PROMPT, name="two"))
        assert world.source_files.counts.loaded == 4


async def test_nothing_comes_back_while_somebody_waits_for_room(model, tmp_path):
    async with TieredWorld(model, {}, {}, folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(4, 4)
        world.source_tiers._idle = lambda: False
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (70, 64)
        await drained_but_for_prefixes(world)


async def test_what_is_computed_again_sooner_than_loaded_is_not_written(model, tmp_path):
    """On the tests' clock a prefill takes no time at all."""
    async with TieredWorld(model, {}, {}, residency=NearestThatPays(), folder=tmp_path) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        assert (world.source_tiers.discarded, world.destination_tiers.discarded) == (4, 4)
        again = await serve(world, ask(PROMPT, name="two"))
        assert again.computed == 70
        await drained_but_for_prefixes(world)


def test_the_secret_of_a_folder_is_drawn_once_and_readable_to_its_owner_only(tmp_path):
    clock = ManualClock()
    first = kept_secret(tmp_path / "folder", clock)
    assert kept_secret(tmp_path / "folder", clock) == first
    assert len(first) == 32
    assert (tmp_path / "folder" / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="folder"):
        kept_secret(tmp_path / "file" / "folder", clock)


@pytest.mark.parametrize("fields", [{}, {"kv_layout": "HND", "tp_size": 4}, {"kv_cache_dtype": "int8_per_token_head"}])
def test_a_block_s_bytes_make_the_same_block_elsewhere(model, fields):
    world = World(model, fields, fields)
    ours, theirs = world.source_engine.pool, world.destination_engine.pool
    for region in ours.regions:
        region.data.copy_(torch.randint(0, 256, region.data.shape, dtype=torch.uint8))
    payload = bytearray(ours.block_bytes)
    ours.take_block(9, memoryview(payload))
    theirs.put_block(5, memoryview(bytes(payload)))
    found, taken = theirs.read_tokens((5,), 16).fields, ours.read_tokens((9,), 16).fields
    assert same(found, taken)
    untouched = theirs.read_tokens((4, 6), 32).fields
    assert all((rows == 0xFF).all() for rows in untouched.values())
