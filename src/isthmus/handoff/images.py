"""The shape of what crosses: an image of the producer's pool, with just the blocks of the tokens that cross."""

from isthmus.core.units import BlockCount, ByteCount, blocks_for
from isthmus.state.fields import RegionShape
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["blocks_between", "image_bytes", "regions_of"]


def regions_of(representation: KVRepresentation) -> tuple[RegionShape, ...]:
    """All regions of all groups and shards, in the order that images and pools use."""
    return tuple(region for shards in representation.address() for shard in shards for region in shard.regions)


def blocks_between(start: int, stop: int, block_size: int) -> BlockCount:
    """How many blocks hold the tokens [start, stop): whole ones, from the one that token `start` lies in."""
    return BlockCount(blocks_for(stop, block_size) - start // block_size)


def image_bytes(representation: KVRepresentation, start: int, stop: int) -> ByteCount:
    """What an image of the tokens [start, stop) takes."""
    return ByteCount(
        sum(
            region.size_bytes(blocks_between(start, stop, group.block_size))
            for group, shards in zip(representation.groups, representation.address(), strict=True)
            for shard in shards
            for region in shard.regions
        )
    )
