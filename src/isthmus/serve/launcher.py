"""Starts a whole deployment as child processes of this one, keeps them running, and ends them with it.

Each child dies with its parent (PR_SET_PDEATHSIG), so that nothing is left behind whatever ends the parent.
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import httpx
import structlog

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import Lost
from isthmus.core.ids import WorkerId
from isthmus.core.units import Duration
from isthmus.serve.config import ServeConfig

__all__ = ["Child", "Deployment", "Running", "Spawn", "spawn_command"]

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG = 1
STOP_GRACE = Duration.of_seconds(10)
POLL = Duration.of_ms(100)
RESTART_PAUSE = Duration.of_ms(500)
RESTARTS_MAX, RESTARTS_WITHIN = 8, Duration.of_seconds(120)
REFUSED = 2
"""The status of a process that was given input it cannot work with (`cli.main`)."""


class Running(Protocol):
    """A process that was started here: what `asyncio.subprocess.Process` has of it."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """None while it lives; the negative of a signal's number where one ended it."""
        ...

    async def wait(self) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


class Spawn(Protocol):
    """Starts `isthmus serve ROLE` for a member of the deployment, with its output appended to `log`."""

    async def __call__(self, name: str, arguments: Sequence[str], log: Path) -> Running: ...


async def spawn_command(name: str, arguments: Sequence[str], log: Path) -> Running:
    """A process of its own, by this interpreter."""
    with log.open("ab") as sink:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "isthmus",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            preexec_fn=_die_with(os.getpid()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process of ours, and where its log goes."""

    name: str
    process: Running
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Deployment:
    """A gateway and its workers. Use as an async context manager."""

    def __init__(
        self, config: ServeConfig, config_path: Path, log_folder: Path, clock: Clock, *, spawn: Spawn = spawn_command
    ) -> None:
        self.config = config
        self._spawn = spawn
        self._config_path = config_path
        self._log_folder = log_folder
        self._clock = clock
        self.children: dict[str, Child] = {}

    @property
    def url(self) -> str:
        return f"http://{self.config.gateway.host}:{self.config.gateway.port}"

    async def __aenter__(self) -> Self:
        try:
            await self.start("gateway")
            for worker, _ in self.config.workers():
                await self.start(worker)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, name: str) -> Child:
        """Start the gateway or a worker of the file by its name."""
        pool = dict(self.config.workers()).get(WorkerId(name))
        arguments = ["gateway"] if pool is None else [pool.role, "--name", name]
        self._log_folder.mkdir(parents=True, exist_ok=True)
        path = self._log_folder / f"{name}.log"
        process = await self._spawn(name, ["serve", *arguments, "--config", str(self._config_path)], path)
        self.children[name] = Child(name=name, process=process, log=path)
        return self.children[name]

    async def ready(self, deadline: Duration) -> None:
        """Return once the gateway answers and every worker of the file has registered.

        Raises:
            Lost: a process ended, or the time is up; the message holds the end of its log.
        """
        start = self._clock.now()
        wanted = len(self.config.workers())
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as client:
            while True:
                for child in self.children.values():
                    if child.process.returncode is not None:
                        raise Lost(
                            f"{child.name} ended with status {child.process.returncode}:\n{child.tail()}",
                            field=child.name,
                        )
                if await _worker_count(client) == wanted:
                    return
                if self._clock.now() - start > deadline.ns:
                    missing = "\n".join(f"-- {child.name}\n{child.tail(5)}" for child in self.children.values())
                    raise Lost(f"deployment: not ready within {deadline}\n{missing}", field="deployment")
                await self._clock.sleep(POLL)

    async def keep(self) -> None:
        """Until cancelled: start anew, under its name, whatever ends.

        Raises:
            Lost: one refuses its input, and would again; or it ends so often that starting it does not help.
        """
        keeping = {asyncio.create_task(self._keep(name)) for name in self.children}
        try:
            done, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in keeping:
                task.cancel()

    async def _keep(self, name: str) -> None:
        ends: deque[Instant] = deque(maxlen=RESTARTS_MAX)
        while True:
            child = self.children[name]
            status = await child.process.wait()
            now = self._clock.now()
            often = len(ends) == RESTARTS_MAX and now - ends[0] < RESTARTS_WITHIN.ns
            if status == REFUSED or often:
                why = f"{RESTARTS_MAX} times within {RESTARTS_WITHIN}, at last " if often else ""
                raise Lost(f"{name} ended {why}with status {status}:\n{child.tail()}", field=name)
            ends.append(now)
            log.warning("member_ended", member=name, status=status)
            await self._clock.sleep(RESTART_PAUSE)
            await self.start(name)

    async def stop(self) -> None:
        """End every process that was started here, by its pid, and wait for it."""
        living = [child for child in self.children.values() if child.process.returncode is None]
        for child in living:
            child.process.send_signal(signal.SIGCONT)
            child.process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(child.process.wait()) for child in living]
        if waits:
            _, late = await asyncio.wait(waits, timeout=STOP_GRACE.seconds)
            for child in living:
                if late and child.process.returncode is None:
                    child.process.send_signal(signal.SIGKILL)
            await asyncio.gather(*waits)


async def _worker_count(client: httpx.AsyncClient) -> int:
    try:
        answer = await client.get("/v1/isthmus/workers")
        return len(answer.json()["workers"])
    except (httpx.HTTPError, ValueError, KeyError):
        return 0


def _die_with(parent: int):  # type: ignore[no-untyped-def]
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare
