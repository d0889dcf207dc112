"""The shape of what crosses: an image of the producer's pool, with just the blocks of the tokens that cross.

Its parts are what each rank has of each layer group (`KVRepresentation.parts`).
"""

import operator

from isthmus.core.units import BlockCount, ByteCount
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["image_blocks", "image_bytes"]


def image_blocks(representation: KVRepresentation, start: int, stop: int) -> tuple[BlockCount, ...]:
    """How many whole blocks of each group hold what must be there of the tokens [start, stop); as a manifest has it."""
    ranks = representation.partition.dcp_size
    return tuple([group.blocks_of(start, stop, ranks) for group in representation.groups])


def image_bytes(representation: KVRepresentation, start: int, stop: int) -> ByteCount:
    """What an image of the tokens [start, stop) takes."""
    blocks = image_blocks(representation, start, stop)
    return ByteCount(sum(map(operator.mul, blocks, representation.block_bytes)))
