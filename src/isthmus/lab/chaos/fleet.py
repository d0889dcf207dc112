"""The deployment, kept alive: whatever ends is started again under its name and port, as an operator's manager would.

Every end is written down with its cause. One that nobody ordered, and that is not a fenced worker's own, is a crash.
"""

import asyncio
import enum
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.units import Duration
from isthmus.lab.chaos.member import FENCED_STATUS
from isthmus.lab.chaos.shapes import Shape
from isthmus.serve.launcher import Child, Deployment, Spawn

__all__ = ["Cause", "Death", "Fleet", "Freeze"]

WATCH_EVERY = Duration.of_ms(100)
READY_WITHIN = Duration.of_seconds(60)
ANSWER_WITHIN_SECONDS = 3.0


class Cause(enum.StrEnum):
    """Why a process ended."""

    KILLED = "killed"
    FENCED = "fenced"
    CRASHED = "crashed"
    STOPPED = "stopped"


@dataclass(slots=True, kw_only=True)
class Death:
    """One end of one process. `recovered`: when another life of that name was a member, or a gateway ready, again."""

    name: str
    pid: int
    incarnation: str
    at: Instant
    cause: Cause
    status: int
    recovered: Instant | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A process was stopped for so long; a frozen worker frees nothing, and a frozen gateway answers nobody."""

    name: str
    began: Instant
    ended: Instant


@dataclass(slots=True)
class _Member:
    """What the driver has done to one member."""

    killed: bool = False
    frozen: bool = False
    incarnation: str = ""
    watching: "asyncio.Task[None] | None" = None
    unrecovered: list[Death] = field(default_factory=list)


class Fleet:
    """A deployment of members that `spawn` starts. Use as an async context manager."""

    def __init__(self, shape: Shape, spawn: Spawn, log_folder: Path, clock: Clock) -> None:
        self.names = shape.names
        self.config = shape.config
        self.deployment = Deployment(shape.config, shape.path, log_folder, clock, spawn=spawn)
        self.deaths: list[Death] = []
        self.freezes: list[Freeze] = []
        self.quarantined_max = 0
        self._clock = clock
        self._members = {name: _Member() for name in shape.names}
        self._ending = False
        self._client = httpx.AsyncClient(base_url=self.deployment.url, timeout=ANSWER_WITHIN_SECONDS)
        self._poll: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.deployment.__aenter__()
        await self.deployment.ready(READY_WITHIN)
        for name, member in self._members.items():
            member.watching = asyncio.create_task(self._keep(name, member))
        self._poll = asyncio.create_task(self._watch_members())
        await self.until_whole(READY_WITHIN)
        return self

    async def __aexit__(self, *_: object) -> None:
        """A clean end of all."""
        self._ending = True
        if self._poll is not None:
            self._poll.cancel()
        await self.deployment.stop()
        watching = {member.watching for member in self._members.values() if member.watching is not None}
        if watching:
            await asyncio.wait(watching)
        await self._client.aclose()

    # faults

    def lives(self, name: str) -> bool:
        """Whether it runs, and its present life is a member (or the gateway answers)."""
        child, member = self.deployment.children[name], self._members[name]
        return child.process.returncode is None and not member.unrecovered

    @property
    def killed(self) -> int:
        """How many processes a SIGKILL of ours has ended."""
        return sum(death.cause is Cause.KILLED for death in self.deaths)

    def frozen(self, name: str) -> bool:
        return self._members[name].frozen

    def kill(self, name: str) -> bool:
        """SIGKILL. False where nothing of that name runs now."""
        child, member = self.deployment.children[name], self._members[name]
        if child.process.returncode is not None or member.killed:
            return False
        member.killed = True
        child.process.send_signal(signal.SIGKILL)
        return True

    async def freeze(self, name: str, duration: Duration) -> bool:
        """SIGSTOP, and SIGCONT to the same process after `duration`. False where nothing of that name runs now."""
        child, member = self.deployment.children[name], self._members[name]
        if child.process.returncode is not None or member.frozen or member.killed:
            return False
        member.frozen, began = True, self._clock.now()
        child.process.send_signal(signal.SIGSTOP)
        try:
            await self._clock.sleep(duration)
        finally:
            child.process.send_signal(signal.SIGCONT)
            member.frozen = False
            self.freezes.append(Freeze(name=name, began=began, ended=self._clock.now()))
        return True

    # watching

    async def until_whole(self, deadline: Duration) -> None:
        """Return once every member runs and is a member. Raises DeadlineExceeded."""
        start = self._clock.now()
        while not all(self.lives(name) and self._members[name].incarnation for name in self.names if name != "gateway"):
            if self._clock.now() - start > deadline.ns:
                missing = [name for name in self.names if not self.lives(name)]
                raise DeadlineExceeded(f"fleet: not whole within {deadline}: {missing}", field="fleet")
            await self._clock.sleep(WATCH_EVERY)

    async def ledgers(self) -> dict[str, Any]:
        """Each worker's own word on what it holds."""
        answer = await self._client.get("/v1/isthmus/handoffs")
        found = answer.json()["workers"]
        return found if isinstance(found, dict) else {}

    async def _keep(self, name: str, member: _Member) -> None:
        """Await each end, write it down, start it anew."""
        while True:
            child = self.deployment.children[name]
            status = await child.process.wait()
            at = self._clock.now()
            cause = self._cause(member, status)
            death = Death(name=name, pid=child.pid, incarnation=member.incarnation, at=at, cause=cause, status=status)
            if cause is Cause.CRASHED:
                death.tail = child.tail(40)
            self.deaths.append(death)
            if self._ending:
                return
            member.killed, member.incarnation = False, ""
            member.unrecovered.append(death)
            await self.deployment.start(name)

    def _cause(self, member: _Member, status: int) -> Cause:
        if member.killed and status == -signal.SIGKILL:
            return Cause.KILLED
        if status == FENCED_STATUS:
            return Cause.FENCED
        return Cause.STOPPED if self._ending and status == 0 else Cause.CRASHED

    async def _watch_members(self) -> None:
        """Ask the gateway who is a member, several times a second, to see who has recovered when."""
        while True:
            await self._clock.sleep(WATCH_EVERY)
            try:
                workers = (await self._client.get("/v1/isthmus/workers")).json()["workers"]
            except (httpx.HTTPError, ValueError, KeyError):
                continue
            now = self._clock.now()
            for worker in workers:
                self._seen(worker["worker"], worker["incarnation"], worker["pid"], now)
                self.quarantined_max = max(self.quarantined_max, worker["blocks"].get("quarantined_max", 0))
            if {worker["role"] for worker in workers} == {"prefill", "decode"}:
                self._recover(self._members["gateway"], now)

    def _seen(self, name: str, incarnation: str, pid: int, now: Instant) -> None:
        child: Child = self.deployment.children[name]
        member = self._members[name]
        if child.pid == pid and child.process.returncode is None:
            member.incarnation = incarnation
            self._recover(member, now)

    def _recover(self, member: _Member, now: Instant) -> None:
        for death in member.unrecovered:
            death.recovered = now
        member.unrecovered.clear()
