"""Copies of blocks between dense arrays, in bounded chunks, and the lender of host memory.

A chunk is a piece of [outer, blocks, block_bytes] that is contiguous in what arrives: some whole outer slices, or some
blocks of one slice. Chunks follow each other without a gap, so that a stream of them is the image that arrives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.core.errors import BadInput, Bug, NotAuthorised
from isthmus.core.ids import RegionId
from isthmus.core.units import KIB
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockRead, Lender

__all__ = ["Chunk", "HostLender", "check_shapes", "check_staging", "chunks_of", "copy_blocks", "copy_chunk", "dense"]

Bytes = npt.NDArray[np.uint8]

RUN_BYTES_MIN = 32 * KIB
"""Below this a run's own step in Python costs more than its larger copy saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Slices `outer`, and positions [block_start, block_stop) among the blocks: bytes [start, stop) on arrival."""

    outer: range
    block_start: int
    block_stop: int
    start: int
    stop: int


def chunks_of(shape: RegionShape, num_blocks: int, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut the image of `num_blocks` blocks into chunks of at most `chunk_bytes`, and at least one block."""
    slice_bytes = num_blocks * shape.block_bytes
    outer_step = max(1, chunk_bytes // slice_bytes)
    block_step = num_blocks if slice_bytes <= chunk_bytes else max(1, chunk_bytes // shape.block_bytes)
    start = 0
    for outer in range(0, shape.outer, outer_step):
        slices = range(outer, min(outer + outer_step, shape.outer))
        for block in range(0, num_blocks, block_step):
            block_stop = min(block + block_step, num_blocks)
            stop = start + len(slices) * (block_stop - block) * shape.block_bytes
            yield Chunk(outer=slices, block_start=block, block_stop=block_stop, start=start, stop=stop)
            start = stop


def dense(buffer: memoryview, shape: RegionShape, num_blocks: int) -> Bytes:
    """`buffer` as [outer, num_blocks, block_bytes], without a copy."""
    return np.frombuffer(buffer, np.uint8).reshape(shape.outer, num_blocks, shape.block_bytes)


def copy_blocks(region: Bytes, outer: range, blocks: Sequence[int] | npt.NDArray[np.intp], into: memoryview) -> None:
    """Fill `into` with [len(outer), len(blocks), block_bytes] of `region` [outer, num_blocks, block_bytes].

    Lets other threads run. Runs of neighbouring ids become one copy each, which out of a mapped file is twice as fast
    as block by block; where runs are short, one pass in C over the blocks is faster than a step in Python for each.

    Raises:
        NotAuthorised: a block or slice lies outside the region.
    """
    ids = np.asarray(blocks, dtype=np.intp)
    # "clip" is the mode that writes straight into `out`. It would also turn a wrong id into a wrong block, hence:
    if not (ids.size and ids.min() >= 0 and ids.max() < region.shape[1] and 0 <= outer.start < outer.stop):
        raise NotAuthorised(f"blocks: an id outside [0, {region.shape[1]})", field="blocks")
    if outer.stop > region.shape[0] or outer.step != 1:
        raise NotAuthorised(f"outer: {outer}, wanted slices within [0, {region.shape[0]})", field="outer")
    target = np.frombuffer(into, np.uint8).reshape(len(outer), len(ids), region.shape[2])
    source = region[outer.start : outer.stop]
    cuts = np.flatnonzero(np.diff(ids) != 1) + 1
    if into.nbytes < (cuts.size + 1) * RUN_BYTES_MIN:
        np.take(source, ids, axis=1, out=target, mode="clip")
        return
    starts = [0, *cuts.tolist()]
    for start, stop in zip(starts, [*starts[1:], ids.size], strict=True):
        first = int(ids[start])
        np.copyto(target[:, start:stop], source[:, first : first + stop - start])


class HostLender:
    """Lends regions that lie in this process's memory. A CUDA engine supplies its own lender."""

    def __init__(
        self, regions: tuple[RegionShape, ...], num_blocks: int, buffers: Mapping[RegionId, memoryview]
    ) -> None:
        """`buffers[region.id]` holds [outer, num_blocks, block_bytes] bytes, and is lent for as long as this lives.

        Raises:
            Bug: a buffer is missing or of another size.
        """
        for region in regions:
            held, wanted = buffers[region.id].nbytes if region.id in buffers else 0, region.size_bytes(num_blocks)
            if held != wanted:
                raise Bug(f"buffers.{region.id}: {held} bytes, wanted {wanted}", field=region.id)
        self._regions = regions
        self._num_blocks = num_blocks
        self._buffers = {region.id: buffers[region.id].cast("B") for region in regions}
        self._arrays = {region.id: dense(self._buffers[region.id], region, num_blocks) for region in regions}

    @property
    def regions(self) -> tuple[RegionShape, ...]:
        return self._regions

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    def buffer(self, region: RegionId) -> memoryview:
        """The memory itself, for a transport that shares it."""
        return self._buffers[region]

    def copy_out(self, region: RegionId, outer: range, blocks: Sequence[int], into: memoryview) -> None:
        copy_blocks(self._arrays[region], outer, blocks, into)


def check_shapes(request: BlockRead, regions: tuple[RegionShape, ...], num_blocks: int) -> None:
    """Refuse a read whose idea of the regions is not the owner's.

    Raises:
        BadInput: another extent, an unknown region or another shape.
    """
    if request.num_blocks != num_blocks:
        raise BadInput(f"num_blocks: {request.num_blocks}, the owner's pool has {num_blocks}", field="num_blocks")
    owned = {region.id: region for region in regions}
    for region in request.regions:
        if owned.get(region.id) != region:
            raise BadInput(
                f"regions: {region} is not the owner's, which are {', '.join(sorted(owned))}", field="regions"
            )


def check_staging(request: BlockRead, into: Mapping[RegionId, memoryview]) -> dict[RegionId, memoryview]:
    """The staging buffer of each region of the request, as flat bytes.

    Raises:
        Bug: one is missing, read-only, not contiguous or of another size. Both arguments are ours.
    """
    staging = {}
    for region in request.regions:
        wanted = region.size_bytes(len(request.blocks))
        view = into.get(region.id)
        if view is None or view.readonly or not view.c_contiguous or view.nbytes != wanted:
            raise Bug(f"into.{region.id}: wanted {wanted} writable, contiguous bytes", field=region.id)
        staging[region.id] = view.cast("B")
    return staging


def copy_chunk(lender: Lender, request: BlockRead, region: RegionShape, chunk: Chunk, into: memoryview) -> None:
    """One chunk of `region` out of a lender, into a buffer of exactly the chunk's size."""
    lender.copy_out(region.id, chunk.outer, request.blocks[chunk.block_start : chunk.block_stop], into)
