"""Wrong bytes on the way: nothing of them is installed, nothing is leaked, and the same request succeeds afterwards."""

import asyncio

import pytest

from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch, TransferFailed
from isthmus.kernels import torch_execute
from isthmus.transport.faulty import Delay, Drop, FlipBit, Tear, When
from tests.engines.models import random_prompt
from tests.handoff.worlds import LEASE, World, alone, ask, until

PROMPT = random_prompt(32, seed=2)  # whole blocks on the producer's side: every byte that crosses has a meaning
LOSSLESS = ({"block_size": 16}, {"block_size": 5, "kv_layout": "HND", "kv_order": "two_tensors", "tp_size": 2})
LOSSY = ({"block_size": 16}, {"block_size": 8, "kv_cache_dtype": "int8_per_token_head"})
INLINE = (
    {"block_size": 16, "kv_cache_dtype": "int8_per_token_head"},
    {"block_size": 8, "kv_cache_dtype": "int8_per_token_head", "scale_location": "side_pool"},
)
SEPARATE = ({"block_size": 16, "kv_order": "two_tensors", "tp_size": 4}, {"block_size": 8})
PAIRS = {"lossless": LOSSLESS, "lossy": LOSSY, "scales inline": INLINE, "separate regions": SEPARATE}
BITS = [0, 7, 77_777, 262_143, 9_999_991, 123_456_789]


async def end_in_doubt(world: World, request) -> None:
    with pytest.raises((DigestMismatch, ConversionOutOfBounds)) as caught:
        await world.hand_off(request)
    assert caught.value.field in ("logical_digest", "key", "value")
    assert "confirm" not in world.hooks.seen
    assert world.installs() == 0
    await world.drained()


async def succeed(world: World, request) -> None:
    released = await world.hand_off(request)
    tokens = await world.decode(request, released)
    if released.installed.verified.arrived.planned.verdict.lossless:
        encoding = world.source_engine.config.kv_cache_dtype
        assert tokens == alone(world.source_engine.config.model, encoding, PROMPT, 5).token_ids
    assert world.installs() == 1
    await world.drained()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("bit", BITS)
async def test_a_flipped_bit_ends_the_hand_off_and_the_same_request_then_succeeds(model, pair, bit):
    request = ask(PROMPT)
    async with World(model, *PAIRS[pair], faults=[FlipBit(bit=bit)]) as world:
        await end_in_doubt(world, request)
        assert world.reader.injected
        await succeed(world, request)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("fraction", [0.001, 0.5, 1.0])
async def test_bytes_that_never_arrived_end_the_hand_off(model, pair, fraction):
    request = ask(PROMPT)
    async with World(model, *PAIRS[pair], faults=[Tear(fraction=fraction)]) as world:
        await end_in_doubt(world, request)
        await succeed(world, request)


@pytest.mark.parametrize("fraction", [0.0, 0.7])
async def test_a_transfer_that_breaks_off_gives_both_sides_their_blocks_back(model, fraction):
    request = ask(PROMPT)
    async with World(model, *LOSSLESS, faults=[Drop(fraction=fraction)]) as world:
        with pytest.raises(TransferFailed):
            await world.hand_off(request)
        await world.drained()
        await succeed(world, request)


async def test_without_the_digest_comparison_the_flipped_bit_would_be_installed(model, monkeypatch):
    """The canary: it shows that it is the digest, and nothing else, that the tests above depend on."""
    monkeypatch.setattr(torch_execute, "_hold", lambda *_: None)
    request = ask(PROMPT)
    async with World(model, *LOSSLESS, faults=[FlipBit(bit=77_777)]) as world:
        released = await world.hand_off(request)
        installed, (_, _, filled) = world.installed_rows(request, released), world.offers[0]
        wrong = sum(int((installed.fields[name] != filled.fields[name]).sum()) for name in filled.fields)
        assert wrong == 1
        assert world.installs() == 1
        world.consumer.finish(released.filled.reserved)


async def test_a_flip_where_no_token_lies_changes_nothing(model):
    """The digest is of tokens: what fills up the last block is not part of the state."""
    request = ask(PROMPT[:17])
    padding = 8 * (2 * 16 * 4 * 12 * 2 - 1)  # the last byte of the first layer's K: slot 15 of the second block
    async with World(model, *LOSSLESS, faults=[FlipBit(bit=padding)]) as world:
        released = await world.hand_off(request)
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT[:17], 5).token_ids
        await world.drained()


@pytest.mark.parametrize("when", When)
async def test_a_transfer_that_is_late_within_its_lease_is_installed(model, when):
    request, late = ask(PROMPT), LEASE / 4
    async with World(model, *LOSSLESS, faults=[Delay(duration=late, when=when)]) as world:
        handing = asyncio.create_task(succeed(world, request))
        await until(lambda: world.reader.injected if when is When.BEFORE else "copied" in world.hooks.seen)
        world.pass_time(late)
        await handing
