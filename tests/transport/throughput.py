"""How fast bytes arrive, against one NumPy copy in the same run:  python -m tests.transport.throughput [MiB]

The owner is a process of its own. Staging is warm (its pages exist), and so is the mapping after the first read. GB/s
is bytes delivered; a copy reads and writes each, so its memory traffic is twice that.
"""

import asyncio
import statistics
import sys

import numpy as np

from isthmus.core.clock import SystemClock
from isthmus.core.units import MIB
from isthmus.transport.shm import ShmReader
from isthmus.transport.tcp import TcpReader
from tests.transport.conftest import OwnerProcess
from tests.transport.worlds import CONSUMER, SOON, image, pool, request, shape, staging

ROUNDS = 9
GRIDS = {"outer 60 x 6144 B": (60, 6144), "outer 1 x 368640 B": (1, 368640), "outer 30 x 384 B": (30, 384)}


async def main(size_mib: int) -> None:
    clock, owner = SystemClock(), OwnerProcess()
    readers = {"shm": ShmReader(clock), "tcp": TcpReader(CONSUMER, clock)}
    for title, (outer, block_bytes) in GRIDS.items():
        regions = (shape("tp0.kv", outer, block_bytes),)
        count = max(1, size_mib * MIB // (outer * block_bytes))
        num_blocks = 2 * count
        endpoints = owner.open(1, regions, num_blocks)
        held = pool(1, regions, num_blocks)
        orders = {
            "one run": range(count),
            "scattered": np.random.default_rng(0).permutation(num_blocks)[:count].tolist(),
        }
        for order, blocks in orders.items():
            read = request(regions, blocks, num_blocks)
            into = staging(read)
            target = np.frombuffer(into[regions[0].id], np.uint8)
            flat = np.frombuffer(image(held, read)[regions[0].id], np.uint8)
            times: dict[str, list[int]] = {"memcpy": [], "shm": [], "tcp": []}
            first = 0
            for turn in range(ROUNDS + 1):
                for name, found in times.items():
                    start = clock.now()
                    if name == "memcpy":
                        np.copyto(target, flat)
                    else:
                        await readers[name].read(read, endpoints[name], into, SOON)
                    if turn:
                        found.append(clock.now() - start)
                    elif name == "shm":
                        first = clock.now() - start
                    target[:: 1 << 20] = 0
            assert flat.tobytes()[1:100] == bytes(target[1:100])
            rates = {
                name: f"{read.size_bytes / statistics.median(found):5.2f} ({read.size_bytes / max(found):.2f}"
                f"-{read.size_bytes / min(found):.2f})"
                for name, found in times.items()
            }
            print(
                f"{title:20} {order:10} {read.size_bytes / MIB:6.1f} MiB  GB/s {rates}"
                f"  first shm {read.size_bytes / first:.2f}"
            )
    for reader in readers.values():
        await reader.close()
    owner.kill()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 64))
