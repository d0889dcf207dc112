"""Partition: how a model's KV is cut into shards over ranks."""

import itertools
from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import BLOCK_SIZE_TOKENS_MAX, LAYERS_MAX, PP_SIZE_MAX, TP_SIZE_MAX
from isthmus.state.structs import WireStruct, require

__all__ = ["Partition"]


class Partition(WireStruct, frozen=True, kw_only=True):
    """Shards by (pipeline stage, tensor-parallel rank); rank = stage * tp_size + tp_rank.

    `tp_size` cuts heads: where it exceeds them, each head is held by tp_size / heads neighbouring ranks. `pp_starts` is
    the first layer of each stage. `dcp_size` (decode context parallel) deals tokens in turn, `dcp_interleave` at a
    time, to neighbouring ranks that would otherwise hold the same heads. Data parallelism does not cut a request, so
    it is not here: an engine's attention groups each have this partition.
    """

    tp_size: Annotated[int, Meta(ge=1, le=TP_SIZE_MAX)] = 1
    pp_starts: Annotated[tuple[int, ...], Meta(min_length=1, max_length=PP_SIZE_MAX)] = (0,)
    dcp_size: Annotated[int, Meta(ge=1, le=TP_SIZE_MAX)] = 1
    dcp_interleave: Annotated[int, Meta(ge=1, le=BLOCK_SIZE_TOKENS_MAX)] = 1

    def __post_init__(self) -> None:
        # Types and ranges of single fields are msgspec's on the wire; a caller in Python gets them here.
        require(1 <= self.tp_size <= TP_SIZE_MAX, "tp_size", self.tp_size, f"1 to {TP_SIZE_MAX}")
        require(self.tp_size % self.dcp_size == 0, "dcp_size", self.dcp_size, f"a divisor of tp_size = {self.tp_size}")
        require(
            self.pp_starts[0] == 0 and all(a < b < LAYERS_MAX for a, b in itertools.pairwise(self.pp_starts)),
            "pp_starts",
            self.pp_starts,
            "first layers of the stages, from 0 upwards",
        )

    @property
    def pp_size(self) -> int:
        return len(self.pp_starts)
