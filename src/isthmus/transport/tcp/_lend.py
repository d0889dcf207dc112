"""Blocks out of a lender onto a connection: a chunk is copied, in a thread, while the one before is on its way."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from isthmus.core.limits import TCP_CHUNK_BYTES
from isthmus.core.waiting import settle
from isthmus.state.fields import RegionShape
from isthmus.transport.base import Lender
from isthmus.transport.blocks import chunks_of
from isthmus.transport.tcp._stream import Stream

__all__ = ["send_blocks"]


async def send_blocks(
    stream: Stream,
    lender: Lender,
    regions: Sequence[RegionShape],
    blocks: Sequence[int],
    threads: Executor,
    still_ours: Callable[[Sequence[int]], None] | None = None,
) -> None:
    """Send each region's [outer, blocks, block_bytes]. However it ends, no thread reads the lender afterwards.

    `still_ours` is asked of the blocks of each chunk after it was copied and before it is sent, and raises where the
    grant has ended meanwhile: what was copied may be another's by then (I7).
    """
    loop = asyncio.get_running_loop()
    largest = max(TCP_CHUNK_BYTES, *(region.block_bytes for region in regions))
    largest = min(largest, max(region.size_bytes(len(blocks)) for region in regions))
    buffers = (memoryview(bytearray(largest)), memoryview(bytearray(largest)))
    ready: bytes | memoryview = b""
    chunks = ((region, chunk) for region in regions for chunk in chunks_of(region, len(blocks), TCP_CHUNK_BYTES))
    for number, (region, chunk) in enumerate(chunks):
        buffer = buffers[number % 2][: chunk.stop - chunk.start]
        ids = blocks[chunk.block_start : chunk.block_stop]
        copying = loop.run_in_executor(threads, functools.partial(lender.copy_out, region.id, chunk.outer, ids, buffer))
        try:
            if ready:
                await stream.send(ready)
        finally:
            await settle(copying)
        copying.result()
        if still_ours is not None:
            still_ours(ids)
        ready = buffer
    await stream.send(ready)
