"""The grant ends while the consumer reads: what was read is not installed, whoever has the blocks now."""

import asyncio

import pytest
import torch

from isthmus.core.errors import DigestMismatch, GrantUnknown, PeerLost, StaleEpoch
from isthmus.core.units import Duration
from isthmus.kernels import torch_execute
from isthmus.ownership.producer import SourceOwner
from isthmus.transport.faulty import Delay, When
from tests.engines.models import random_prompt
from tests.handoff.hooks import lose, times
from tests.handoff.worlds import LEASE, World, alone, ask, turns, until

FIRST, SECOND = random_prompt(32, seed=3), random_prompt(32, seed=4)
TWO_BLOCKS = {"num_blocks": 2, "block_size": 16}  # room for one prompt: the second gets the blocks of the first
LATE = LEASE * 2


async def begin(world: World, when: When) -> asyncio.Task:
    """A hand-off of FIRST, on to where its transfer is late; renewals are lost."""
    world.hooks.at("renew", lose)
    handing = asyncio.create_task(world.hand_off(ask(FIRST, name="first")))
    await until(lambda: world.reader.injected if when is When.BEFORE else "copied" in world.hooks.seen)
    return handing


async def refill(world: World) -> None:
    """The lease runs out, the reaper frees the blocks, and another request's prefill fills them."""
    blocks = world.offers[0][1]
    world.pass_time(LEASE)
    assert world.source_ledger.held().blocks == 0
    second = asyncio.create_task(world.hand_off(ask(SECOND, name="second")))
    await until(lambda: len(world.offers) == 2)
    assert set(world.offers[1][1]) == set(blocks)
    released = await second
    world.consumer.finish(released.filled.reserved)


async def test_blocks_that_were_reassigned_during_the_read_are_not_installed(model):
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=LATE, when=When.AFTER_LAST_BYTE)]) as world:
        handing = await begin(world, When.AFTER_LAST_BYTE)
        await refill(world)
        world.pass_time(LATE)
        with pytest.raises((StaleEpoch, GrantUnknown)):
            await handing
        assert world.hooks.seen.count("confirmed") == world.installs() == 1  # the second's
        await world.drained()


async def test_a_read_that_begins_after_the_grant_has_ended_is_refused_by_the_guard(model):
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=LATE)]) as world:
        handing = await begin(world, When.BEFORE)
        await refill(world)
        world.pass_time(LATE)
        with pytest.raises(StaleEpoch):
            await handing
        assert world.installs() == 1
        await world.drained()


async def test_a_one_sided_read_of_reassigned_blocks_is_caught_by_the_digest(model):
    """Shared memory asks no guard: the reader gets the other request's bytes."""
    faults = [Delay(duration=LATE)]
    async with World(model, TWO_BLOCKS, faults=faults, transport="shm") as world:
        handing = await begin(world, When.BEFORE)
        await refill(world)
        world.pass_time(LATE)
        with pytest.raises(DigestMismatch):
            await handing
        assert world.installs() == 1
        await world.drained()


async def test_without_the_digest_confirm_alone_keeps_the_other_requests_bytes_out(model, monkeypatch):
    monkeypatch.setattr(torch_execute, "_hold", lambda *_: None)
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=LATE)], transport="shm") as world:
        handing = await begin(world, When.BEFORE)
        await refill(world)
        world.pass_time(LATE)
        with pytest.raises((StaleEpoch, GrantUnknown)):
            await handing
        assert world.installs() == 1
        await world.drained()


async def test_without_both_fences_the_other_requests_bytes_would_be_installed(model, monkeypatch):
    """The canary: the two tests above depend on the digest and on the confirmation, and on nothing else."""
    monkeypatch.setattr(torch_execute, "_hold", lambda *_: None)
    monkeypatch.setattr(SourceOwner, "confirm", lambda _self, _grant, epoch, **_: epoch)
    async with World(model, TWO_BLOCKS, {"num_blocks": 64}, faults=[Delay(duration=LATE)], transport="shm") as world:
        world.hooks.at("renew", lose)
        handing = asyncio.create_task(world.hand_off(ask(FIRST, name="first")))
        await until(lambda: world.reader.injected)
        world.pass_time(LEASE)
        second = asyncio.create_task(world.hand_off(ask(SECOND, name="second")))
        await until(lambda: len(world.offers) == 2)
        await second
        world.pass_time(LATE)
        released = await handing
        installed = world.installed_rows(ask(FIRST), released).fields["key"]
        assert torch.equal(installed, world.offers[1][2].fields["key"])
        assert not torch.equal(installed, world.offers[0][2].fields["key"])


async def test_across_tenants_an_expired_grant_keeps_its_blocks_until_the_reader_has_answered(model):
    faults = [Delay(duration=LATE, when=When.AFTER_LAST_BYTE)]
    async with World(model, TWO_BLOCKS, faults=faults, sole_tenant=None) as world:
        handing = await begin(world, When.AFTER_LAST_BYTE)
        world.pass_time(LEASE)
        assert world.source_ledger.held().quarantined == 2
        world.pass_time(LATE)
        with pytest.raises(StaleEpoch):
            await handing
        assert world.installs() == 0
        await world.drained()


async def test_renewals_keep_a_slow_transfer_alive(model):
    request, slow = ask(FIRST), LEASE * 5
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=slow, when=When.AFTER_LAST_BYTE)]) as world:
        handing = asyncio.create_task(world.hand_off(request))
        await until(lambda: "copied" in world.hooks.seen)
        for _ in range(50):
            assert not handing.done()
            assert world.source_ledger.held().grants == 2
            world.pass_time(slow / 50)
            await turns()
        released = await handing
        assert world.hooks.seen.count("renew") >= 10
        assert await world.decode(request, released) == alone(model, "bfloat16", FIRST, 5).token_ids
        await world.drained()


async def break_off() -> None:
    raise PeerLost("connection: closed", field="connection")


@pytest.mark.parametrize("how", [lose, break_off])
async def test_a_renewal_that_is_lost_is_asked_again_within_the_lease(model, how):
    request, slow = ask(FIRST), LEASE * 2
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=slow, when=When.AFTER_LAST_BYTE)]) as world:
        world.hooks.at("renew", times(2, how))
        handing = asyncio.create_task(world.hand_off(request))
        await until(lambda: "copied" in world.hooks.seen)
        for _ in range(100):
            assert world.source_ledger.held().grants == 2
            world.pass_time(slow / 100)
            await turns()
        released = await handing
        assert await world.decode(request, released) == alone(model, "bfloat16", FIRST, 5).token_ids
        await world.drained()


async def test_a_refused_renewal_is_not_asked_again_and_confirm_decides(model):
    async with World(model, TWO_BLOCKS, faults=[Delay(duration=LATE, when=When.AFTER_LAST_BYTE)]) as world:
        handing = asyncio.create_task(world.hand_off(ask(FIRST)))
        await until(lambda: "copied" in world.hooks.seen)
        world.pass_time(LEASE)  # a pause longer than the lease: the reaper comes before the renewal
        for _ in range(10):
            await turns()
            world.pass_time(Duration(LEASE.ns // 10))
        with pytest.raises(StaleEpoch):
            await handing
        assert world.hooks.seen.count("renew") == 1
        assert world.installs() == 0
        await world.drained()
