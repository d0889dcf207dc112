"""A case of the bench, bound to random block tables, with pools of random numbers. Numbers and torch only."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from isthmus.kernels.lowered import Lowered, Shard, from_builtins
from isthmus.kernels.operands import Operands
from isthmus.kernels.places import BoundMove, Side, bind_moves

__all__ = ["CASES_PATH", "Bound", "Case", "all_cases", "bind_case"]

CASES_PATH: Final = Path(__file__).parent / "cases.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A lowered plan, and the ratios to copy that are wanted."""

    name: str
    gpu: float
    cpu: float
    lowered: Lowered


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A case of so many tokens: its moves, and flat uint8 regions by [shard][region]."""

    case: Case
    moves: tuple[BoundMove, ...]
    source: list[list[Tensor]]
    target: list[list[Tensor]]
    operands: Operands

    @property
    def row_bytes(self) -> int:
        """Bytes that must be read and written: rows and their scales, once on either side."""
        total = 0
        for bound in self.moves:
            rows = len(bound.move.layers) * len(bound.tokens) * bound.move.num_heads
            fields = (bound.source, bound.target, bound.source_scales, bound.target_scales)
            total += rows * sum(each.row_bytes for each in fields if each is not None)
        return total


@cache
def all_cases() -> tuple[Case, ...]:
    """Those of `cases.json`."""
    return tuple(_case(each) for each in json.loads(CASES_PATH.read_text(encoding="utf-8")))


def _case(fields: dict[str, Any]) -> Case:
    return Case(
        name=fields["name"], gpu=fields["gpu"], cpu=fields["cpu"], lowered=from_builtins(Lowered, fields["lowered"])
    )


def bind_case(case: Case, tokens: int, device: torch.device, seed: int) -> Bound:
    """Pools with half as many blocks again as are used, in random order."""
    rng = np.random.default_rng(seed)
    lowered = case.lowered
    ours, theirs = (_side(rng, size, tokens) for size in (lowered.producer_block_size, lowered.consumer_block_size))
    torch.manual_seed(seed)
    return Bound(
        case=case,
        moves=bind_moves(lowered, 0, ours, theirs),
        source=_filled(lowered, ours.num_blocks, device),
        target=_regions(lowered.consumer_shards, theirs.num_blocks, device),
        operands=_operands(lowered),
    )


def _side(rng: np.random.Generator, block_size: int, tokens: int) -> Side:
    needed = -(-tokens // block_size)
    num_blocks = needed + needed // 2 + 1
    table = rng.permutation(num_blocks)[:needed].astype(np.int64)
    index = np.arange(tokens, dtype=np.int64)
    return Side(
        blocks=table[index // block_size],
        slots=index % block_size,
        dcp_rank=np.zeros(tokens, np.int64),
        num_blocks=num_blocks,
    )


def _regions(shards: tuple[Shard, ...], num_blocks: int, device: torch.device) -> list[list[Tensor]]:
    return [
        [torch.zeros(region.size_bytes(num_blocks), dtype=torch.uint8, device=device) for region in shard.regions]
        for shard in shards
    ]


def _filled(lowered: Lowered, num_blocks: int, device: torch.device) -> list[list[Tensor]]:
    """Ordinary numbers: bf16 of a normal distribution; else codes without NaN, and scales of one size."""
    regions = _regions(lowered.producer_shards, num_blocks, device)
    kinds = {move.decode.dtype for move in lowered.moves}
    scaled = any(move.source_scales is not None for move in lowered.moves)
    for region in _each(regions):
        if scaled or kinds - {"bf16"}:
            # Every byte is a small code of e4m3, and four of them are an f32 of ordinary size.
            region.copy_(torch.randint(0x38, 0x3F, region.shape, dtype=torch.uint8, device=device))
        else:
            values = region.view(torch.bfloat16)
            step = 1 << 26
            for start in range(0, values.numel(), step):
                part = values[start : start + step]
                part.copy_(torch.randn(part.shape, device=device))
    return regions


def _each(regions: list[list[Tensor]]) -> Iterator[Tensor]:
    for shard in regions:
        yield from shard


def _operands(lowered: Lowered) -> Operands:
    """Static scales that leave ordinary numbers within range."""
    layers = 1 + max(position for move in lowered.moves for position in move.positions)
    heads = max(move.head_start + move.num_heads for move in lowered.moves)
    given = np.linspace(0.02, 0.05, layers * heads, dtype=np.float32).reshape(layers, heads)
    per_head = {move.component: given for move in lowered.moves}
    return Operands(producer=per_head, consumer=per_head)
