"""Putting rows into a pool one by one, as a description says, and converting them as two descriptions say.

Slow and plain, so that it can be believed: indexes are dealt and counted, bytes are addressed one row at a time. It
uses the addresses of `state.addressing`, which have tests of their own, and nothing of the kernels under test.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isthmus.state.digits import Axis
from isthmus.state.encoding import Encoding, Granularity
from isthmus.state.fields import FieldAddress, ShardAddressing
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.formats import F32, INTEGERS, decode, encode, nearest, pack, plain, positive, unpack, whole_scale
from tests.strategies import block_table, empty_regions

Rows = dict[str, np.ndarray]
"""Field to uint8 [L, T, H, row_bytes]: the group's layers, rows, the model's heads."""


def axis_bytes(field: FieldAddress, axis: Axis, index: int, num_blocks: int) -> int:
    """The bytes that an index along one axis adds."""
    total = 0
    for digit in field.digits:
        if digit.axis is axis:
            place = index // digit.divisor
            place = place % digit.extent if digit.extent else place
            total += place * (digit.stride.fixed + digit.stride.per_block * num_blocks)
    return total


@lru_cache(maxsize=64)
def unit_bytes(field: FieldAddress, num_blocks: int) -> np.ndarray:
    """The bytes of a row, unit by unit, from where the row begins."""
    starts = [axis_bytes(field, Axis.UNIT, unit, num_blocks) for unit in range(field.units)]
    return np.array([start + byte for start in starts for byte in range(field.unit_bytes)])


def row_at(field: FieldAddress, num_blocks: int, layer: int, block: int, token: int, head: int) -> np.ndarray:
    """The bytes of one row; layer and head are the shard's own."""
    start = field.offset.fixed + field.offset.per_block * num_blocks
    for axis, index in ((Axis.LAYER, layer), (Axis.BLOCK, block), (Axis.TOKEN, token), (Axis.HEAD, head)):
        start += axis_bytes(field, axis, index, num_blocks)
    return start + unit_bytes(field, num_blocks)


@dataclass(frozen=True)
class Dealt:
    """Where a row lies: in which entry of the block table, at which slot, and on which rank of those it is dealt to."""

    entry: int
    slot: int
    rank: int


def deal(group: GroupRepresentation, partition: Partition, stop: int) -> list[Dealt]:
    """Rows [0, stop) dealt one at a time: `dcp_interleave` to a rank, then the next, each filling its own blocks."""
    had, found = [0] * partition.dcp_size, []
    rank = 0
    for row in range(stop):
        if row and row % partition.dcp_interleave == 0:
            rank = (rank + 1) % partition.dcp_size
        found.append(Dealt(had[rank] // group.block_size, had[rank] % group.block_size, rank))
        had[rank] += 1
    return found


@dataclass(frozen=True)
class Pool:
    """One group of a representation in a pool of its own, and a block table for some tokens."""

    group: GroupRepresentation
    partition: Partition
    shards: tuple[ShardAddressing, ...]
    num_blocks: int
    table: list[int]
    tokens: TokenRange
    regions: list[list[np.ndarray]]

    def copy(self) -> "Pool":
        regions = [[region.copy() for region in shard] for shard in self.regions]
        return Pool(self.group, self.partition, self.shards, self.num_blocks, self.table, self.tokens, regions)

    def where(self, rows: TokenRange) -> list[Dealt]:
        """Where each of `rows` lies, with entries counted from the table's first."""
        dealt = deal(self.group, self.partition, rows.stop)
        first = self.group.held(self.tokens).start // (self.group.block_size * self.partition.dcp_size)
        return [Dealt(one.entry - first, one.slot, one.rank) for one in dealt[rows.start :]]

    def walk(self, rows: TokenRange, layers: tuple[int, ...]):
        """(region, bytes, field, layer, row, head) of every row of a field that some rank holds, replicas too."""
        dealt = self.where(rows)
        for shard, regions in zip(self.shards, self.regions, strict=True):
            for field in shard.fields:
                for local, layer in enumerate(self.group.layers[shard.layer_start : shard.layer_stop]):
                    if layer not in layers:
                        continue
                    for at, one in enumerate(dealt):
                        if one.rank != shard.dcp_rank:
                            continue
                        block = self.table[one.entry]
                        for head in range(field.heads):
                            place = row_at(field, self.num_blocks, local, block, one.slot, head)
                            yield regions[field.region], place, field.name, layer, at, field.head_start + head

    def put(self, rows: TokenRange, layers: tuple[int, ...], data: Rows) -> None:
        """Write rows of `data` [layers, rows, heads, bytes], to every rank that holds them."""
        for region, place, name, layer, at, head in self.walk(rows, layers):
            region[place] = data[name][layers.index(layer), at, head]

    def get(self, rows: TokenRange, layers: tuple[int, ...]) -> Rows:
        """Read rows back, of whichever rank holds them last; unequal replicas are an error."""
        found: Rows = {}
        heads = {part.name: part.heads for part in self.group.components}
        for region, place, name, layer, at, head in self.walk(rows, layers):
            if name not in found:
                shape = (len(layers), len(rows), heads[name.removesuffix("_scale")], len(place))
                found[name] = np.zeros(shape, dtype=np.uint8)
                found[f"{name}?"] = np.zeros(shape[:3], dtype=bool)
            seen, here = found[f"{name}?"], (layers.index(layer), at, head)
            assert not seen[here] or (found[name][here] == region[place]).all(), "replicas differ"
            found[name][here], seen[here] = region[place], True
        assert all(seen.all() for name, seen in found.items() if name.endswith("?")), "a row is nowhere"
        return {name: rows for name, rows in found.items() if not name.endswith("?")}


def pool_of(representation: KVRepresentation, index: int, tokens: TokenRange, rng: np.random.Generator) -> Pool:
    """A poisoned pool of one group with some spare blocks, and a table in random order."""
    group, partition = representation.groups[index], representation.partition
    shards, rows = representation.address()[index], group.held(tokens)
    span = group.block_size * partition.dcp_size
    blocks = -(-rows.stop // span) - rows.start // span
    num_blocks = blocks + int(rng.integers(0, 3))
    table = block_table(rng, blocks, 1, num_blocks)
    return Pool(group, partition, shards, num_blocks, table, tokens, empty_regions(shards, num_blocks))


def random_rows(rng: np.random.Generator, group: GroupRepresentation, rows: int) -> Rows:
    """Finite codes of every kind, and scales of every magnitude that is not extreme."""
    found: Rows = {}
    for part in group.components:
        shape = (group.num_layers, rows, part.heads)
        found[part.name] = random_codes(rng, part.encoding, (*shape, part.count))
        scales = part.encoding.scales_per_row(part.count)
        if scales:
            dtype = part.encoding.quant.scale_dtype
            values = 2.0 ** rng.uniform(-5, 4, (*shape, scales))
            found[f"{part.name}_scale"] = pack(nearest(dtype, values)[0], plain(dtype))
    return found


def random_codes(rng: np.random.Generator, encoding: Encoding, shape: tuple[int, ...]) -> np.ndarray:
    dtype = encoding.storage_dtype
    if dtype in INTEGERS:
        most = INTEGERS[dtype]
        return pack((rng.integers(-most, most + 1, shape) % (2 * most + 2)).astype(np.uint32), encoding)
    if encoding.traits.bits >= 16:
        # No larger than 2**100, so that with a scale they stay finite; half of the time such as there really are.
        values = rng.normal(0, 3, shape) * 2.0 ** (rng.uniform(-140, 98, shape) if rng.random() < 0.5 else 0.0)
        return pack(nearest(dtype, values.astype(F32))[0], encoding)
    size = 1 << encoding.traits.bits - 1
    some = rng.integers(0, len(positive(dtype)), shape)
    negative = rng.integers(0, 2, shape) * (some > 0)
    return pack((some + negative * size).astype(np.uint32), encoding)


def layer_scales(part: Component, layers: tuple[int, ...]) -> np.ndarray | None:
    """The static scales of a component as a plan takes them: [L], [L, H] or [L, H, count]; one array for a digest."""
    quant = part.encoding.quant
    if quant is None or not quant.static:
        return None
    if quant.scale_values == "ones":
        every = np.ones((8, part.heads, part.count), F32)
    else:
        seed = np.random.default_rng(int(quant.scale_values, 16) % (1 << 32) + len(part.name))
        every = (2.0 ** seed.uniform(-3, 3, (8, 8, 64))).astype(F32)[:, : part.heads, : part.count]
    chosen = every[list(layers)]
    if quant.granularity is Granularity.CHANNEL:
        return chosen
    return chosen[:, :, 0] if quant.granularity is Granularity.HEAD else chosen[:, 0, 0]


def as_rows(scales: np.ndarray | None) -> np.ndarray | None:
    """Static scales broadcastable to [L, T, H, count]."""
    if scales is None:
        return None
    return {1: lambda s: s[:, None, None, None], 2: lambda s: s[:, None, :, None], 3: lambda s: s[:, None]}[
        scales.ndim
    ](scales)


def meaning_of(part: Component, data: Rows, layers: tuple[int, ...]) -> np.ndarray:
    """What rows say: f32 [L, T, H, count], in the model's order of elements."""
    scales = data.get(f"{part.name}_scale")
    values = decode(data[part.name], scales, as_rows(layer_scales(part, layers)), part.encoding)
    return values[..., model_order(part)]


def model_order(part: Component) -> np.ndarray:
    """For each of the model's elements, where it is stored."""
    index = np.arange(part.count)
    half = part.count // 2
    return index if part.element_order == "model" else index % half * 2 + index // half


def rewritten(part: Component, values: np.ndarray, layers: tuple[int, ...]) -> tuple[Rows, np.ndarray]:
    """Values in the model's order as a component stores them, and which lie beyond its largest, in stored order."""
    stored = np.empty_like(values)
    stored[..., model_order(part)] = values
    raw, scales, beyond = encode(stored, as_rows(layer_scales(part, layers)), part.encoding)
    return {part.name: raw} | ({} if scales is None else {f"{part.name}_scale": scales}), beyond


def moved(ours: Component, theirs: Component, data: Rows) -> Rows:
    """The same codes and scales under another order of elements and nibbles."""
    codes = unpack(data[ours.name], ours.encoding)[..., model_order(ours)]
    stored = np.empty_like(codes)
    stored[..., model_order(theirs)] = codes
    found = {ours.name: pack(stored, theirs.encoding)}
    scale = f"{ours.name}_scale"
    return found | ({scale: data[scale]} if scale in data else {})


def scale_of(part: Component, data: Rows, layers: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """The whole scale of every element, in the model's order."""
    if part.encoding.quant is None:
        return np.ones_like(like)
    static = as_rows(layer_scales(part, layers))
    return whole_scale(data.get(f"{part.name}_scale"), static, part.encoding, like)[..., model_order(part)]
