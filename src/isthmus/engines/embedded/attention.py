"""Attention over the pool, as transformers' two seams: a `Cache` that writes, and an attention function that reads.

The keys and values of the current rows are encoded and written first and then read back like all others, so that what
a token sees does not depend on whether its predecessors came in the same step. Every product has one shape
(QUERY_TILE * group rows, KV_TILE keys), sums run in one order, and everything is in f32. Softmax first finds each row's
maximum over all tiles (exact in any order); then a tile that a row must not see adds exactly zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from isthmus.engines.embedded.plan import KV_TILE, QUERY_TILE, TILES_AT_ONCE, Band, StepPlan
from isthmus.engines.embedded.pool import EncodedRows, PagedPool

__all__ = ["ATTENTION_NAME", "PoolCache", "register_attention"]

ATTENTION_NAME = "isthmus_paged"


class PoolCache(Cache):
    """The cache of one step: `update` writes the step's rows to the pool and keeps the encoded rows for the digest."""

    def __init__(self, pool: PagedPool, plan: StepPlan) -> None:
        super().__init__(layers=[])
        self.pool = pool
        self.plan = plan
        self.written: list[EncodedRows] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write rows [1, heads, step_tokens, head_size], less the padding. Returns its arguments, unused."""
        rows = self.plan.rows
        encoded = self.pool.encode(key_states[0, :, :rows].transpose(0, 1), value_states[0, :, :rows].transpose(0, 1))
        self.pool.write(layer_idx, self.plan.write_blocks, self.plan.write_offsets, encoded)
        self.written.append(encoded)
        return key_states, value_states


def register_attention() -> None:
    """Make the attention function known to transformers by its name. It has no mask function, so no mask is made."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    step_cache: PoolCache,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a step's rows, [1, heads, step_tokens, size], to the pool: [1, step_tokens, heads, size]."""
    plan, pool = step_cache.plan, step_cache.pool
    rows = query[0].transpose(0, 1).to(torch.float32) * scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    slots = [_attend(rows, band, pool, layer) for band in plan.bands]
    found = slots[0] if len(slots) == 1 else torch.cat(slots)
    return found.index_select(0, plan.output_slots).unsqueeze(0).to(query.dtype), None


def _attend(rows: Tensor, band: Band, pool: PagedPool, layer: int) -> Tensor:
    """One band: query rows f32 [step_tokens, heads, size] to f32 [slots of the band, heads, size]."""
    kv_heads = pool.group.num_kv_heads
    size, size_v = (pool.group.component(name).count for name in ("key", "value"))
    requests, count = band.counts[0], len(band.tile_request)
    group = rows.shape[1] // kv_heads
    queries = rows.index_select(0, band.query_rows).view(-1, requests, QUERY_TILE, kv_heads, group, size)
    lanes, tile_rows = queries.shape[0], QUERY_TILE * group
    queries = queries.permute(0, 1, 3, 2, 4, 5).reshape(lanes, requests, kv_heads, tile_rows, size)

    by_tile = _per_tile(queries, band)
    scores = queries.new_empty(lanes, count, kv_heads, tile_rows, KV_TILE)
    for part in range(0, count, TILES_AT_ONCE):
        keys = _tiles(band, part, pool, layer, "key").transpose(2, 3)
        _products(by_tile, keys, scores, part)
    scores.view(lanes, count, kv_heads, QUERY_TILE, group, KV_TILE).masked_fill_(band.hidden, float("-inf"))

    peak = _fold_tiles(scores.amax(dim=-1), band.counts, torch.maximum)
    weights = scores.sub_(_per_tile(peak, band).unsqueeze(-1)).exp_()
    total = _fold_tiles(_row_sum(weights), band.counts, torch.add)
    mixed = queries.new_empty(lanes, count, kv_heads, tile_rows, size_v)
    for part in range(0, count, TILES_AT_ONCE):
        _products(weights, _tiles(band, part, pool, layer, "value"), mixed, part)
    mixed = _fold_tiles(mixed, band.counts, torch.add) / total.unsqueeze(-1)
    mixed = mixed.view(lanes, requests, kv_heads, QUERY_TILE, group, size_v).permute(0, 1, 3, 2, 4, 5)
    return mixed.reshape(lanes * requests * QUERY_TILE, kv_heads * group, size_v)


def _tiles(band: Band, part: int, pool: PagedPool, layer: int, name: str) -> Tensor:
    """K or V of some of a band's tiles, read and decoded once: f32 [tiles, kv_heads, KV_TILE, size], a strided view."""
    source = band.parts[part // TILES_AT_ONCE]
    rows = pool.read(name, layer, source.blocks)
    if source.key_rows is not None:
        rows = rows.index_select(0, source.key_rows)
    if name == "value":
        # A slot that holds no token of this request may hold anything, NaN included, and 0 * NaN is NaN. Scores of
        # such keys are masked; their values are cleared.
        rows.index_fill_(0, source.empty_rows, 0.0)
    return rows.view(-1, KV_TILE, *rows.shape[1:]).transpose(1, 2)


def _per_tile(by_request: Tensor, band: Band) -> Tensor:
    """[lanes, requests, ...] to [lanes, tiles, ...]."""
    if len(band.counts) == 1:
        return by_request
    return by_request.index_select(1, band.tile_request)


def _fold_tiles(by_tile: Tensor, counts: Sequence[int], combine: Any) -> Tensor:
    """Combine each request's tiles in their order: [lanes, tiles, ...] to [lanes, requests, ...]."""
    folded = by_tile[:, : counts[0]].contiguous()
    start = counts[0]
    for count in counts[1:]:
        into = folded[:, :count]
        combine(into, by_tile[:, start : start + count], out=into)
        start += count
    return folded


def _row_sum(weights: Tensor) -> Tensor:
    """Sum over KV_TILE by halving: elementwise additions have one order on any device, whatever the shape around."""
    while weights.shape[-1] > 1:
        half = weights.shape[-1] // 2
        weights = weights[..., :half] + weights[..., half:]
    return weights.squeeze(-1)


def _products(left: Tensor, right: Tensor, out: Tensor, start: int) -> None:
    """out[lane, start + i, head] = left[lane, start + i, head] @ right[i, head], for every lane, i and head."""
    count = right.shape[0]
    padding = 0 if left.device.type == "cpu" else TILES_AT_ONCE - count
    if padding:
        right = torch.cat((right, right[:1].expand(padding, -1, -1, -1)))
    for lane in range(left.shape[0]):
        for head in range(left.shape[2]):
            here = left[lane, start : start + count, head]
            into = out[lane, start : start + count, head]
            if padding:
                here = torch.cat((here, here[:1].expand(padding, -1, -1)))
                into.copy_(torch.bmm(here, right[:, head])[:count])
            else:
                torch.bmm(here, right[:, head], out=into)
