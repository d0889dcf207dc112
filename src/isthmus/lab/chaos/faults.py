"""Which fault comes next: drawn from the seed, within the numbers that were asked for, two at a time now and then."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any

from isthmus.core.clock import Clock, after
from isthmus.core.units import Duration
from isthmus.lab.chaos.chance import Chance
from isthmus.lab.chaos.fleet import Fleet
from isthmus.lab.chaos.partitions import Network, Partition, Silence
from isthmus.lab.chaos.proxy import FaultProxy, LinkFault

__all__ = ["Faults"]

GATEWAY_SHARE, DOUBLE_SHARE, LINK_SHARE, PARTITION_SHARE = 0.07, 0.12, 0.5, 0.35
STOP_SHORTEST, PARTITION_SHORTEST = Duration.of_ms(100), Duration.of_ms(50)
LONGEST_LEASES = 4
LINK_SHORTEST, LINK_LONGEST = Duration.of_ms(50), Duration.of_ms(2_500)
RETRY = Duration.of_ms(20)
REAPED = Duration.of_ms(500)


class Faults:
    """Deals `sigkills` and `sigstops` over `duration`, with link faults and, on a `network`, partitions between."""

    def __init__(
        self,
        fleet: Fleet,
        links: Mapping[str, FaultProxy],
        network: Network | None,
        chance: Chance,
        clock: Clock,
        *,
        lease: Duration,
    ) -> None:
        self._fleet = fleet
        self._links = links
        self._network = network
        self._chance = chance
        self._clock = clock
        self._longest = lease * LONGEST_LEASES
        self._lasting: set[asyncio.Task[object]] = set()
        self._failed: list[BaseException] = []
        self._parted: set[str] = set()
        self.dealt: Counter[str] = Counter()
        self.silences: list[Silence] = []

    async def deal(self, *, sigkills: int, sigstops: int, duration: Duration) -> None:
        """Returns when the time is up, the last has been dealt, and it has passed. What lasts ends with this."""
        try:
            await self._deal(sigkills, sigstops, duration)
            if self._lasting:
                await asyncio.wait(self._lasting)
        finally:
            for fault in self._lasting:
                fault.cancel()
            if self._lasting:
                await asyncio.wait(self._lasting)
        if self._failed:
            raise self._failed[0]

    async def _deal(self, sigkills: int, sigstops: int, duration: Duration) -> None:
        end = after(self._clock.now(), duration)
        left = {"sigkill": sigkills, "sigstop": sigstops}
        pause = duration / max(1, sigkills + sigstops)
        while any(left.values()) or await self._missed(sigkills, left):
            start = self._clock.now()
            await self._one(left)
            if self._chance.happens(DOUBLE_SHARE) and any(left.values()):
                self.dealt["double"] += 1
                await self._one(left)
            if self._links and self._chance.happens(LINK_SHARE):
                self._link_fault()
            if self._network is not None and self._chance.happens(PARTITION_SHARE):
                self._partition(self._network)
            spent = Duration(self._clock.now() - start)
            if spent < pause:
                await self._clock.sleep(Duration(pause.ns - spent.ns))
        await self._clock.sleep(Duration(max(0, end - self._clock.now())))

    async def _missed(self, sigkills: int, left: dict[str, int]) -> bool:
        """A SIGKILL may meet a process that is just ending by itself: then it has killed nobody, and another is due."""
        await self._clock.sleep(REAPED)
        left["sigkill"] = max(0, sigkills - self._fleet.killed)
        return left["sigkill"] > 0

    async def _one(self, left: dict[str, int]) -> None:
        kind = self._chance.pick([kind for kind, count in left.items() for _ in range(count)])
        left[kind] -= 1
        if kind == "sigkill":
            await self._kill()
        else:
            await self._stop()

    async def _kill(self) -> None:
        while True:
            name = self._victim()
            if self._fleet.lives(name) and self._fleet.kill(name):
                break
            await self._clock.sleep(RETRY)
        self.dealt["sigkill"] += 1
        self.dealt[f"sigkill.{_role(name)}"] += 1

    async def _stop(self) -> None:
        duration = self._chance.duration(STOP_SHORTEST, self._longest)
        while True:
            name = self._victim()
            if self._fleet.lives(name) and not self._fleet.frozen(name):
                break
            await self._clock.sleep(RETRY)
        self.dealt["sigstop"] += 1
        self.dealt[f"sigstop.{_role(name)}"] += 1
        self._last(self._fleet.freeze(name, duration))

    def _victim(self) -> str:
        if self._chance.happens(GATEWAY_SHARE):
            return "gateway"
        return self._chance.pick([name for name in self._fleet.names if name != "gateway"])

    def _link_fault(self) -> None:
        name, fault = self._chance.pick(sorted(self._links)), self._chance.pick(list(LinkFault))
        self.dealt[f"link.{fault}"] += 1
        self._last(self._harm(self._links[name], fault, self._chance.duration(LINK_SHORTEST, LINK_LONGEST)))

    async def _harm(self, link: FaultProxy, fault: LinkFault, duration: Duration) -> None:
        link.suffer(fault)
        await self._clock.sleep(duration)
        link.heal()

    def _partition(self, network: Network) -> None:
        """One at a time for each member; where all have one, none."""
        whole = [name for name in network.names if name not in self._parted]
        if not whole:
            return
        name, partition = self._chance.pick(whole), self._chance.pick(list(Partition))
        self.dealt[f"partition.{partition}"] += 1
        self._parted.add(name)
        self._last(self._part(network, name, partition, self._chance.duration(PARTITION_SHORTEST, self._longest)))

    async def _part(self, network: Network, name: str, partition: Partition, duration: Duration) -> None:
        began = self._clock.now()
        network.part(name, partition, self._fleet.config.gateway.control_port)
        try:
            await self._clock.sleep(duration)
        finally:
            network.heal(name)
            self._parted.discard(name)
            self.silences.append(Silence(name=name, partition=partition, began=began, ended=self._clock.now()))

    def _last(self, fault: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(fault)
        self._lasting.add(task)
        task.add_done_callback(self._passed)

    def _passed(self, fault: asyncio.Task[object]) -> None:
        self._lasting.discard(fault)
        error = None if fault.cancelled() else fault.exception()
        if error is not None:
            self._failed.append(error)


def _role(name: str) -> str:
    return name.partition("-")[0]
