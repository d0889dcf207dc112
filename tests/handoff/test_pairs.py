"""A hand-off between each pair of the embedded engine's representations, with real bytes."""

import itertools

import pytest
import torch

from isthmus.engines.embedded.config import KV_CACHE_DTYPES
from isthmus.state.encoding import ScaleLocation
from isthmus.state.representation import KvOrder, Layout
from tests.engines.models import random_prompt
from tests.handoff.worlds import World, alone, ask, decoded

PROMPT = random_prompt(45, seed=1)
ENCODINGS = [
    {"kv_cache_dtype": "float32"},
    {"kv_cache_dtype": "bfloat16"},
    {"kv_cache_dtype": "float16"},
    {"kv_cache_dtype": "fp8_e4m3"},
    {"kv_cache_dtype": "int8_per_token_head", "scale_location": ScaleLocation.INLINE},
    {"kv_cache_dtype": "int8_per_token_head", "scale_location": ScaleLocation.SIDE_POOL},
]
PLACES = [
    {"kv_layout": layout, "kv_order": order, "block_size": size, "tp_size": tp}
    for (layout, order), size, tp in zip(
        itertools.product(Layout, KvOrder), itertools.cycle([16, 5, 32, 1, 7]), itertools.cycle([1, 2, 4]), strict=False
    )
]
STRIDE = 7  # coprime to the number of places; every fourth pair of encodings shares its place, and only converts


def every_encoding_with_every_other():
    for index, (ours, theirs) in enumerate(itertools.product(ENCODINGS, ENCODINGS)):
        yield ours | PLACES[index % len(PLACES)], theirs | PLACES[index * STRIDE % len(PLACES)]


def every_place_on_either_side():
    for index, place in enumerate(PLACES):
        yield ENCODINGS[1] | place, ENCODINGS[1] | PLACES[(index * STRIDE + 3) % len(PLACES)]


def name(side: dict) -> str:
    return "-".join(str(getattr(value, "value", value)) for value in side.values())


PAIRS = [*every_encoding_with_every_other(), *every_place_on_either_side()]


def widened(world: World, rows, engine) -> torch.Tensor:
    return torch.stack([decoded(engine, rows, field) for field in ("key", "value")])


@pytest.mark.parametrize(("producer", "consumer"), PAIRS, ids=[f"{name(a)}>{name(b)}" for a, b in PAIRS])
async def test_a_hand_off_between_any_two_representations_installs_what_was_filled(model, producer, consumer):
    request = ask(PROMPT)
    async with World(model, producer, consumer) as world:
        released = await world.hand_off(request)
        (_, _, filled), installed = world.offers[0], world.installed_rows(request, released)
        verified = released.installed.verified
        plan = verified.arrived.planned.plans[0]
        same = producer["kv_cache_dtype"] == consumer["kv_cache_dtype"]
        if same:
            for field, rows in filled.fields.items():
                assert torch.equal(installed.fields[field], rows)
        before = widened(world, filled, world.source_engine)
        after = widened(world, installed, world.destination_engine)
        for number, conversion in enumerate(plan.conversions):
            bound, values, found = conversion.loss, before[number], after[number]
            if conversion.lossless:
                assert torch.equal(found, values)
            allowed = values.abs() * bound.relative + bound.absolute
            allowed += values.abs().amax(dim=-1, keepdim=True) * bound.per_row_max
            assert ((found - values).abs() <= allowed).all()
        tokens = await world.decode(request, released)
        if same:
            assert tokens == alone(model, producer["kv_cache_dtype"], PROMPT, request.sampling.max_tokens).token_ids
        assert len(tokens) == request.sampling.max_tokens
        await world.drained()


@pytest.mark.parametrize("encoding", ENCODINGS[:5], ids=name)
async def test_a_lossless_hand_off_gives_the_rows_and_tokens_of_one_engine_alone(model, encoding):
    request = ask(PROMPT, max_tokens=12)
    wanted = alone(model, encoding["kv_cache_dtype"], PROMPT, 12)
    async with World(model, encoding | PLACES[4], encoding | PLACES[11]) as world:
        released = await world.hand_off(request)
        installed = world.installed_rows(request, released)
        for field, rows in installed.fields.items():
            assert torch.equal(rows, wanted.kv.fields[field][:, : len(PROMPT)])
        assert await world.decode(request, released) == wanted.token_ids


@pytest.mark.parametrize("transport", ["shm", "tcp"])
async def test_a_hand_off_crosses_by_every_transport(model, transport):
    request = ask(PROMPT)
    async with World(model, PLACES[2], PLACES[9], transport=transport) as world:
        released = await world.hand_off(request)
        assert released.installed.verified.arrived.transport == transport
        assert await world.decode(request, released) == alone(model, "bfloat16", PROMPT, 5).token_ids
        await world.drained()


async def test_the_staging_is_let_go_with_the_commit_and_not_kept_through_decode(model):
    """`Released` lives as long as decode does; the ledger has given these bytes to others by then (I10)."""
    async with World(model) as world:
        released = await world.hand_off(ask(PROMPT))
        assert world.destination_ledger.held().staging_bytes == 0
        assert not released.installed.verified.arrived.image
        assert released.installed.verified.arrived.wire_bytes > 0
        world.consumer.finish(released.filled.reserved)


def test_the_pairs_are_as_many_and_as_different_as_claimed():
    assert len({name(a) + name(b) for a, b in PAIRS}) == len(PAIRS) >= 60
    assert {(a["kv_cache_dtype"], b["kv_cache_dtype"]) for a, b in PAIRS} >= set(
        itertools.product([e["kv_cache_dtype"] for e in ENCODINGS], repeat=2)
    )
    for side in (0, 1):
        assert {(p[side]["kv_layout"], p[side]["kv_order"]) for p in PAIRS} == set(itertools.product(Layout, KvOrder))
    assert set(KV_CACHE_DTYPES) == {e["kv_cache_dtype"] for e in ENCODINGS}
