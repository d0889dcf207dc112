"""Every representation writes where `state.addressing` says, and reads back what the encoding keeps."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.errors import Unsupported
from isthmus.engines.embedded.pool import PagedPool
from isthmus.kernels.torch_codec import decode_rows
from isthmus.state.digits import Axis
from isthmus.state.encoding import Encoding, StorageDtype
from isthmus.state.fields import FieldAddress
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.strategies import block_table, embedded_shapes, embedded_sides


def representations() -> st.SearchStrategy[KVRepresentation]:
    return embedded_shapes().flatmap(embedded_sides)


def slot_bytes(pool: PagedPool, data: np.ndarray, field: FieldAddress, at: tuple[int, int, int, int]) -> np.ndarray:
    """The bytes of one row by plain arithmetic."""
    strides = [field.stride(axis) for axis in (Axis.LAYER, Axis.BLOCK, Axis.TOKEN, Axis.HEAD)]
    start = field.offset.at(pool.num_blocks)
    start += sum(index * stride.at(pool.num_blocks) for index, stride in zip(at, strides, strict=True))
    return data[start : start + field.row_bytes]


def fill(pool: PagedPool, blocks: list[int], tokens: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Write random rows of `tokens` tokens to all layers, in two goes. Returns the encoded rows per layer."""
    group, size = pool.group, pool.group.block_size
    generator = torch.Generator().manual_seed(seed)
    written = []
    for layer in range(group.num_layers):
        key, value = (
            torch.randn(tokens, group.num_kv_heads, width, generator=generator)
            for width in (group.component("key").count, group.component("value").count)
        )
        for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)):
            positions = range(*part.indices(tokens))
            where = torch.tensor([[blocks[p // size], p % size] for p in positions], dtype=torch.int64).view(-1, 2)
            pool.write(layer, where[:, 0], where[:, 1], pool.encode(key[part], value[part]))
        written.append(pool.encode(key, value).fields)
    return written


@given(representations(), st.integers(1, 20), st.integers(0, 1 << 20))
def test_rows_lie_where_the_addressing_says_and_nowhere_else(representation, tokens, seed):
    rng = np.random.default_rng(seed)
    num_blocks = 24
    pool = PagedPool(representation, num_blocks)
    for region in pool.regions:
        region.data.fill_(0xA5)
    blocks = block_table(rng, tokens, pool.group.block_size, num_blocks)
    written = fill(pool, blocks, tokens, seed)
    shards = representation.address()[0]
    data = {region.id: region.data.numpy() for region in pool.regions}
    for shard in shards:
        for field in shard.fields:
            flat = data[shard.regions[field.region].id]
            for layer, rows in enumerate(written):
                for token in range(tokens):
                    block, slot = blocks[token // pool.group.block_size], token % pool.group.block_size
                    for head in range(field.head_start, field.head_start + field.heads):
                        found = slot_bytes(pool, flat, field, (layer, block, slot, head - field.head_start))
                        assert np.array_equal(found, rows[field.name][token, head].numpy())
                        found[:] = 0xA5
    assert all((region == 0xA5).all() for region in data.values())


@given(representations(), st.integers(1, 20), st.integers(0, 1 << 20))
def test_what_was_written_is_read_back_encoded_and_decoded(representation, tokens, seed):
    rng = np.random.default_rng(seed)
    pool = PagedPool(representation, 24)
    blocks = block_table(rng, tokens, pool.group.block_size, 24)
    written = fill(pool, blocks, tokens, seed)
    back = pool.read_tokens(tuple(blocks), tokens).fields
    for name, rows in back.items():
        assert torch.equal(rows, torch.stack([layer[name] for layer in written]))
    for layer, rows in enumerate(written):
        for name in ("key", "value"):
            scale = rows.get(f"{name}_scale")
            scale = None if scale is None else scale.contiguous().view(torch.float32).squeeze(-1)
            wanted = decode_rows(rows[name], pool.group.component(name).encoding, scale)
            assert torch.equal(pool.read(name, layer, torch.tensor(blocks))[:tokens], wanted)


def test_regions_lie_in_the_buffers_handed_in_and_stay_as_large_as_said():
    buffers = []

    def allocate(size_bytes: int) -> bytearray:
        buffers.append(bytearray(size_bytes + 4096))  # a shared memory is rounded up to pages
        return buffers[-1]

    representation = a_representation()
    pool = PagedPool(representation, 3, allocate=allocate)
    assert [len(region.data) for region in pool.regions] == [r.shape.size_bytes(3) for r in pool.regions]
    pool.regions[0].data.fill_(7)
    assert buffers[0][: len(pool.regions[0].data)] == b"\x07" * len(pool.regions[0].data)
    assert not any(buffers[0][len(pool.regions[0].data) :])


def test_more_than_one_layer_group_is_refused():
    representation = a_representation()
    (group,) = representation.groups
    another = msgspec.structs.replace(group, layers=(2, 3))
    with pytest.raises(Unsupported, match="one layer group"):
        PagedPool(KVRepresentation(groups=(group, another), partition=representation.partition), 3)


def a_representation() -> KVRepresentation:
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=(0, 1),
        components=attention(heads=2, head_size=8, head_size_v=8, encoding=Encoding(storage_dtype=StorageDtype.BF16)),
        block_size=4,
        layout=Layout.LBNHC,
        kv_order=KvOrder.TWO_TENSORS,
    )
    return KVRepresentation(groups=(group,), partition=Partition(tp_size=2))
