"""The shape of what crosses: an image of the producer's pool, with just the blocks of the tokens that cross.

Its parts are what each rank has of each layer group.
"""

from isthmus.core.units import BlockCount, ByteCount, blocks_for
from isthmus.state.fields import RegionShape
from isthmus.state.identity import TokenRange
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["image_blocks", "image_bytes", "parts_of", "regions_of"]


def regions_of(representation: KVRepresentation) -> tuple[RegionShape, ...]:
    """All regions of all groups and shards, in the order that images and pools use."""
    return tuple(region for shards in representation.address() for shard in shards for region in shard.regions)


def parts_of(representation: KVRepresentation) -> tuple[tuple[int, tuple[RegionShape, ...]], ...]:
    """Each part of a hand-off that is read: its layer group, and its regions. In the order of `regions_of`."""
    return tuple(
        (group, tuple(shard.regions)) for group, shards in enumerate(representation.address()) for shard in shards
    )


def image_blocks(representation: KVRepresentation, start: int, stop: int) -> tuple[BlockCount, ...]:
    """How many whole blocks of each group hold what must be there of the tokens [start, stop); as a manifest has it."""
    tokens, ranks = TokenRange(start=start, stop=stop), representation.partition.dcp_size
    found = []
    for group in representation.groups:
        rows, span = group.held(tokens), group.block_size * ranks
        found.append(BlockCount(blocks_for(rows.stop, span) - rows.start // span))
    return tuple(found)


def image_bytes(representation: KVRepresentation, start: int, stop: int) -> ByteCount:
    """What an image of the tokens [start, stop) takes."""
    blocks = image_blocks(representation, start, stop)
    return ByteCount(
        sum(
            region.size_bytes(count)
            for count, shards in zip(blocks, representation.address(), strict=True)
            for shard in shards
            for region in shard.regions
        )
    )
