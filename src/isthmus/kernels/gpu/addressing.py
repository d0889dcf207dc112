"""Where a launch reads and writes: addresses as steps from one base, and all its tables in one copy to the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.kernels.gpu.launch import Address, Tables, address_of
from isthmus.kernels.lowered import Index
from isthmus.kernels.mixing import signed, word_keys
from isthmus.kernels.places import BoundMove, Places

__all__ = ["SLOTS", "UNITS", "Addressed", "Addresses", "Launch", "Regions", "Tuning", "numbers", "unit_of"]

Regions = Sequence[Sequence[Tensor]]
"""Flat uint8 tensors, by [position of the shard][region]."""

Addressed = tuple[Address, list[Index]]
"""A field of some moves, and for each move where each layer's rows begin, in steps."""

SLOTS = 256
"""Sums are spread over so many places, so that programs do not wait for each other."""

UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How launches are cut: elements of a program's tile, and its warps."""

    tile_bytes: int = 32768
    warps: int = 8
    digest: bool = True
    check: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel, its grid and its arguments; running it again moves the same rows again.

    `again`: the same for numbers of any kind, where this one is for ordinary ones and says if it has met others.
    """

    kernel: Any
    grid: tuple[int, int]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    moves: tuple[BoundMove, ...]
    stats: Tensor
    again: "Callable[[], Launch] | None" = None

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants)


class Addresses:
    """The fields of a group of moves, as steps from one address."""

    def __init__(self, device: torch.device) -> None:
        self.base = _anchor(device)
        self.tables = Tables()

    def address(self, places: Sequence[Places], regions: Regions) -> Addressed:
        """The field's step, and for each move where each layer's rows begin, in steps."""
        bases = [_pointer(regions, each) - self.base.data_ptr() for each in places]
        address = address_of(places, bases)
        starts = [
            (each.layer + (base + int(each.head[0]))) // address.step for each, base in zip(places, bases, strict=True)
        ]
        return address, starts

    def elements(self, address: Address) -> int:
        """Where the table of a row's elements begins, in units that can be read; -1 where they follow each other."""
        first = address.places[0]
        return -1 if first.contiguous else self.tables.add(first.unit // min(first.unit_bytes, address.step))

    def units(self, places: Places, unit: int) -> int:
        """Where the table of all units of so many bytes of a row begins; -1 where they follow each other."""
        if places.contiguous:
            return -1
        within = np.arange(0, places.unit_bytes, unit)
        return self.tables.add((places.unit[:, None] + within).reshape(-1) // unit)


@lru_cache(maxsize=8)
def _anchor(device: torch.device) -> Tensor:
    """An address that all others are counted from."""
    return torch.zeros(64, dtype=torch.int64, device=device)


def _pointer(regions: Regions, places: Places) -> int:
    return regions[places.shard][places.region].data_ptr()


def unit_of(address: Address) -> int:
    """Bytes of the widest integer that rows of a field can be read in."""
    first = address.places[0]
    return min(8 if first.contiguous else first.unit_bytes, address.step, first.row_bytes & -first.row_bytes)


def numbers(
    tables: Tables, jobs: list[list[int]], tokens: Index, words: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Jobs, token tables, the numbers of tokens, unit tables (in the same array), and word keys; in one copy."""
    array, room = tables.array(), 2
    parts = [
        np.asarray(jobs, np.int64).reshape(-1),
        array,
        tokens,
        np.array([signed(each) for each in word_keys(words)], np.int64),
    ]
    sizes = [-(-len(part) // room) * room for part in parts]
    whole = np.zeros(sum(sizes), np.int64)
    starts = np.cumsum([0, *sizes])
    for part, start in zip(parts, starts, strict=False):
        whole[start : start + len(part)] = part
    there = torch.from_numpy(whole).to(device, non_blocking=True)
    job_numbers, table_numbers, token_numbers, keys = (
        there[start : start + size] for start, size in zip(starts, sizes, strict=False)
    )
    return job_numbers, table_numbers, token_numbers, table_numbers, keys
