"""Torch against the reference: the same bytes and digests for every plan that it takes, and no damage unnoticed."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch, Unsupported
from isthmus.core.ids import Digest
from isthmus.kernels import reference, torch_digest, torch_execute
from isthmus.kernels.mixing import MASK64
from isthmus.portability.alignment import Meeting
from isthmus.portability.compiler import compile_plan
from isthmus.state.partition import Partition
from isthmus.state.representation import FIELD_NAMES, Component, GroupKind, GroupRepresentation, KvOrder, Layout
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import meaning_of, pack
from tests.formats import F32, nearest
from tests.kernels.cases import Case, a_case
from tests.strategies import (
    embedded_pairs,
    encoding_of,
    pairs,
    quant_of,
)

seeds = st.integers(0, 2**32 - 1)


def as_torch(regions) -> list[list[torch.Tensor]]:
    return [[torch.from_numpy(region) for region in shard] for shard in regions]


def offered_by(case: Case) -> Digest:
    """The digest of the bound rows, once for each consumer that is sent them, by the reference."""
    total = 0
    for part in case.plan.parts:
        chosen = case.binding.tokens_of(part)
        side = case.binding.producer.of(chosen)
        for runs in part.gather:
            region = case.source.regions[_place(case, part.producer_rank)][runs.field.region]
            rows = reference.gather(region, runs, part.producer_layers, side.blocks, side.slots, side.num_blocks)
            total += reference.digest(
                {runs.field.name: rows},
                layers=part.layers,
                tokens=(case.binding.rows.start + chosen).tolist(),
                head_start=runs.head_start,
            )
    return Digest(total & MASK64)


def _place(case: Case, rank: int) -> int:
    return [shard.rank for shard in case.plan.producer_shards].index(rank)


def tamed(case: Case) -> Case:
    """The case with rows of normal values: conversions in torch refuse what would saturate."""
    rng = np.random.default_rng(0)
    for part in case.plan.producer.components:
        raw = case.data[part.name]
        scales = case.data.get(f"{part.name}_scale")
        if scales is None:
            values = rng.normal(0, 3, (*raw.shape[:3], part.count)).astype(F32)
            raw[...] = pack(nearest(part.encoding.storage_dtype, values)[0], part.encoding)
        elif scales.shape[-1] == 4:
            scales[...] = (2.0 ** rng.uniform(-5, 1, scales.shape[:3])).astype(F32)[..., None].view(np.uint8)
    case.source.put(case.binding.rows, case.layers, case.data)
    return case


def runs_there(case: Case) -> bool:
    """Whether torch takes the plan, and nothing in it is beyond the consumer's range."""
    try:
        torch_execute.check_plan(case.plan)
    except Unsupported:
        return False
    return True


def check_alike(case: Case) -> None:
    mine = case.target.copy()
    verified = torch_execute.execute(
        case.plan, case.binding, as_torch(case.source.regions), as_torch(mine.regions), offered=offered_by(case)
    )
    counts = reference.execute(case.plan, case.binding, case.source.regions, case.target.regions)
    assert not any(counts.saturated.values())
    for shard, expected in zip(mine.regions, case.target.regions, strict=True):
        for region, wanted in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region, wanted)
    assert verified.producer_digest == offered_by(case)
    assert verified.consumer_digest == arrived_at(case)
    assert verified.error_max == 0 or not case.plan.lossless


def arrived_at(case: Case) -> Digest:
    """The digest of what the consumer's pool holds, by the reference."""
    total = 0
    for part in case.plan.parts:
        side = case.binding.consumer
        at = [shard.rank for shard in case.plan.consumer_shards].index(part.consumer_rank)
        for runs in part.scatter:
            region = case.target.regions[at][runs.field.region]
            rows = reference.gather(region, runs, part.consumer_layers, side.blocks, side.slots, side.num_blocks)
            tokens = range(case.binding.rows.start, case.binding.rows.stop)
            total += reference.digest(
                {runs.field.name: rows}, layers=part.layers, tokens=tokens, head_start=runs.head_start
            )
    return Digest(total & MASK64)


@given(embedded_pairs(), seeds)
def test_torch_writes_the_same_bytes_and_digests_as_the_reference(pair, seed):
    case = tamed(a_case(pair, seed))
    torch_execute.check_plan(case.plan)  # all that the embedded engine may have
    check_alike(case)


@settings(max_examples=2 * settings().max_examples, suppress_health_check=list(HealthCheck))
@given(pairs(), seeds)
def test_the_same_holds_for_every_other_plan_that_it_takes(pair, seed):
    """Latents, states, replicas, stages, windows, padding: what is moved needs no codec."""
    case = tamed(a_case(pair, seed))
    assume(runs_there(case))
    check_alike(case)


@settings(max_examples=2 * settings().max_examples, suppress_health_check=list(HealthCheck))
@given(pairs(), seeds)
def test_a_plan_that_it_does_not_take_is_refused_before_anything_is_written(pair, seed):
    case = a_case(pair, seed)
    assume(not runs_there(case))
    before = case.target.copy()
    with pytest.raises(Unsupported):
        torch_execute.execute(case.plan, case.binding, as_torch(case.source.regions), as_torch(case.target.regions))
    for shard, expected in zip(case.target.regions, before.regions, strict=True):
        for region, wanted in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region, wanted)


@given(embedded_pairs(), seeds, st.data())
def test_one_flipped_bit_is_always_caught(pair, seed, data):
    case = tamed(a_case(pair, seed))
    offered = offered_by(case)
    part = data.draw(st.sampled_from(case.plan.parts))
    runs = data.draw(st.sampled_from(part.gather))
    rank = _place(case, part.producer_rank)
    shard = case.plan.producer_shards[rank]
    rows = torch_execute.runs_view(
        torch.from_numpy(case.source.regions[rank][runs.field.region]),
        runs,
        case.plan.producer,
        shard.layer_stop - shard.layer_start,
        case.binding.producer.num_blocks,
    )
    token = data.draw(st.integers(0, len(case.binding.rows) - 1))
    word = rows[:, case.binding.producer.blocks[token], case.binding.producer.slots[token]]
    index = tuple(data.draw(st.integers(0, extent - 1)) for extent in word.shape)
    word[index] ^= 1 << data.draw(st.integers(0, word.element_size() * 8 - 2))
    with pytest.raises((DigestMismatch, ConversionOutOfBounds)):
        torch_execute.execute(
            case.plan, case.binding, as_torch(case.source.regions), as_torch(case.target.regions), offered=offered
        )


@given(embedded_pairs(), seeds, st.sampled_from(["tokens", "heads", "layers"]))
def test_swapped_rows_are_caught(pair, seed, what):
    case = tamed(a_case(pair, seed))
    axis = {"layers": 0, "tokens": 1, "heads": 2}[what]
    raw = case.data["key"]
    assume(raw.shape[axis] > 1)
    offered = offered_by(case)
    swapped = {name: rows.copy() for name, rows in case.data.items()}
    first, second = ([slice(None)] * axis + [at] for at in (0, 1))
    for rows in swapped.values():
        rows[tuple(first)], rows[tuple(second)] = rows[tuple(second)].copy(), rows[tuple(first)].copy()
    assume(any((swapped[name] != case.data[name]).any() for name in swapped))
    case.source.put(case.binding.rows, case.layers, swapped)
    with pytest.raises(DigestMismatch):
        torch_execute.execute(
            case.plan, case.binding, as_torch(case.source.regions), as_torch(case.target.regions), offered=offered
        )


@given(st.integers(0, 63), st.sampled_from([2, 4, 16]), seeds)
def test_one_bit_position_flipped_in_several_words_of_a_row_changes_its_digest(bit, words, seed):
    """A stuck data lane: with a weaker mix of words, flips of high bits cancelled in half of all pairs."""
    raw = np.random.default_rng(seed).integers(0, 256, (1, 64, 1, 128), dtype=np.uint8)
    position = {"field_index": 0, "layers": [0], "token_start": 0, "head_start": 0}
    before = torch_digest.row_digests(torch.from_numpy(raw), **position)
    flipped = raw.view(np.uint64).copy()
    flipped[..., :words] ^= np.uint64(1 << bit)
    after = torch_digest.row_digests(torch.from_numpy(flipped.view(np.uint8)), **position)
    assert not (before == after).any()


@given(
    st.lists(st.integers(0, 511), min_size=1, max_size=3, unique=True),
    st.integers(0, (1 << 20) - 4),
    st.integers(0, 1020),
    st.sampled_from(range(len(FIELD_NAMES))),
    st.integers(1, 21),
    seeds,
)
def test_torchs_digest_is_the_references_anywhere(layers, token, head, field, row_bytes, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (len(layers), 3, 2, row_bytes), dtype=np.uint8)
    key = seed * 0x9E3779B97F4A7C15 % 2**64
    place = {"field_index": field, "layers": layers, "token_start": token, "head_start": head, "key": key}
    found = torch_digest.row_digests(torch.from_numpy(raw), **place)
    assert torch.equal(found, torch_digest.tensor_digests(torch.from_numpy(raw), **place))
    hashes = reference.row_hashes(
        raw, field_index=field, layers=layers, tokens=range(token, token + 3), head_start=head, key=key
    )
    assert torch_digest.fold(found) == sum(int(value) for value in hashes.flat) % 2**64


def test_no_two_positions_of_a_row_have_one_digest():
    """The ends of every range: the parts of a position do not run into each other."""
    positions = [
        (field, layer, token, head)
        for field in (0, len(FIELD_NAMES) - 1)
        for layer in (0, 1, 511)
        for token in (0, 1, (1 << 20) - 1)
        for head in (0, 1, 1023)
    ]
    raw = np.zeros((1, 1, 1, 8), np.uint8)
    hashes = {
        int(reference.row_hashes(raw, field_index=f, layers=[layer], tokens=[t], head_start=h)[0, 0, 0])
        for f, layer, t, h in positions
    }
    assert len(hashes) == len(positions)


@given(embedded_pairs(), seeds, st.sampled_from([1, 64, 200]))
def test_working_memory_of_any_size_gives_the_same_bytes_and_digests(pair, seed, work_bytes):
    case = tamed(a_case(pair, seed))
    whole, pieces = (as_torch(case.target.copy().regions) for _ in range(2))
    wanted = torch_execute.execute(case.plan, case.binding, as_torch(case.source.regions), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_execute, "WORK_BYTES", work_bytes)
        assert torch_execute.execute(case.plan, case.binding, as_torch(case.source.regions), pieces) == wanted
    for shard, expected in zip(pieces, whole, strict=True):
        for region, bytes_ in zip(shard, expected, strict=True):
            assert torch.equal(region, bytes_)


def latent(encoding, **fields) -> KVRepresentation:
    part = Component(name="latent", heads=1, count=8, encoding=encoding, **fields)
    group = GroupRepresentation(
        kind=GroupKind.MLA,
        layers=(0,),
        components=(part,),
        block_size=4,
        layout=Layout.LBNHC,
        kv_order=KvOrder.PACKED_C,
    )
    return KVRepresentation(groups=(group,), partition=Partition())


def test_scales_that_it_does_not_know_are_refused_and_not_passed_over():
    """One more scale for the tensor, above all: the codes' own scales are those that it takes."""
    digest = {"tensor_scale": True, "scale_values": "ab" * 8}
    for quant in (
        quant_of("token_head", "inline", **digest),
        quant_of("tensor", "layer_attr", scale_values="ab" * 8),
        quant_of("block", "inline", block=4),
        quant_of("token_head", "inline", "f16"),
    ):
        sides = latent(encoding_of("i8", quant)), latent(encoding_of("bf16"))
        for one, other in (sides, sides[::-1]):
            plan = compile_plan(one, other, Meeting(0, 0, (0,)))
            with pytest.raises(Unsupported, match="storage_dtype"):
                torch_execute.check_plan(plan)


def test_neighbours_and_halves_are_turned_as_the_reference_does():
    for dtype in ("bf16", "f8_e4m3fn", "f32"):
        pair = latent(encoding_of(dtype)), latent(encoding_of(dtype), element_order="rope_pairs")
        for one in (pair, pair[::-1]):
            case = a_case(one, 1)
            check_alike(case)
            part = case.plan.producer.components[0]
            before = meaning_of(part, case.data, case.layers)
            arrived = case.target.get(case.binding.rows, case.layers)
            np.testing.assert_array_equal(meaning_of(case.plan.consumer.components[0], arrived, case.layers), before)
