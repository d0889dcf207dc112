"""Workers that say the wrong thing: refused by name, answered elsewhere, and never the client's fault."""

from typing import Any

import msgspec
import pytest
import yaml

from isthmus.core.errors import GateRefused, IncarnationFenced, StaleEpoch
from isthmus.handoff.orders import Ack, PrefillOrder, PrefillReply
from isthmus.serve.messages import Message, Welcome
from tests.serve.asking import Stream, ask, finish
from tests.serve.commands import isthmus
from tests.serve.fleet import eventually
from tests.serve.rogue import Rogue

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


async def _ask(pair, reference, **fields: Any) -> Stream:
    stream = ask(pair.client, await pair.model(), 0, reference[0].prompt, max_tokens=6, **fields)
    await finish([stream], seconds=30)
    return stream


def _replies(reference) -> dict[str, Message]:
    first = reference[0].answer[0]  # the right token, so that the answer is exact whoever sampled it
    envelope = {"schema_version": 1, "state": {"unheard_of": 1}}

    def offer(manifest: bytes) -> PrefillReply:
        return PrefillReply(token=first, finish_reason=None, manifest=manifest, prefill_ms=1.0)

    return {
        "an empty manifest": offer(b""),
        "noise for a manifest": offer(bytes(range(256)) * 40),
        "a manifest of another version": offer(msgspec.msgpack.encode({**envelope, "schema_version": 99})),
        "a manifest with unknown fields": offer(msgspec.msgpack.encode(envelope)),
        "another message than was asked for": Ack(),
    }


@pytest.mark.parametrize("case", range(5))
async def test_what_a_producer_says_wrongly_is_computed_elsewhere(pair, reference, case):
    reply = list(_replies(reference).values())[case]

    async def say(_: PrefillOrder) -> Message:
        return reply

    async with Rogue(pair, reply=say) as rogue:
        await rogue.register()
        await _ask(pair, reference, headers={"x-isthmus-producer": "prefill-0"})  # the rogue is next in turn
        stream = await _ask(pair, reference)
        assert rogue.asked
        assert (stream.status, stream.error) == (200, None)
        assert stream.token_ids == list(reference[0].answer[:6])
        pinned = await _ask(pair, reference, headers={"x-isthmus-producer": rogue.name})
        assert pinned.error is not None
        assert pinned.error["type"] == "service_unavailable", pinned.error
        if not pinned.token_ids:
            assert (pinned.status, "retry-after" in pinned.headers) == (503, True)
    assert set(pair.pids()) == {"gateway", "prefill-0", "decode-0"}

    async def gone() -> bool:
        return rogue.name not in await pair.incarnations()

    await eventually(gone, "the rogue is no member any more")
    assert await pair.held_blocks() == 0


async def test_a_producer_that_refuses_as_if_it_were_the_requests_fault_is_not_believed(pair, reference):
    async def refuse(_: PrefillOrder) -> Message:
        raise StaleEpoch("hand-off: not mine", field="epoch")

    async with Rogue(pair, reply=refuse) as rogue:
        await rogue.register()
        stream = await _ask(pair, reference, headers={"x-isthmus-producer": rogue.name})
        assert (stream.status, stream.error["code"]) == (503, "Lost")
        assert "StaleEpoch" in stream.error["message"]
    assert await pair.held_blocks() == 0


async def test_a_worker_with_other_weights_of_the_same_name_is_refused(pair, reference):
    async with Rogue(pair) as rogue:
        identity = (await rogue.member("prefill-0")).identity
        weights = msgspec.structs.replace(identity.weights, digest="0" * 64)
        with pytest.raises(GateRefused) as refused:
            await rogue.register(identity=msgspec.structs.replace(identity, weights=weights))
        assert refused.value.field == "identity.weights.digest"
        assert "Serve the same model on both sides" in str(refused.value)
    assert (await _ask(pair, reference)).status == 200


async def test_a_worker_process_of_another_model_is_refused_and_the_fleet_lives_on(
    pair, reference, other_model, tmp_path
):
    lives = await pair.incarnations()
    other = {"name": "other", "role": "decode", "num_blocks": 8}
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**pair.raw, "model": str(other_model), "pools": [*pair.raw["pools"], other]}))
    ended = await isthmus("serve", "decode", "--name", "other-0", "--config", str(path))
    assert ended.code == 2, ended.err
    assert "lineage.base_model" in ended.err
    assert "Serve the same model on both sides" in ended.err
    assert await pair.incarnations() == lives
    assert (await _ask(pair, reference)).status == 200


async def test_a_second_connection_of_one_life_ends_that_life(pair):
    """The first was lost, and only the worker knows it yet: it must start anew, not be refused for its own name."""
    async with Rogue(pair) as rogue:
        assert isinstance(await rogue.register(), Welcome)
        with pytest.raises(IncarnationFenced):
            await rogue.register()

        async def first_is_closed() -> bool:
            return rogue.channels[0].closed

        await eventually(first_is_closed, "the first connection is closed")
        assert rogue.name not in await pair.incarnations()
        rogue.incarnation = "0" * 32
        assert isinstance(await rogue.register(), Welcome)
