"""A producer as a process of its own: exports pools by shm and tcp. One JSON command a line in, one JSON answer out.

{"do": "open", "seed", "regions": [[name, outer, block_bytes]], "num_blocks", "stall_after": n or null}
{"do": "close"}    {"do": "listening"}    {"do": "reuse", "fill": byte}
"""

import asyncio
import json
import sys
import threading

import msgspec
import numpy as np
import psutil

from isthmus.core.clock import SystemClock
from isthmus.core.ids import Incarnation
from isthmus.transport.base import PeerId
from isthmus.transport.blocks import HostLender
from isthmus.transport.shm import SharedMemory, ShmExporter
from isthmus.transport.tcp import TcpExporter
from tests.transport.worlds import OWNER, FakeGuard, pool, shape


class StallingLender(HostLender):
    """Lends `stall_after` chunks, then says so and never returns."""

    stall_after: int | None = None

    def copy_out(self, region, outer, blocks, into):  # type: ignore[no-untyped-def]
        if self.stall_after is not None:
            if self.stall_after == 0:
                print(json.dumps({"stalled": True}), flush=True)
                threading.Event().wait()
            self.stall_after -= 1
        super().copy_out(region, outer, blocks, into)


class World:
    def __init__(self, command: dict) -> None:
        clock = SystemClock()
        regions = tuple(shape(*region) for region in command["regions"])
        self.memory = SharedMemory(clock)
        held = pool(command["seed"], regions, command["num_blocks"])
        self.views = {}
        for region in regions:
            view = self.memory.allocate(region.size_bytes(command["num_blocks"]))
            np.frombuffer(view, np.uint8)[:] = held[region.id].reshape(-1)
            self.views[region.id] = view
        lender = StallingLender(regions, command["num_blocks"], self.views)
        lender.stall_after = command.get("stall_after")
        identity = PeerId(worker=OWNER.worker, incarnation=Incarnation(clock.token()))
        self.exporters = [ShmExporter(self.memory, lender), TcpExporter(identity, lender, FakeGuard(), clock)]

    async def start(self) -> list:
        return [await exporter.start() for exporter in self.exporters]

    async def close(self) -> None:
        for exporter in self.exporters:
            await exporter.close()
        self.memory.close()


async def main() -> None:
    world: World | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer: object = "done"
        match command["do"]:
            case "open":
                if world is not None:
                    await world.close()
                world = World(command)
                answer = msgspec.to_builtins(await world.start())
            case "close":
                await world.close()
                world = None
            case "listening":
                found = psutil.Process().net_connections(kind="inet")
                answer = sorted({c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN})
            case "reuse":
                for view in world.views.values():
                    np.frombuffer(view, np.uint8)[:] = command["fill"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
