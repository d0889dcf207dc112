"""One step as tensors: which rows are computed, where their KV goes, what each attends to. Made once, used per layer.

A step is `step_tokens` rows whatever it computes. Attention works on fixed tiles: QUERY_TILE consecutive tokens of one
request against KV_TILE consecutive keys of the same request, both padded, so that every matrix product has one shape
and every row one order of reduction, alone or in a crowd, in a prefill chunk or in decode (batch invariance).

Requests with equal numbers of query tiles are attended together as a *band*. Within it requests are sorted by length,
longest first, and KV tiles lie tile-index-major, so that "the j-th tile of every request that has one" is one slice:

    requests a (3 KV tiles), b (2), c (1):   a0 b0 c0 | a1 b1 | a2        counts = (3, 2, 1)
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from isthmus.core.units import blocks_for

__all__ = ["KV_TILE", "QUERY_TILE", "TILES_AT_ONCE", "Band", "KeySource", "Span", "StepPlan", "plan_step"]

QUERY_TILE = 4
"""Tokens. With one query head per KV head a product still has 4 rows: below 4, BLAS takes another path."""

KV_TILE = 128
"""Keys. The same for every block size, so that the order of reduction does not depend on the representation."""

TILES_AT_ONCE = 16
"""KV tiles read, decoded and multiplied together: few enough to stay in a CPU's cache. Off the CPU a smaller number is
padded to it, since a GPU library may choose its kernel by the number of matrices; on CPU each matrix of a batch is
computed alike whatever the number (tests/engines/test_batch_invariance.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive rows of a step that are consecutive tokens of one request, from `position` on."""

    token_ids: tuple[int, ...]
    position: int
    block_ids: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.position + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where up to TILES_AT_ONCE KV tiles are read from.

    blocks: int64, the pool blocks to read.
    key_rows: int64 [tiles * KV_TILE] into the tokens of those, or None where the blocks already are the tiles.
    empty_rows: int64, those of the tiles * KV_TILE keys that hold no token of the request.
    """

    blocks: Tensor
    key_rows: Tensor | None
    empty_rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Requests attended together: R requests, Q query tiles each, T KV tiles in all.

    query_rows: int64 [Q * R * QUERY_TILE], a step row for each slot (padding slots name row 0).
    tile_request: int64 [T], which request a KV tile is of.
    counts: counts[j] requests have more than j KV tiles.
    parts: the T tiles, TILES_AT_ONCE at a time.
    hidden: bool [Q, T, 1, QUERY_TILE, 1, KV_TILE], true where a slot must not see a key.
    """

    query_rows: Tensor
    tile_request: Tensor
    counts: tuple[int, ...]
    parts: tuple[KeySource, ...]
    hidden: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A step, of whose rows the first `rows` are real. `output_slots` [step_tokens] finds a row in the bands' slots."""

    rows: int
    input_ids: Tensor
    position_ids: Tensor
    write_blocks: Tensor
    write_offsets: Tensor
    bands: tuple[Band, ...]
    output_slots: Tensor


def plan_step(spans: tuple[Span, ...], *, step_tokens: int, block_size: int, device: torch.device) -> StepPlan:
    """Lay out one step.

    Args:
        spans: at least one; together at most `step_tokens` tokens, each within its blocks.
        step_tokens, block_size: tokens.
        device: where the plan's tensors lie.
    """
    tokens = [token for span in spans for token in span.token_ids]
    positions = [position for span in spans for position in range(span.position, span.stop)]
    slots = [
        (span.block_ids[position // block_size], position % block_size)
        for span in spans
        for position in range(span.position, span.stop)
    ]
    padding = [0] * (step_tokens - len(tokens))
    starts = [0]
    for span in spans:
        starts.append(starts[-1] + len(span.token_ids))

    def tiles(index: int) -> int:
        return -(-len(spans[index].token_ids) // QUERY_TILE)

    order = sorted(range(len(spans)), key=lambda index: (tiles(index), -spans[index].stop))
    bands: list[Band] = []
    row_slots = [0] * step_tokens
    slot_start = 0
    for query_tiles, members in groupby(order, key=tiles):
        chosen = [(spans[index], starts[index]) for index in members]
        bands.append(_band(chosen, query_tiles, block_size, device))
        for number, (span, row) in enumerate(chosen):
            for offset in range(len(span.token_ids)):
                tile, slot = divmod(offset, QUERY_TILE)
                row_slots[row + offset] = slot_start + (tile * len(chosen) + number) * QUERY_TILE + slot
        slot_start += query_tiles * len(chosen) * QUERY_TILE
    return StepPlan(
        rows=len(tokens),
        input_ids=_ints([tokens + padding], device),
        position_ids=_ints([positions + padding], device),
        write_blocks=_ints([block for block, _ in slots], device),
        write_offsets=_ints([offset for _, offset in slots], device),
        bands=tuple(bands),
        output_slots=_ints(row_slots, device),
    )


def _band(members: list[tuple[Span, int]], query_tiles: int, block_size: int, device: torch.device) -> Band:
    """`members`: (span, its first row), longest first."""
    kv_tiles = [-(-span.stop // KV_TILE) for span, _ in members]
    counts = tuple(sum(1 for tiles in kv_tiles if tiles > j) for j in range(kv_tiles[0]))
    items = [(number, j) for j, count in enumerate(counts) for number in range(count)]

    query_rows, query_positions = [], []
    for tile in range(query_tiles):
        for span, row in members:
            for slot in range(tile * QUERY_TILE, (tile + 1) * QUERY_TILE):
                real = slot < len(span.token_ids)
                query_rows.append(row + slot if real else 0)
                query_positions.append(span.position + slot if real else 0)  # sees key 0, so its softmax is finite
    tile_request = _ints([number for number, _ in items], device)
    tile_start = _ints([j * KV_TILE for _, j in items], device)
    key_positions = tile_start[:, None] + torch.arange(KV_TILE, device=device)
    slot_positions = _ints(query_positions, device).view(query_tiles, len(members), QUERY_TILE)
    seen_until = slot_positions.index_select(1, tile_request)
    hidden = key_positions[None, :, None, :] > seen_until[:, :, :, None]
    parts = [items[start : start + TILES_AT_ONCE] for start in range(0, len(items), TILES_AT_ONCE)]
    return Band(
        query_rows=_ints(query_rows, device),
        tile_request=tile_request,
        counts=counts,
        parts=tuple(_key_source([(members[number][0], j) for number, j in part], block_size, device) for part in parts),
        hidden=hidden[:, :, None, :, None, :],
    )


def _key_source(tiles: list[tuple[Span, int]], block_size: int, device: torch.device) -> KeySource:
    """`tiles`: (request, index of the tile). Each reads the blocks its keys lie in, filled up with the first of them.

    Where whole blocks make a tile, what is read is the tile; elsewhere its tokens are picked from what is read.
    """
    blocks: list[int] = []
    key_rows: list[int] = []
    empty_rows: list[int] = []
    for number, (span, j) in enumerate(tiles):
        start, stop = j * KV_TILE, min((j + 1) * KV_TILE, span.stop)
        first = start // block_size
        held = span.block_ids[first : blocks_for(stop, block_size)]
        width = blocks_for((j + 1) * KV_TILE, block_size) - first
        offset = len(blocks) * block_size + start - first * block_size
        key_rows.extend(range(offset, offset + KV_TILE))
        empty_rows.extend(range(number * KV_TILE + stop - start, (number + 1) * KV_TILE))
        blocks.extend((*held, *(held[0] for _ in range(width - len(held)))))
    return KeySource(
        blocks=_ints(blocks, device),
        key_rows=None if KV_TILE % block_size == 0 else _ints(key_rows, device),
        empty_rows=_ints(empty_rows, device),
    )


def _ints(values: list[int] | list[list[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
