"""Blocks that are given up lie in files, come back when they are wanted, and are never believed without proof."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from isthmus.core.clock import ManualClock
from isthmus.core.errors import ConfigInvalid, DigestMismatch
from isthmus.core.units import GIB
from isthmus.handoff.consumer import ConsumerSide, Deadlines
from isthmus.handoff.file_tier import FileTier, kept_secret
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.reuse import Reuse
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.index_file import read_file
from isthmus.ownership.residency import Discard, Item, Lie, NearestThatPays, Tier, TierState
from isthmus.ownership.retention import LeastRecent
from tests.engines.models import random_prompt
from tests.handoff.hooks import HookedProducer
from tests.handoff.test_prefix_reuse import Served, drained_but_for_prefixes, same, serve
from tests.handoff.worlds import (
    DECODE,
    DECODE_LIFE,
    LEASE,
    PATIENCE,
    PREFILL,
    PREFILL_LIFE,
    SECRET,
    World,
    alone,
    ask,
    until,
)

PROMPT, OTHER = random_prompt(70, seed=11), random_prompt(110, seed=12)
FEW = {"num_blocks": 8}


class Always:
    """A residency policy for which a file always pays. The tests' clock stands still: nothing takes any time."""

    def place(self, item: Item, tiers: Sequence[TierState]) -> Lie | Discard:
        return Lie(tier=Tier.FILE)

    def demote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie | Discard:
        return Lie(tier=Tier.FILE)

    def promote(self, item: Item, lies_in: Tier, tiers: Sequence[TierState]) -> Lie:
        return Lie(tier=lies_in)


class FiledWorld(World):
    """A world whose sides put what they give up in files, each in a folder of its own."""

    def __init__(self, model: Path, folder: Path, producer: dict, consumer: dict, *, residency=None, **more) -> None:
        super().__init__(model, producer, consumer, keeps=("producer", "consumer"), **more)
        policy = residency or Always()
        self.source_files = self._tier(folder / "producer", policy, producer=True)
        self.destination_files = self._tier(folder / "consumer", policy, producer=False)
        source, destination = self.source_kv, self.destination_kv
        self.side = ProducerSide(
            source,
            self.source,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            wait=PATIENCE,
            resuming=source,
            reuse=Reuse(source.representation, self.source_prefixes, secret=SECRET, files=self.source_files),
        )
        self.producer = HookedProducer(self.side, self.hooks)
        self.consumer = ConsumerSide(
            destination,
            self.destination,
            self._peer_of,
            self.clock,
            worker=DECODE,
            incarnation=DECODE_LIFE,
            deadlines=Deadlines(reserve=PATIENCE, prefill=PATIENCE, transfer=PATIENCE, confirm=LEASE / 4),
            reuse=Reuse(
                destination.representation, self.destination_prefixes, secret=SECRET, files=self.destination_files
            ),
        )

    def _tier(self, folder: Path, residency, *, producer: bool) -> FileTier:
        store = self.source_kv if producer else self.destination_kv
        return FileTier(
            DurableIndex(folder, bytes_max=GIB, clock=self.clock, retention=LeastRecent()),
            bytes_max=GIB,
            residency=residency,
            store=store,
            cache=self.source_prefixes if producer else self.destination_prefixes,
            ledger=self.source_ledger if producer else self.destination_ledger,
            clock=self.clock,
            identity=b"model",
            representation=repr(store.representation).encode()[:60],
            digests_per_block=store.representation.groups[0].block_size if producer else 0,
            idle=lambda: True,
        )

    async def __aenter__(self) -> "FiledWorld":
        await super().__aenter__()
        await self._stack.enter_async_context(self.source_files.running())
        await self._stack.enter_async_context(self.destination_files.running())
        return self

    def give_up(self) -> None:
        self.source_prefixes.drop()
        self.destination_prefixes.drop()

    async def written(self, producer: int, consumer: int) -> None:
        await until(
            lambda: (self.source_files.counts.written, self.destination_files.counts.written) == (producer, consumer)
        )


async def wanted(model: Path, prompt: tuple[int, ...], producer: dict, consumer: dict) -> Served:
    async with World(model, producer, consumer) as fresh:
        return await serve(fresh, ask(prompt, name="wanted"))


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
    async with FiledWorld(model, tmp_path, producer, consumer) as world:
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
    async with FiledWorld(model, tmp_path, FEW, FEW) as world:
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
    async with FiledWorld(model, tmp_path, *sides) as world:
        first = await serve(world, ask(PROMPT, name="one"))
        world.give_up()
    async with FiledWorld(model, tmp_path, *sides) as world:
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (6, 64)
        assert again.tokens == first.tokens
        assert same(again.rows, first.rows)


async def test_I7_another_tenant_finds_nothing_in_files_either(model, tmp_path):
    async with FiledWorld(model, tmp_path, {}, {}, sole_tenant=None) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(4, 4)
        other = await serve(world, ask(PROMPT, name="two", tenant="tenant-1"))
        assert (other.computed, other.have_tokens) == (70, 0)
        await drained_but_for_prefixes(world)


@pytest.mark.parametrize("which", [0, 1, 3])
async def test_a_damaged_file_ends_what_comes_back_there_and_the_answer_is_the_same(model, tmp_path, which):
    async with FiledWorld(model, tmp_path, {}, {}) as world:
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


async def _name_of(world: FiledWorld, name: bytes) -> str:
    """The file of a prefix's name, whatever the tenant's label."""
    folder = world.source_files._index._folder
    (found,) = [path.name for path in folder.glob("*.kv") if read_file(path).header.key.prefix == name]
    return found


async def test_the_digest_made_at_the_fill_travels_with_a_block_through_its_file(model, tmp_path):
    """A pool that went bad before the block was written: the file is whole, and what crosses is found out (I1)."""
    async with FiledWorld(model, tmp_path, {}, {}) as world:
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
    async with FiledWorld(model, tmp_path, {}, {}) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        await world.written(4, 4)
        world.source_files._idle = lambda: False
        again = await serve(world, ask(PROMPT, name="two"))
        assert (again.computed, again.have_tokens) == (70, 64)
        await drained_but_for_prefixes(world)


async def test_what_is_computed_again_sooner_than_loaded_is_not_written(model, tmp_path):
    """On the tests' clock a prefill takes no time at all."""
    async with FiledWorld(model, tmp_path, {}, {}, residency=NearestThatPays()) as world:
        await serve(world, ask(PROMPT, name="one"))
        world.give_up()
        assert (world.source_files.counts.discarded, world.destination_files.counts.discarded) == (4, 4)
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
    theirs.put_block(5, ours.take_block(9))
    found, taken = theirs.read_tokens((5,), 16).fields, ours.read_tokens((9,), 16).fields
    assert same(found, taken)
    untouched = theirs.read_tokens((4, 6), 32).fields
    assert all((rows == 0xFF).all() for rows in untouched.values())
