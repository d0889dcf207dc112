"""Hand-offs in which the producer writes: the same bytes and tokens as by reading, and nothing left however it ends."""

import asyncio

import pytest
import torch

from isthmus.core.errors import DigestMismatch, Lost, NotAuthorised, Rejected, TransferFailed, Unsupported
from isthmus.core.units import Duration
from isthmus.handoff.orders import RegisterOrder, Registration, WrittenOrder
from isthmus.ownership import DestinationPhase
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.transport.faulty import Drop, FlipBit, LateWrite, Tear
from tests.engines.models import random_prompt
from tests.handoff.hooks import Gate
from tests.handoff.push_worlds import MODES, POINTS, PushWorld
from tests.handoff.worlds import DECODE, PATIENCE, World, alone, ask, turns, until

PROMPT = random_prompt(45, seed=1)
DIRECT = ({"block_size": 16}, {"block_size": 16})
CONVERTING = (
    {"block_size": 16, "kv_layout": "NHD", "kv_cache_dtype": "bfloat16"},
    {"block_size": 5, "kv_layout": "HND", "kv_order": "two_tensors", "tp_size": 2, "kv_cache_dtype": "bfloat16"},
)
LOSSY = ({"block_size": 16}, {"block_size": 8, "kv_cache_dtype": "int8_per_token_head"})
PAIRS = {"direct": DIRECT, "converting": CONVERTING, "lossy": LOSSY}
TRANSPORTS = ("memory", "shm", "tcp")


async def installed(world, request):
    """The consumer's rows, and the tokens of the answer."""
    released = await world.hand_off(request)
    rows = {name: field.clone() for name, field in world.installed_rows(request, released).fields.items()}
    return rows, await world.decode(request, released), released


async def storm(task, times) -> None:
    """Cancel again and again, for the clean-up to be met at each of its steps."""
    for time in range(times):
        task.cancel()
        await turns(time % 4)


async def settled(world) -> None:
    """As `drained`; the consumer may have to ask more than once whether a writer has let go of an image."""
    async with asyncio.timeout(20):
        while len(world.source) or len(world.destination):
            world.clock.advance(Duration.of_ms(50))
            await turns()
    await world.drained()


async def end(task) -> None:
    with pytest.raises((asyncio.CancelledError, Lost, Rejected)):
        await task


# ---- what arrives


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", PAIRS)
async def test_all_three_ways_install_the_same_bytes_and_give_the_same_tokens(model, pair, mode):
    request = ask(PROMPT)
    async with World(model, *PAIRS[pair]) as world:
        read, tokens, _ = await installed(world, request)
    async with PushWorld(model, *PAIRS[pair], mode=mode) as world:
        written, answered, released = await installed(world, request)
        assert answered == tokens
        assert read.keys() == written.keys()
        for name, rows in read.items():
            assert torch.equal(rows, written[name])
        assert released.installed.verified.arrived.wire_bytes > 0
        assert "read" not in world.hooks.seen
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_push_crosses_by_every_transport(model, transport, mode):
    request = ask(PROMPT)
    async with PushWorld(model, *CONVERTING, mode=mode, transport=transport) as world:
        _, tokens, released = await installed(world, request)
        assert tokens == alone(model, "bfloat16", PROMPT, 5).token_ids
        assert released.installed.verified.arrived.transport == transport
        await world.drained()


async def test_a_send_writes_while_the_engine_still_computes(model):
    request = ask(PROMPT)  # 45 tokens: three steps of 16, three blocks
    async with PushWorld(model, *DIRECT, mode=TriggerMode.SEND) as world:
        gate = Gate()
        world.hooks.at("engine prefilled", gate)
        handing = asyncio.create_task(world.hand_off(request))
        await until(lambda: world.hooks.seen.count("write done") >= 1)
        assert "engine prefilled" not in world.hooks.seen or not gate.open.is_set()
        assert world.writer.ranges[0][0] == 0
        assert world.writer.ranges[-1][1] < 3
        gate.open.set()
        released = await handing
        assert world.writer.ranges[-1][1] == 3
        starts, stops = [r[0] for r in world.writer.ranges], [r[1] for r in world.writer.ranges]
        assert starts == [0, *stops[:-1]]  # each block once, in order
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


async def test_a_push_writes_once_and_only_when_all_is_filled(model):
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH) as world:
        released = await world.hand_off(ask(PROMPT))
        assert world.writer.ranges == [(0, 3)]
        assert world.hooks.seen.index("engine prefilled") < world.hooks.seen.index("write")
        world.consumer.finish(released.filled.reserved)
        await world.drained()


@pytest.mark.parametrize("late", ["register", "order prefill"])
async def test_registration_and_completion_may_come_in_either_order(model, late):
    request = ask(PROMPT)
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH) as world:
        gate = Gate()
        world.hooks.at(late, gate)
        handing = asyncio.create_task(world.hand_off(request))
        other = "engine prefilled" if late == "register" else "registered"
        await until(lambda: other in world.hooks.seen)
        await turns()
        gate.open.set()
        assert await world.decode(request, await handing) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_the_first_token_does_not_wait_for_the_bytes(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode) as world:
        gate = Gate()
        world.hooks.at("write done", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: bool(world.offers))
        assert not handing.done()
        gate.open.set()
        world.consumer.finish((await handing).filled.reserved)
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_an_answer_of_one_token_moves_nothing_more_and_leaves_nothing(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode) as world:
        released = await world.hand_off(ask(PROMPT, max_tokens=1))
        assert released.installed is None
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_prefixes_are_reused_where_the_producer_writes(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode, keeps=("producer", "consumer")) as world:
        wanted = alone(model, "bfloat16", PROMPT, 5).token_ids
        for expected in (3, 1):  # the second time two whole blocks are there already, on both sides
            world.writer.ranges.clear()
            request = ask(PROMPT)
            released = await world.hand_off(request)
            assert world.writer.ranges[-1][1] == expected
            assert await world.decode(request, released) == wanted


# ---- wrong bytes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", [FlipBit(bit=77_777), Tear(fraction=0.5)])
async def test_wrong_bytes_are_never_installed_and_the_same_request_then_succeeds(model, mode, fault):
    request = ask(PROMPT)
    async with PushWorld(model, *CONVERTING, mode=mode, write_faults=[fault]) as world:
        with pytest.raises(DigestMismatch):
            await world.hand_off(request)
        assert world.installs() == 0
        await world.drained()
        _, tokens, _ = await installed(world, request)
        assert tokens == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_write_that_breaks_off_gives_both_sides_their_blocks_back(model, mode, transport):
    request = ask(PROMPT)
    async with PushWorld(model, *DIRECT, mode=mode, transport=transport, write_faults=[Drop(fraction=0.3)]) as world:
        with pytest.raises(TransferFailed):
            await world.hand_off(request)
        await world.drained()
        _, tokens, _ = await installed(world, request)
        assert tokens == alone(model, "bfloat16", PROMPT, 5).token_ids


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_late_write_never_reaches_a_reused_image(model, transport):
    """The canary: after its answer, and after the hand-off, the writer writes again what it likes."""
    request, late = ask(PROMPT), [LateWrite(duration=Duration.of_ms(5))]
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH, transport=transport, write_faults=late) as world:
        first = await world.hand_off(request)
        gate = Gate()
        world.hooks.at("wrote", gate)
        second = asyncio.create_task(world.hand_off(ask(PROMPT, name="second")))
        await gate.reached.wait()  # its image is written and not taken yet
        world.clock.advance(Duration.of_ms(5))
        await until(lambda: bool(world.writer.late))
        assert isinstance(world.writer.late[0], Rejected | Lost)
        gate.open.set()
        wanted = alone(model, "bfloat16", PROMPT, 5).token_ids
        assert await world.decode(request, first) == wanted
        assert await world.decode(ask(PROMPT, name="second"), await second) == wanted
        await world.drained()


# ---- endings


POINTS_BY_MODE = [
    (mode, point) for mode in MODES for point in POINTS if mode is TriggerMode.PUSH or not point.startswith("register")
]


@pytest.mark.parametrize(("mode", "point"), POINTS_BY_MODE)
@pytest.mark.parametrize("times", [1, 2, 20])
async def test_a_cancellation_at_any_await_leaves_nothing_behind(model, mode, point, times):
    request = ask(PROMPT)
    async with PushWorld(model, *CONVERTING, mode=mode) as world:
        gate = Gate()
        world.hooks.at(point, gate)
        handing = asyncio.create_task(world.hand_off(request))
        await gate.reached.wait()
        if point in ("confirm", "confirmed"):  # by now it is installed: only the word to the producer is on its way
            world.consumer.finish((await handing).filled.reserved)
        else:
            await storm(handing, times)
            await turns()
            if not handing.done():
                gate.open.set()
            await end(handing)
        gate.open.set()
        await world.drained()
        _, tokens, _ = await installed(world, ask(PROMPT, name="again"))
        assert tokens == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("turn", range(0, 120, 8))
async def test_a_cancellation_after_any_number_of_turns_leaves_nothing_behind(model, mode, transport, turn):
    async with PushWorld(model, *DIRECT, mode=mode, transport=transport) as world:
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await until(lambda: "engine prefilled" in world.hooks.seen or turn < 40 or handing.done())
        await turns(turn)
        await storm(handing, 1 + turn % 3)
        await asyncio.wait({handing})
        if not handing.cancelled():
            world.consumer.finish(handing.result().filled.reserved)
        await settled(world)


async def test_what_a_writer_has_mapped_stays_in_quarantine_until_it_lets_go(model, monkeypatch):
    """Over shared memory the consumer cannot stop the writer: neither blocks nor staging come free before proof."""
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH, transport="shm") as world:
        held = asyncio.Event()
        withdraw = world.importer.withdraw

        async def still_mapped(grant):
            return await withdraw(grant) if held.is_set() else False

        monkeypatch.setattr(world.importer, "withdraw", still_mapped)
        gate = Gate()
        world.hooks.at("write", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        handing.cancel()
        await end(handing)
        await turns()
        (row,) = world.destination.snapshot()
        assert row["phase"] == DestinationPhase.IN_DOUBT
        ledger = world.destination_ledger.held()
        assert ledger.quarantined > 0
        assert ledger.staging_bytes > 0
        for _ in range(3):  # asked again and again: the answer is the same
            world.clock.advance(Duration.of_ms(50))
            await turns()
        assert world.destination_ledger.held() == ledger
        held.set()
        world.clock.advance(Duration.of_ms(50))
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_a_lost_acknowledgement_does_not_undo_an_install_and_the_lease_frees_the_source(model, mode):
    request = ask(PROMPT)
    async with PushWorld(model, *DIRECT, mode=mode) as world:

        async def refuse():
            raise TransferFailed("channel: closed", field="channel")

        world.hooks.at("confirm", refuse)
        released = await world.hand_off(request)
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await turns()
        assert len(world.source) == 1
        world.pass_time(PATIENCE * 3)
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_a_silent_producer_ends_in_the_consumers_deadline_and_leaves_nothing(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode) as world:
        gate = Gate()
        world.hooks.at("write", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        await until(lambda: bool(world.offers))
        await turns()
        world.pass_time(PATIENCE)
        with pytest.raises(Lost):
            await handing
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_a_consumer_that_is_declared_dead_frees_the_source_in_mid_write(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode) as world:
        gate = Gate()
        world.hooks.at("write", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        async with asyncio.timeout(10):
            await world.side.peer_lost(DECODE, world.destination.incarnation)
        assert len(world.source) == 0
        await end(handing)
        await world.drained()


# ---- refusals


async def test_a_registration_by_a_transport_that_does_not_lead_there_is_refused_at_once(model):
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH) as world:
        world.transport = "tcp"  # the producer's side of it: it has no writer by the name that is registered
        with pytest.raises(Unsupported):
            await world.hand_off(ask(PROMPT))
        await world.drained()


@pytest.mark.parametrize("mode", MODES)
async def test_a_producer_that_only_lends_refuses_to_write(model, mode):
    async with PushWorld(model, *DIRECT, mode=mode) as world:
        world.side._pusher = None
        with pytest.raises(Unsupported, match="does not write"):
            await world.hand_off(ask(PROMPT))
        await world.drained()


async def test_nobody_registers_for_another_or_asks_after_anothers_write(model):
    async with PushWorld(model, *DIRECT, mode=TriggerMode.PUSH) as world:
        gate = Gate()
        world.hooks.at("write", gate)
        handing = asyncio.create_task(world.hand_off(ask(PROMPT)))
        await gate.reached.wait()
        (row,) = world.source.snapshot()
        foreign = {"handoff": row["handoff"], "holder": DECODE, "holder_incarnation": "f" * 32}
        async with asyncio.timeout(10):
            with pytest.raises(NotAuthorised):
                await world.side.written(WrittenOrder(**foreign))
        theirs = Registration(grant="0" * 64, epoch=1, transport="memory")
        own = foreign | {"holder_incarnation": world.destination.incarnation}
        await world.side.register(RegisterOrder(**own, registration=theirs))  # a second one counts for nothing
        gate.open.set()
        world.consumer.finish((await handing).filled.reserved)
        await world.drained()
