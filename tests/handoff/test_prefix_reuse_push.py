"""Reuse where the producer writes: what the consumer has is not written, and what was kept is written at once."""

import pytest

from tests.handoff.push_worlds import MODES, PushWorld
from tests.handoff.test_prefix_reuse import BOTH, SHARED, bytes_of, drained_but_for_prefixes, same, serve
from tests.handoff.worlds import World, ask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("ours", "theirs"), [(16, 16), (16, 32), (32, 16), (7, 16), (8, 5)])
@pytest.mark.parametrize("keeps", [("producer",), ("consumer",), BOTH], ids="+".join)
async def test_answers_and_kv_are_the_same_bits_where_the_producer_writes(model, mode, ours, theirs, keeps):
    sides = {"block_size": ours, "num_blocks": 100}, {"block_size": theirs, "num_blocks": 100}
    requests = [ask(SHARED[:length], name=f"r{length}") for length in (40, 70)]
    async with PushWorld(model, *sides, mode=mode, keeps=keeps) as world:
        first, second = [await serve(world, request) for request in requests]
        await drained_but_for_prefixes(world)
    reused = 40 // ours * ours if "producer" in keeps else 0
    have = 40 // theirs * theirs if "consumer" in keeps else 0
    assert (second.computed, second.have_tokens) == (70 - reused, have)
    assert (first.wire_bytes, second.wire_bytes) == (bytes_of(world, 40), bytes_of(world, 70, have))
    async with World(model, *sides) as fresh:
        for request, found in zip(requests, (first, second), strict=True):
            wanted = await serve(fresh, request)
            assert found.tokens == wanted.tokens
            assert same(found.rows, wanted.rows)
