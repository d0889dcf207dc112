"""A deployment under test: real processes, a client, and what tests do to them."""

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from isthmus.core.clock import SystemClock
from isthmus.core.units import Duration
from isthmus.serve.config import parse_config
from isthmus.serve.launcher import Child, Deployment

__all__ = ["Fleet", "eventually"]

READY_DEADLINE = Duration.of_seconds(90)
POLL = Duration.of_ms(25)
CLOCK = SystemClock()

Found = TypeVar("Found")


async def eventually(look: Callable[[], Awaitable[Found]], what: str, *, seconds: float = 20) -> Found:
    """What `look` finds, asked again and again until it is true-ish. Raises AssertionError when the time is up."""
    start = CLOCK.now()
    while True:
        found = await look()
        if found:
            return found
        if CLOCK.now() - start > seconds * 1e9:
            raise AssertionError(f"not within {seconds} s: {what}; last: {found!r}")
        await CLOCK.sleep(POLL)


class Fleet:
    """One deployment. `async with`; then `heal` before each use."""

    def __init__(self, raw: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "deployment.yaml"
        self.path.write_text(yaml.safe_dump(raw, sort_keys=False))
        self.raw = raw
        self.config = parse_config(raw, where=str(self.path))
        self.deployment = Deployment(self.config, self.path, folder / "logs", CLOCK)
        self.client = httpx.AsyncClient(
            base_url=self.deployment.url, timeout=120, limits=httpx.Limits(max_connections=None)
        )

    async def __aenter__(self) -> "Fleet":
        await self.deployment.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.deployment.__aexit__()

    @property
    def url(self) -> str:
        return self.deployment.url

    @property
    def names(self) -> list[str]:
        return ["gateway", *(worker for worker, _ in self.config.workers())]

    def child(self, name: str) -> Child:
        return self.deployment.children[name]

    def pids(self) -> dict[str, int]:
        """Pids of the processes that live."""
        living = {n: c.pid for n, c in self.deployment.children.items() if c.process.returncode is None}
        return living

    async def heal(self) -> None:
        """Start whatever a test has ended, and wait until all are there."""
        for name in self.names:
            if self.child(name).process.returncode is not None:
                await self.deployment.start(name)
        await self.deployment.ready(READY_DEADLINE)

    async def kill(self, name: str) -> None:
        """`kill -9`, and wait until the process is gone."""
        child = self.child(name)
        os.kill(child.pid, signal.SIGKILL)
        await child.process.wait()

    async def start(self, name: str) -> None:
        """Start it (again) under its name, and wait until it serves."""
        await self.deployment.start(name)
        await self.deployment.ready(READY_DEADLINE)

    async def model(self) -> str:
        return (await self.client.get("/v1/models")).json()["data"][0]["id"]

    async def incarnations(self) -> dict[str, str]:
        """Members by name."""
        workers = (await self.client.get("/v1/isthmus/workers")).json()["workers"]
        return {worker["worker"]: worker["incarnation"] for worker in workers}

    async def ledgers(self) -> dict[str, dict[str, Any]]:
        """Each worker's own word on what it holds."""
        return (await self.client.get("/v1/isthmus/handoffs")).json()["workers"]

    async def phases(self, name: str) -> list[str]:
        """The phases of a worker's live hand-offs."""
        return [row["phase"] for row in (await self.ledgers()).get(name, {}).get("live", [])]

    async def held_blocks(self, *, seconds: float = 10) -> int:
        """Blocks held in all, once nothing is live: the last is freed a moment after the last token."""

        async def quiet() -> dict[str, dict[str, Any]] | None:
            ledgers = await self.ledgers()
            busy = [name for name, ledger in ledgers.items() if "error" in ledger or ledger["live"]]
            return None if busy or not ledgers else ledgers

        try:
            ledgers = await eventually(quiet, "no hand-off is live", seconds=seconds)
        except AssertionError as error:
            live = {name: ledger.get("live", ledger) for name, ledger in (await self.ledgers()).items()}
            raise AssertionError(f"still held after {seconds} s:\n{yaml.safe_dump(live)[:6000]}") from error
        for ledger in ledgers.values():
            assert ledger["blocks"]["free"] + ledger["blocks"]["retained"] == ledger["blocks"]["total"]
            assert ledger["blocks"]["staging_bytes"] == 0
        return sum(ledger["blocks"]["held"] for ledger in ledgers.values())

    def tails(self, lines: int = 25) -> str:
        """The end of every log, for a failure's report."""
        return "\n".join(f"-- {child.name}\n{child.tail(lines)}" for child in self.deployment.children.values())
