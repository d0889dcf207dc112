"""One seed, from its draw to its verdict: a time of faults, then a healed time, then nothing may be left."""

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from isthmus.core.clock import Chance
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.ids import WorkerId
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.decode import Consumer
from isthmus.lab.seeds.engine import image_bytes
from isthmus.lab.seeds.faults import Faults
from isthmus.lab.seeds.gateway import ATTEMPT_LEASES, ATTEMPTS_MAX, Gateway
from isthmus.lab.seeds.loop import Process, VirtualLoop
from isthmus.lab.seeds.mix import Mix, Prompt, draw_mix
from isthmus.lab.seeds.network import Network
from isthmus.lab.seeds.paper import answer
from isthmus.lab.seeds.prefill import Producer
from isthmus.lab.seeds.transcript import Transcript
from isthmus.lab.seeds.watch import Watch
from isthmus.lab.seeds.worker import Common, Kinds, Worker
from isthmus.transport.memory import MemoryHub

__all__ = ["Outcome", "World", "run_seed"]

ANSWER_LEASES = (ATTEMPTS_MAX + 1) * (ATTEMPT_LEASES + 4)
DRAIN_LEASES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one seed. `violations` is empty where all holds."""

    seed: int
    violations: tuple[str, ...]
    faults: Mapping[str, int]
    virtual_seconds: float
    callbacks: int
    handoffs: int
    installs: int
    answered: int
    refused: int
    transcript: Transcript


class World:
    """The processes of one seed, and what happens to them."""

    def __init__(self, seed: int, kinds: Kinds, change: Callable[[Mix], Mix]) -> None:
        chance = Chance(seed)
        self.mix = change(draw_mix(chance.fork()))
        # asyncio asks no more of a loop than what this one has.
        self.loop = VirtualLoop(chance.fork(), self.mix.order)  # type: ignore[abstract]
        self.transcript = Transcript(self.loop)
        self.network = Network(self.loop, chance.fork(), self.mix, self.transcript)
        self.chance = chance.fork()
        self.clock = SkewedClock(self.loop, chance.fork())
        self.common = Common(
            loop=self.loop,
            mix=self.mix,
            network=self.network,
            transcript=self.transcript,
            watch=Watch(self.loop, self.transcript),
            hub=MemoryHub(self.clock),
            exports={},
            imports={},
            kinds=kinds,
        )
        self.gateway = Gateway(self.common, chance.fork())
        self.network.join(self.gateway)
        self.workers: list[Worker] = []
        self.staging_bytes = self._staging_bytes()

    def _staging_bytes(self) -> int:
        return self.mix.images_staged * max(image_bytes(form, self.mix.longest) for form in self.mix.producers)

    # lives

    def start(self, role: str, index: int) -> Worker:
        """A worker's process starts, and registers."""
        name, chance = WorkerId(f"{role}-{index}"), self.chance.fork()
        worker: Worker
        if role == "prefill":
            worker = Producer(self.common, chance, name, self.mix.producers[index])
        else:
            form = self.mix.consumers[index]
            worker = Consumer(self.common, chance, name, form, self.gateway.life, self.staging_bytes)
        self.workers.append(worker)
        self.network.join(worker)
        self.gateway.admit(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        """As SIGKILL: nothing of it runs any more."""
        if worker.process.dead:
            return
        self.loop.kill(worker.process)
        self.transcript.note(worker.name, "is dead", worker.life[1][:8])
        self.common.hub.remove(worker.key)
        self.network.gone(worker.life)

    def restart(self, worker: Worker) -> None:
        """Another life of the same name."""
        if not self.network.healed:
            self.start_again(worker.name)

    def start_again(self, name: WorkerId) -> None:
        if not any(worker.name == name and not worker.process.dead and not worker.fenced for worker in self.workers):
            role, _, index = name.partition("-")
            self.start(role, int(index))

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.process.dead]

    # the run

    async def run(self) -> None:
        """Faults, then none; then every request is answered, and nothing is held."""
        for index in range(len(self.mix.producers)):
            self.start("prefill", index)
        for index in range(len(self.mix.consumers)):
            self.start("decode", index)
        for prompt in self.mix.prompts:
            self.loop.call_in(prompt.arrives.ns, self.gateway.take, prompt)
        faults = Faults(self)
        faults.schedule()
        await self.clock.sleep(self.mix.faulty)
        faults.end()
        await self._heal()
        await self._answers("a request")
        if not self.transcript.violations:
            await self._probe()
            await self._drain()
            self._look()

    async def _heal(self) -> None:
        self.transcript.note("world", "heals")
        self.network.heal()
        for worker in self.alive():
            worker.process.fuse = 0
            if worker.fenced:
                self.kill(worker)
            else:
                self.loop.go_on(worker.process)
        for name in [worker.name for worker in self.workers]:
            self.start_again(name)
        dead = [worker for worker in self.workers if worker.process.dead]
        for worker in dead:
            self.gateway.exited(worker)
        self.gateway.tell_all(dead)

    async def _answers(self, what: str) -> None:
        """I5: within a bound that follows from the attempts."""
        running = [ask.running for ask in self.gateway.asks if ask.running is not None]
        bound = self.mix.lease * ANSWER_LEASES
        try:
            await within(self.clock, bound, _all(running), "answers")
        except DeadlineExceeded:
            self.transcript.violated("I5", f"{what} is not answered within {ANSWER_LEASES} leases of the healing")
        for ask in self.gateway.asks:
            if not ask.answered:
                self.transcript.violated("I5", f"{ask.request_id} is not answered")

    async def _probe(self) -> None:
        """A healed world serves: what fails now is no fault's doing."""
        await self.clock.sleep(self.mix.lease)
        prompt = Prompt(tenant="tenant-0", token_ids=(1, 2, 3), max_tokens=3, arrives=Duration(0))
        ask = self.gateway.take(prompt)
        await self._answers("the probe")
        if ask.error is not None:
            self.transcript.violated("I5", f"the probe of the healed world failed: {ask.error}")

    async def _drain(self) -> None:
        """I8: all is given back within a bounded time."""
        for _ in range(DRAIN_LEASES * 4):
            if not any(worker.leftovers() for worker in self.alive()):
                return
            await self.clock.sleep(self.mix.lease / 4)
        for worker in self.alive():
            if worker.leftovers():
                self.transcript.violated("I8", f"{worker.name} still holds: {worker.leftovers()}; {worker.live()}")

    def _look(self) -> None:
        """What can be said at the end of all."""
        for worker in self.alive():
            worker.ledger.check_in_full()  # I3
        for ask in self.gateway.asks:
            if ask.done and tuple(ask.sent) != answer(ask.prompt.token_ids, ask.prompt.max_tokens):
                self.transcript.violated("I1", f"{ask.request_id}: answered {ask.sent}")

    def processes(self) -> list[Process]:
        return [self.loop.world, self.gateway.process, *(worker.process for worker in self.workers)]

    def unseen(self) -> None:
        """Exceptions that nobody has looked at. A run that was halted has left some that somebody would have."""
        if self.transcript.violations:
            return
        for problem in self.loop.unhandled:
            self.transcript.violated("unhandled", problem)
        for process in self.processes():
            for task in process.tasks:
                if not process.dead and task.done() and getattr(task, "_log_traceback", False):
                    self.transcript.violated("unhandled", f"{process.name}: {task.exception()!r}")


async def _all(tasks: "list[asyncio.Task[None]]") -> None:
    if tasks:
        await asyncio.wait(tasks)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """The garbage collector may close a generator, which may run its clean-up: at moments that are not the seed's."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _as_drawn(mix: Mix) -> Mix:
    return mix


def run_seed(seed: int, kinds: Kinds | None = None, change: Callable[[Mix], Mix] = _as_drawn) -> Outcome:
    """Run one seed to its end, or to the first rule that it finds broken."""
    with _collector_at_rest():
        world = World(seed, kinds or Kinds(), change)
        try:
            world.loop.run(world.run())
        except Exception as error:  # whatever it is, it is this seed's finding, and the next one runs
            world.transcript.violated(type(error).__name__, str(error))
        world.unseen()
        violations = tuple(world.transcript.violations)
        world.transcript.close()
        world.loop.bury(world.processes())
    asks = world.gateway.asks
    return Outcome(
        seed=seed,
        violations=violations,
        faults=dict(world.transcript.faults),
        virtual_seconds=world.loop.now / 1e9,
        callbacks=world.loop.callbacks,
        handoffs=world.common.watch.handoffs,
        installs=world.common.watch.installs,
        answered=sum(ask.done for ask in asks),
        refused=sum(ask.error is not None for ask in asks),
        transcript=world.transcript,
    )
