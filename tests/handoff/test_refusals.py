"""What cannot be is refused by name, before anything is computed; what cannot be now waits its turn."""

import asyncio

import pytest

from isthmus.core.errors import BadInput, CapacityExceeded, ContextTooLong, GateRefused, PeerLost, Unsupported
from isthmus.portability.verdict import judge
from tests.engines.models import VOCABULARY, random_prompt, save_tiny
from tests.handoff.worlds import PATIENCE, World, alone, ask, turns

PROMPT = random_prompt(32, seed=8)
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4}


async def refused(world: World, error: type[Exception], request=None, match: str | None = None) -> Exception:
    """Nothing was ordered, nothing is held."""
    with pytest.raises(error, match=match) as caught:
        await world.hand_off(request or ask(PROMPT))
    assert "order prefill" not in world.hooks.seen
    await world.drained()
    return caught.value


async def succeed(world: World, request, tokens) -> None:
    released = await world.hand_off(request)
    assert await world.decode(request, released) == tokens
    await world.drained()


# capacity


async def test_a_request_that_never_fits_the_consumer_is_refused_with_the_numbers(model):
    async with World(model, {}, {"num_blocks": 2}) as world:
        error = await refused(world, CapacityExceeded, match="wants 3 blocks of .* bytes; the whole pool has 2")
        assert error.field == "blocks"


async def test_staging_that_never_fits_is_refused_with_the_numbers(model):
    async with World(model, staging_bytes=1000) as world:
        crosses = 2 * world.source_kv.block_bytes
        error = await refused(world, CapacityExceeded, match=f"wants {crosses} staging bytes; the whole budget is 1000")
        assert error.field == "staging_bytes"


async def test_a_request_that_never_fits_the_producer_is_refused_and_frees_the_consumer(model):
    async with World(model, {"num_blocks": 1}) as world:
        with pytest.raises(CapacityExceeded, match=r"wants 2 blocks of .* bytes; the whole pool has 1"):
            await world.hand_off(ask(PROMPT))
        assert "engine prefill" not in world.hooks.seen
        await world.drained()


@pytest.mark.parametrize("small", [{"producer": {"num_blocks": 2}}, {"consumer": {"num_blocks": 3}}])
async def test_requests_that_must_wait_get_their_turn_in_order(model, small):
    expected = alone(model, "bfloat16", PROMPT, 5).token_ids
    done = []

    async def one(world: World, index: int) -> None:
        request = ask(PROMPT, name=f"request-{index}")
        released = await world.hand_off(request)
        assert await world.decode(request, released) == expected
        done.append(index)

    async with World(model, **small) as world:
        await asyncio.gather(*(one(world, index) for index in range(5)))
        assert done == list(range(5))
        await world.drained()


async def test_a_wait_without_end_is_answered_at_its_deadline(model):
    async with World(model, {}, {"num_blocks": 3}) as world:
        released = await world.hand_off(ask(PROMPT, name="first"))
        second = asyncio.create_task(world.hand_off(ask(PROMPT, name="second")))
        await turns()
        world.clock.advance(PATIENCE)
        with pytest.raises(CapacityExceeded, match=r"no room for 3 blocks .* within 30000 ms: 0 of 3 blocks") as caught:
            await second
        assert caught.value.retry_after is not None
        world.consumer.finish(released.filled.reserved)
        await world.drained()


# the request


async def test_a_prompt_and_answer_beyond_the_consumers_context_are_refused(model):
    async with World(model, {}, {"context_length": 36}) as world:
        await refused(world, ContextTooLong, match="32 tokens and up to 5 more, this model's context is 36")
        await succeed(world, ask(PROMPT, max_tokens=4), alone(model, "bfloat16", PROMPT, 4).token_ids)


async def test_a_prompt_beyond_the_producers_context_is_refused_and_frees_the_consumer(model):
    async with World(model, {"context_length": 31}) as world:
        with pytest.raises(ContextTooLong, match="context is 31"):
            await world.hand_off(ask(PROMPT))
        await world.drained()


async def test_a_token_outside_the_vocabulary_is_refused_and_frees_both_sides(model):
    async with World(model) as world:
        with pytest.raises(BadInput, match="token_ids"):
            await world.hand_off(ask((3, VOCABULARY)))
        await world.drained()


async def test_a_producer_that_is_not_registered_is_refused(model):
    async with World(model) as world:

        def nobody(worker, incarnation):
            raise PeerLost("not registered", field="producer")

        world.consumer._peer_of = nobody
        await refused(world, PeerLost)


# the model


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Models beside `model`: each differs from it in one thing."""
    root = tmp_path_factory.mktemp("others")
    return {
        "weights": save_tiny("llama", root / "weights" / "tiny", seed=1, **SHAPE),
        "lineage": save_tiny("llama", root / "lineage" / "other", **SHAPE),
        "rope": save_tiny("llama", root / "rope" / "tiny", rope_theta=5e5, **SHAPE),
        "heads": save_tiny("llama", root / "heads" / "tiny", num_attention_heads=8, num_key_value_heads=2),
    }


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ("weights", "identity.weights.digest"),
        ("lineage", "identity.lineage.base_model"),
        ("rope", "identity.rope.theta"),
    ],
)
async def test_another_model_is_refused_by_the_field_that_differs_before_prefill_is_asked(model, others, other, field):
    async with World(model, consumer_model=others[other]) as world:
        error = await refused(world, GateRefused, match=field.removeprefix("identity."))
        assert error.field == field
        assert "Serve the same model on both sides" in str(error)


async def test_another_number_of_heads_is_refused_before_prefill_is_asked(model, others):
    async with World(model, {"dtype": "bfloat16"}, consumer_model=others["heads"]) as world:
        error = await refused(world, Unsupported, match="num_kv_heads: producer 4, consumer 2")
        assert error.field == "representation"


async def test_another_precision_of_one_lineage_passes_and_says_what_it_assumes(model):
    request = ask(PROMPT)
    async with World(model, {"dtype": "bfloat16"}, {"dtype": "float32"}) as world:
        released = await world.hand_off(request)
        verdict = released.installed.verified.arrived.planned.verdict
        (assumption,) = verdict.gate.assumptions
        assert "prefill in bfloat16, decode in float32" in assumption.value
        assert len(await world.decode(request, released)) == 5
        await world.drained()
    sides = [(kv.identity, kv.representation) for kv in (world.source_kv, world.destination_kv)]
    assert judge(*sides).gate.passed


async def test_a_conversion_that_fails_in_an_unforeseen_way_frees_both_sides(model):
    async with World(model) as world:

        async def fail() -> None:
            raise RuntimeError("CUDA error: out of memory")

        world.hooks.at("convert", fail)
        with pytest.raises(RuntimeError):
            await world.hand_off(ask(PROMPT))
        assert world.installs() == 0
        await world.drained()
