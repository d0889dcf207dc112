"""The paged pool: flat byte regions, and strided views on them derived from `state.addressing`.

Nothing here knows a layout by name. A field (key, value, their scales) of a shard is one `as_strided` view
[layer, block, token in block, head, unit], where the unit is the widest integer that divides every stride, so that
gathers copy words and not bytes. The pool allocates no blocks and clears none: a reader masks what it was not told of.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.core.errors import Unsupported
from isthmus.core.ids import RegionId
from isthmus.kernels.torch_codec import check_encoding, decode_rows, encode_rows
from isthmus.kernels.torch_views import field_view
from isthmus.state.fields import FieldAddress, RegionShape, ShardAddressing
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["Allocate", "EncodedRows", "PagedPool", "PoolRegion"]

Allocate = Callable[[int], Any]
"""Given a size in bytes, a writable buffer of at least that size (a bytearray, a shared memory's `buf`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRegion:
    """One exported span: its shape and its bytes, uint8 [shape.size_bytes(num_blocks)]."""

    rank: int
    shape: RegionShape
    data: Tensor

    @property
    def id(self) -> RegionId:
        return self.shape.id


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """Rows as stored, in logical order over all shards: uint8 [..., heads, row bytes] per field of FIELD_NAMES."""

    fields: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FieldView:
    """One field of one shard: `words` [layers, blocks, block_size, heads of the shard, units]."""

    name: str
    head_start: int
    head_stop: int
    words: Tensor


class PagedPool:
    """KV of one layer group in `num_blocks` blocks.

    Args:
        representation: one group; every layout, order, encoding and shard count of `state` is served.
        num_blocks: blocks of `group.block_size` tokens.
        device: on "cpu" regions lie in buffers from `allocate`; elsewhere on the device, and `allocate` is not used.
        allocate: where regions lie on CPU, so that a transport may hand in memory it shares.

    Raises:
        Unsupported: more than one layer group.
    """

    def __init__(
        self,
        representation: KVRepresentation,
        num_blocks: int,
        device: torch.device | str = "cpu",
        allocate: Allocate = bytearray,
    ) -> None:
        if len(representation.groups) != 1:
            raise Unsupported(f"groups: got {len(representation.groups)}, wanted one layer group", field="groups")
        self.representation = representation
        self.group = representation.groups[0]
        _check(representation)
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        regions: list[PoolRegion] = []
        views: list[_FieldView] = []
        for shard in representation.address()[0]:
            data = [_region_bytes(shape.size_bytes(num_blocks), self.device, allocate) for shape in shard.regions]
            regions.extend(
                PoolRegion(rank=shard.rank, shape=shape, data=bytes_)
                for shape, bytes_ in zip(shard.regions, data, strict=True)
            )
            views.extend(self._view(shard, field, data[field.region]) for field in shard.fields)
        self.regions = tuple(regions)
        self._views = {name: tuple(v for v in views if v.name == name) for name in dict.fromkeys(v.name for v in views)}

    def encode(self, key: Tensor, value: Tensor) -> EncodedRows:
        """Encode rows: f [n, heads, head_size] to what this pool stores."""
        fields: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, rows in (("key", key), ("value", value)):
            raw, scale = encode_rows(rows, self.group.component(name).encoding)
            fields[name] = raw
            if scale is not None:
                scales[f"{name}_scale"] = scale.unsqueeze(-1).view(torch.uint8)
        return EncodedRows(fields=fields | scales)

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, rows: EncodedRows) -> None:
        """Put encoded rows [n, heads, bytes] of one layer at (block, token in block), int64 [n] each."""
        for name, views in self._views.items():
            raw = rows.fields[name]
            for view in views:
                shard_rows = raw[:, view.head_start : view.head_stop].view(view.words.dtype)
                view.words[layer].index_put_((blocks, offsets), shard_rows)

    def read_encoded(self, layer: int, blocks: Tensor) -> EncodedRows:
        """Whole blocks of one layer as stored: uint8 [len(blocks) * block_size, heads, bytes] per field."""
        return EncodedRows(fields={name: self._gather(name, layer, blocks) for name in self._views})

    def read(self, name: str, layer: int, blocks: Tensor) -> Tensor:
        """ "key" or "value" of whole blocks of one layer, decoded: f32 [len(blocks) * block_size, heads, size].

        Slots that were never filled, or by another request, come as they are: finite or not. Mask them.
        """
        scale = None
        if f"{name}_scale" in self._views:
            scale = self._gather(f"{name}_scale", layer, blocks).view(torch.float32).squeeze(-1)
        return decode_rows(self._gather(name, layer, blocks), self.group.component(name).encoding, scale)

    def read_tokens(self, block_ids: tuple[int, ...], length: int) -> EncodedRows:
        """A request's rows as stored, for comparison byte by byte: uint8 [layers, length, heads, bytes] per field."""
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=self.device)
        layers = [self.read_encoded(layer, blocks).fields for layer in range(self.group.num_layers)]
        return EncodedRows(fields={name: torch.stack([rows[name][:length] for rows in layers]) for name in self._views})

    @property
    def block_bytes(self) -> int:
        """What one block takes, over all regions."""
        return sum(region.shape.outer * region.shape.block_bytes for region in self.regions)

    def take_block(self, block: int, into: memoryview) -> None:
        """Copy a whole block, region by region as stored, into `into`: `block_bytes` writable bytes."""
        for view, part in self._parts(block, into):
            torch.frombuffer(part, dtype=torch.uint8).view(view.shape).copy_(view)

    def put_block(self, block: int, data: memoryview) -> None:
        """What `take_block` gave, of this pool or of one of the same representation."""
        for view, part in self._parts(block, data):
            # torch takes no memory that it may not write to.
            view.copy_(torch.frombuffer(bytearray(part) if part.readonly else part, dtype=torch.uint8).view(view.shape))

    def _parts(self, block: int, data: memoryview) -> Iterator[tuple[Tensor, memoryview]]:
        """A block's bytes in each region, with its part of `data`."""
        if len(data) != self.block_bytes:
            raise Unsupported(f"block: {len(data)} bytes, wanted {self.block_bytes}", field="block")
        start = 0
        for region in self.regions:
            view = self._block(region, block)
            yield view, data[start : start + view.numel()]
            start += view.numel()

    def _block(self, region: PoolRegion, block: int) -> Tensor:
        return region.data.view(region.shape.outer, self.num_blocks, region.shape.block_bytes)[:, block]

    def _gather(self, name: str, layer: int, blocks: Tensor) -> Tensor:
        shards = [view.words[layer].index_select(0, blocks).flatten(0, 1) for view in self._views[name]]
        words = shards[0] if len(shards) == 1 else torch.cat(shards, dim=1)
        return words.view(torch.uint8)

    def _view(self, shard: ShardAddressing, field: FieldAddress, data: Tensor) -> _FieldView:
        words = field_view(
            data,
            field,
            layers=shard.layer_stop - shard.layer_start,
            num_blocks=self.num_blocks,
            block_size=self.group.block_size,
            head=0,
            num_heads=field.heads,
        )
        stop = field.head_start + field.heads
        return _FieldView(name=field.name, head_start=field.head_start, head_stop=stop, words=words)


def _check(representation: KVRepresentation) -> None:
    """What this engine does not do, though it can be described: replicas would be read twice, stages are several."""
    group, partition = representation.groups[0], representation.partition
    if [part.name for part in group.components] != ["key", "value"]:
        raise Unsupported("components: wanted key and value", field="components")
    if group.num_kv_heads % partition.tp_size or partition.pp_size > 1 or partition.dcp_size > 1:
        raise Unsupported(
            f"tp_size: got {partition.tp_size}, wanted a divisor of num_kv_heads = {group.num_kv_heads}, "
            "with one stage and tokens not dealt",
            field="tp_size",
        )
    for part in group.components:
        check_encoding(part.encoding)


def _region_bytes(size_bytes: int, device: torch.device, allocate: Allocate) -> Tensor:
    if device.type != "cpu":
        return torch.empty(size_bytes, dtype=torch.uint8, device=device)
    # The tensor keeps the buffer alive. A shared memory may be rounded up to pages, so `count` says how much is ours.
    return torch.frombuffer(allocate(size_bytes), dtype=torch.uint8, count=size_bytes)
