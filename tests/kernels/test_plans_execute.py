"""Any pair of representations: the compiled plan, run by NumPy and by torch, against decoding each element by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch
from isthmus.kernels import reference, torch_digest, torch_execute
from isthmus.kernels.binding import bind
from isthmus.portability.compiler import compile_plan
from isthmus.state.addressing import address_shards
from isthmus.state.identity import TokenRange
from tests.strategies import block_table, empty_regions, pairs, shapes, sides


def write_by_description(group, partition, regions, num_blocks, blocks, start, values):
    """Place encoded rows of values [K|V][L, T, H, D] one by one, straight from the addresses. Returns them decoded."""
    decoded = {}
    for shard in address_shards(group, partition):
        for name in ("key", "value"):
            raw, scale = reference.encode(values[name], group.storage_dtype, group.quant)
            decoded[name] = reference.decode(raw, group.storage_dtype, scale)
            parts = {name: raw}
            if scale is not None:
                parts[f"{name}_scale"] = np.ascontiguousarray(scale[..., None]).view(np.uint8)
            for field in shard.fields:
                if field.name not in parts:
                    continue
                rows = parts[field.name]
                for layer, token, head in np.ndindex(rows.shape[0], rows.shape[1], shard.head_stop - shard.head_start):
                    position = start + token
                    block = blocks[position // group.block_size - start // group.block_size]
                    offset = (
                        field.offset.at(num_blocks)
                        + layer * field.layer_stride.at(num_blocks)
                        + block * field.block_stride.at(num_blocks)
                        + position % group.block_size * field.token_stride.at(num_blocks)
                        + head * field.head_stride.at(num_blocks)
                    )
                    region = regions[shard.rank][field.region]
                    region[offset : offset + field.row_bytes] = rows[layer, token, shard.head_start + head]
    return decoded


def a_case(pair, seed):
    """Fill a producer's pool with random values and bind it to an empty consumer's."""
    (group, partition), (to_group, to_partition) = pair
    rng = np.random.default_rng(seed)
    start = int(rng.integers(0, 9))
    tokens = TokenRange(start=start, stop=start + int(rng.integers(1, 20)))
    span = lambda size: tokens.stop - tokens.start // size * size  # noqa: E731
    counts = [span(g.block_size) // g.block_size + 3 for g in (group, to_group)]
    tables = [
        block_table(rng, span(g.block_size), g.block_size, n) for g, n in zip((group, to_group), counts, strict=True)
    ]
    regions = [empty_regions(group, partition, counts[0]), empty_regions(to_group, to_partition, counts[1])]
    shape = (group.num_layers, len(tokens), group.num_kv_heads, group.head_size)
    values = {name: rng.normal(0, 3, shape).astype(np.float32) for name in ("key", "value")}
    decoded = write_by_description(group, partition, regions[0], counts[0], tables[0], start, values)
    binding = bind(
        tokens,
        producer_blocks=tables[0],
        producer_block_size=group.block_size,
        producer_num_blocks=counts[0],
        consumer_blocks=tables[1],
        consumer_block_size=to_group.block_size,
        consumer_num_blocks=counts[1],
    )
    plan = compile_plan(group, partition, to_group, to_partition)
    return plan, binding, regions, decoded, (counts[1], tables[1])


def as_torch(regions):
    return [[torch.from_numpy(region) for region in shard] for shard in regions]


@given(pairs(), st.integers(0, 2**32 - 1))
def test_reference_equals_decoding_by_one_description_and_encoding_by_the_other(pair, seed):
    plan, binding, (source, target), decoded, (num_blocks, table) = a_case(pair, seed)
    by_hand = [[region.copy() for region in shard] for shard in target]
    reference.execute(plan, binding, source, target)
    group, partition = pair[1]
    write_by_description(group, partition, by_hand, num_blocks, table, binding.token_range.start, decoded)
    for shard, expected in zip(target, by_hand, strict=True):
        for region, wanted in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region, wanted)


@given(pairs(), st.integers(0, 2**32 - 1))
def test_torch_writes_the_same_bytes_and_digests_as_the_reference(pair, seed):
    plan, binding, (source, target), _, _ = a_case(pair, seed)
    mine = as_torch([[region.copy() for region in shard] for shard in target])
    verified = torch_execute.execute(plan, binding, as_torch(source), mine)
    reference.execute(plan, binding, source, target)
    for shard, expected in zip(mine, target, strict=True):
        for region, wanted in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region.numpy(), wanted)
    layers, total = plan.producer.num_layers, 0
    for part in plan.parts:
        rows = {
            runs.field.name: reference.gather(
                source[part.producer_rank][runs.field.region],
                runs,
                layers,
                binding.producer.blocks,
                binding.producer.slots,
                binding.producer.num_blocks,
            )
            for runs in part.gather
        }
        total += reference.digest(
            rows,
            layer_start=plan.producer.layer_start,
            token_start=binding.token_range.start,
            head_start=part.head_start,
        )
    assert verified.producer_digest == total % 2**64
    assert verified.error_max == 0 or not plan.loss.lossless


@given(shapes().flatmap(lambda shape: st.tuples(sides(shape), sides(shape))), st.integers(0, 2**32 - 1))
def test_there_and_back_is_the_identity_for_lossless_pairs(pair, seed):
    plan, binding, (source, target), _, _ = a_case(pair, seed)
    back = compile_plan(plan.consumer, plan.consumer_partition, plan.producer, plan.producer_partition)
    if not (plan.loss.lossless and back.loss.lossless):
        return
    reference.execute(plan, binding, source, target)
    returned = empty_regions(*pair[0], binding.producer.num_blocks)
    swapped = type(binding)(token_range=binding.token_range, producer=binding.consumer, consumer=binding.producer)
    reference.execute(back, swapped, target, returned)
    for shard, expected in zip(returned, source, strict=True):
        for region, wanted in zip(shard, expected, strict=True):
            np.testing.assert_array_equal(region, wanted)


@given(pairs(), st.integers(0, 2**32 - 1), st.data())
def test_one_flipped_bit_is_always_caught(pair, seed, data):
    plan, binding, (source, target), _, _ = a_case(pair, seed)
    offered = torch_execute.state_digest(plan, binding, as_torch(source))
    part = data.draw(st.sampled_from(plan.parts))
    runs = data.draw(st.sampled_from(part.gather))
    rows = torch_execute.runs_view(
        torch.from_numpy(source[part.producer_rank][runs.field.region]),
        runs,
        plan.producer,
        binding.producer.num_blocks,
    )
    token = data.draw(st.integers(0, len(binding.token_range) - 1))
    word = rows[:, binding.producer.blocks[token], binding.producer.slots[token]]
    index = tuple(data.draw(st.integers(0, extent - 1)) for extent in word.shape)
    word[index] ^= 1 << data.draw(st.integers(0, word.element_size() * 8 - 2))
    with pytest.raises((DigestMismatch, ConversionOutOfBounds)):
        torch_execute.execute(plan, binding, as_torch(source), as_torch(target), offered=offered)


@given(pairs(), st.integers(0, 2**32 - 1))
def test_swapped_tokens_are_caught(pair, seed):
    plan, binding, (source, target), decoded, _ = a_case(pair, seed)
    if len(binding.token_range) < 2 or (decoded["key"][:, 0] == decoded["key"][:, 1]).all():
        return
    offered = torch_execute.state_digest(plan, binding, as_torch(source))
    for side in (binding.producer.blocks, binding.producer.slots):
        side[[0, 1]] = side[[1, 0]]
    with pytest.raises(DigestMismatch):
        torch_execute.execute(plan, binding, as_torch(source), as_torch(target), offered=offered)


@given(st.integers(0, 63), st.sampled_from([2, 4, 16]), st.integers(0, 2**32 - 1))
def test_one_bit_position_flipped_in_several_words_of_a_row_changes_its_digest(bit, words, seed):
    """A stuck data lane: with a weaker mix of words, flips of high bits cancelled in half of all pairs."""
    raw = np.random.default_rng(seed).integers(0, 256, (1, 64, 1, 128), dtype=np.uint8)
    position = {"field_index": 0, "layer_start": 0, "token_start": 0, "head_start": 0}
    before = torch_digest.row_digests(torch.from_numpy(raw), **position)
    flipped = raw.view(np.uint64).copy()
    flipped[..., :words] ^= np.uint64(1 << bit)
    after = torch_digest.row_digests(torch.from_numpy(flipped.view(np.uint8)), **position)
    assert not (before == after).any()


@given(pairs(), st.integers(0, 2**32 - 1), st.sampled_from([1, 64, 200]))
def test_working_memory_of_any_size_gives_the_same_bytes_and_digests(pair, seed, work_bytes):
    plan, binding, (source, target), _, _ = a_case(pair, seed)
    whole, pieces = (as_torch([[region.copy() for region in shard] for shard in target]) for _ in range(2))
    wanted = torch_execute.execute(plan, binding, as_torch(source), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_execute, "WORK_BYTES", work_bytes)
        assert torch_execute.execute(plan, binding, as_torch(source), pieces) == wanted
    for shard, expected in zip(pieces, whole, strict=True):
        for region, bytes_ in zip(shard, expected, strict=True):
            assert torch.equal(region, bytes_)
