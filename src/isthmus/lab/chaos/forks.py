"""The driver's half of the fork server: `Forks.spawner` gives a `serve.launcher.Spawn`."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from isthmus.core.errors import Lost
from isthmus.serve.launcher import Spawn

__all__ = ["Forked", "Forks"]


class Forked:
    """One forked member: a `serve.launcher.Running`. Signals go to its handle, never to a pid used again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = -1  # ended already; its status is on its way

    async def wait(self) -> int:
        await self._ended.wait()
        return self.returncode or 0

    def send_signal(self, number: int, /) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, number)

    def end(self, status: int) -> None:
        """The zygote has reaped it."""
        self.returncode = status
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
        self._ended.set()


class Forks:
    """A running zygote, good for any number of deployments. Use as an async context manager."""

    def __init__(self, program: str = "isthmus.lab.chaos.zygote") -> None:
        """`program`: the module that forks; another one than ours may fork members that are broken on purpose."""
        self._program = program
        self._asked: dict[int, asyncio.Future[Forked]] = {}
        self._living: dict[int, Forked] = {}
        self._next_id = 0
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        # One thread for each library: what they start at import would be lost in the fork.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._hearing = asyncio.create_task(self._hear())
        waits = [asyncio.create_task(self._ready.wait()), self._hearing]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.is_set():
            raise Lost("zygote: ended before it was ready", field="zygote")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        await asyncio.wait({self._hearing})

    def spawner(
        self, environment: Mapping[str, Mapping[str, str]], namespace: Callable[[str], Path] | None = None
    ) -> Spawn:
        """For one deployment; `environment` is each member's own, by its name, as is the network `namespace`."""

        async def spawn(name: str, arguments: Sequence[str], log: Path) -> Forked:
            network = "" if namespace is None else str(namespace(name))
            return await self._fork(name, Path(arguments[-1]), log, environment.get(name, {}), network)

        return spawn

    async def _fork(self, name: str, config: Path, log: Path, environment: Mapping[str, str], network: str) -> Forked:
        self._next_id += 1
        order = {
            "id": self._next_id,
            "name": name,
            "config": str(config),
            "log": str(log),
            "environment": dict(environment),
            "network": network,
        }
        answer: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
        self._asked[self._next_id] = answer
        if self._process.stdin is None:
            raise Lost("zygote: has no stdin", field="zygote")
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await answer

    async def _hear(self) -> None:
        if self._process.stdout is None:
            return
        async for line in self._process.stdout:
            self._take(json.loads(line))

    def _take(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            self._ready.set()
        elif "id" in said:
            forked = Forked(said["pid"])
            self._living[forked.pid] = forked
            self._asked.pop(said["id"]).set_result(forked)
        else:
            ended = self._living.pop(said["pid"], None)
            if ended is not None:
                ended.end(said["status"])
