"""A producer as a process of its own that writes. One JSON command a line in, one JSON answer a line out.

{"do": "write", "transport", "request", "endpoint", "seed", "num_blocks", "blocks", "stall_after": n or null}
"""

import asyncio
import json
import sys

import msgspec

from isthmus.core.clock import SystemClock
from isthmus.core.errors import IsthmusError
from isthmus.transport.base import BlockWrite, Endpoint
from isthmus.transport.table import Worker, open_writers
from tests.transport.owner import StallingLender
from tests.transport.worlds import OWNER, SOON, pool


async def main() -> None:
    clock = SystemClock()
    writers = open_writers(("shm", "tcp"), Worker(identity=OWNER, clock=clock))
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        request = msgspec.convert(command["request"], BlockWrite)
        endpoint = msgspec.convert(command["endpoint"], Endpoint)
        held = pool(command["seed"], request.target.regions, command["num_blocks"])
        buffers = {name: memoryview(array.reshape(-1)) for name, array in held.items()}
        lent = StallingLender(request.target.regions, command["num_blocks"], buffers)
        lent.stall_after = command["stall_after"]
        try:
            size = await writers[command["transport"]].write(request, endpoint, lent, command["blocks"], SOON)
            print(json.dumps({"written": size}), flush=True)
        except IsthmusError as error:
            print(json.dumps({"error": error.code}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
