"""A pool, lent to transports: its own memory on CPU, copies out of device memory elsewhere."""

from collections.abc import Sequence

import torch

from isthmus.core.errors import NotAuthorised
from isthmus.core.ids import RegionId
from isthmus.engines.embedded.pool import PagedPool
from isthmus.state.fields import RegionShape
from isthmus.transport.base import Lender
from isthmus.transport.blocks import HostLender

__all__ = ["DeviceLender", "lender_of"]


class DeviceLender:
    """Lends regions that lie on a device: each copy gathers there, and comes to the host in one piece."""

    def __init__(self, pool: PagedPool) -> None:
        self._pool = pool
        self._views = {
            region.id: region.data.view(region.shape.outer, pool.num_blocks, region.shape.block_bytes)
            for region in pool.regions
        }

    @property
    def regions(self) -> tuple[RegionShape, ...]:
        return tuple(region.shape for region in self._pool.regions)

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    def copy_out(self, region: RegionId, outer: range, blocks: Sequence[int], into: memoryview) -> None:
        """As `Lender.copy_out`."""
        view = self._views[region]
        if not all(0 <= block < self._pool.num_blocks for block in blocks) or outer.stop > view.shape[0]:
            raise NotAuthorised(f"blocks: outside region {region}", field="blocks")
        index = torch.tensor(list(blocks), dtype=torch.int64, device=view.device)
        found = view[outer.start : outer.stop].index_select(1, index)
        torch.frombuffer(into, dtype=torch.uint8).view(found.shape).copy_(found)


def lender_of(pool: PagedPool) -> Lender:
    """The lender that fits where the pool lies."""
    if pool.device.type != "cpu":
        return DeviceLender(pool)
    return HostLender(
        tuple(region.shape for region in pool.regions),
        pool.num_blocks,
        {region.id: region.data.numpy().data for region in pool.regions},
    )
