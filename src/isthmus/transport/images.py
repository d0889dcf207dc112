"""Images that are written into: their memory, the pieces of a write, and what both sides check before the first byte.

A write of blocks [start, stop) crosses as the dense [outer, stop - start, block_bytes] of each region in turn. In the
image it is contiguous only where it is of all blocks; `pieces_of` says where each contiguous piece lies.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from isthmus.core.errors import BadInput, Bug
from isthmus.core.ids import RegionId
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockWrite, Lender, Target
from isthmus.transport.blocks import Chunk, chunks_of

__all__ = ["allocate_image", "check_lent", "check_target", "copy_piece", "pieces_of"]


def allocate_image(target: Target) -> Mapping[RegionId, memoryview]:
    """Zeroed memory of this process for every region of a target."""
    return {region.id: memoryview(bytearray(region.size_bytes(target.num_blocks))) for region in target.regions}


def pieces_of(shape: RegionShape, request: BlockWrite, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut what crosses of one region into pieces that are contiguous in the image, in the order in which they cross.

    A piece's `start` and `stop` are bytes of the image; its blocks are positions among those that are written.
    """
    if request.num_blocks == request.target.num_blocks:
        yield from chunks_of(shape, request.num_blocks, chunk_bytes)
        return
    slice_shape = replace(shape, outer=1)
    for outer in range(shape.outer):
        offset = (outer * request.target.num_blocks + request.start) * shape.block_bytes
        for chunk in chunks_of(slice_shape, request.num_blocks, chunk_bytes):
            yield Chunk(
                outer=range(outer, outer + 1),
                block_start=chunk.block_start,
                block_stop=chunk.block_stop,
                start=offset + chunk.start,
                stop=offset + chunk.stop,
            )


def copy_piece(
    lender: Lender, blocks: Sequence[int], region: RegionShape, piece: Chunk, image: Mapping[RegionId, memoryview]
) -> None:
    """One piece out of the lender, into its place in the image."""
    into = image[region.id][piece.start : piece.stop]
    lender.copy_out(region.id, piece.outer, blocks[piece.block_start : piece.block_stop], into)


def check_target(request: BlockWrite, held: Target) -> None:
    """Refuse a write whose idea of the image is not its owner's.

    Raises:
        BadInput: another epoch, writer, extent, or other regions.
    """
    if request.target != held:
        wrong = [name for name in held.__struct_fields__ if getattr(held, name) != getattr(request.target, name)]
        raise BadInput(f"target: {', '.join(wrong)} as written to, not as exposed under this grant", field="target")


def check_lent(request: BlockWrite, lender: Lender, blocks: Sequence[int]) -> None:
    """See that what is to be written is there to be copied.

    Raises:
        Bug: other regions than the lender's, another number of blocks, or an id outside its pool. All are ours.
    """
    owned = {region.id: region for region in lender.regions}
    for region in request.target.regions:
        if owned.get(region.id) != region:
            raise Bug(f"regions: {region} is not the lender's, which has {', '.join(sorted(owned))}", field="regions")
    if len(blocks) != request.num_blocks:
        raise Bug(f"blocks: {len(blocks)}, wanted {request.num_blocks} as the request says", field="blocks")
    if not all(0 <= block < lender.num_blocks for block in blocks):
        raise Bug(f"blocks: an id outside [0, {lender.num_blocks})", field="blocks")
