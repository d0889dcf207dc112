"""Faults of processes and of the ways between them: when, whose, and what follows in a real deployment.

A worker that has ended is noticed, fenced and started again; one that is silent for long is fenced, whether it has
ended or not; one that was fenced and finds out ends itself. What is here is the world, not the protocol.
"""

from typing import TYPE_CHECKING

from isthmus.core.units import Duration
from isthmus.lab.seeds.mix import PROCESS_FAULTS, Fault

if TYPE_CHECKING:
    from isthmus.lab.seeds.worker import Worker
    from isthmus.lab.seeds.world import World

__all__ = ["Faults"]

CALLBACKS_PER_LIFE = 300
"""About so many run in the life of a worker: where a fuse is set."""


class Faults:
    """Those of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = world.chance.fork()
        self._over = False

    def schedule(self) -> None:
        """Each fault of the mix at a moment of its own."""
        mix, loop = self._world.mix, self._world.loop
        for fault in PROCESS_FAULTS:
            for _ in range(int(mix.rate(fault))):
                loop.call_in(int(mix.faulty.ns * self._chance.share()), self._strike, fault)

    def end(self) -> None:
        """No more of them."""
        self._over = True

    def _strike(self, fault: Fault) -> None:
        world = self._world
        alive = [worker for worker in world.alive() if not worker.process.stopped and not worker.fenced]
        if self._over or not alive:
            return
        worker = self._chance.pick(alive)
        other = self._chance.pick([*(each for each in alive if each is not worker), world.gateway])
        world.transcript.fault(fault, worker.name, other.life[0])
        match fault:
            case Fault.CRASH:
                self._crash(worker)
            case Fault.CRASH_AT_AWAIT:
                worker.process.on_fuse = lambda: self._crash(worker)
                worker.process.fuse = 1 + self._chance.below(CALLBACKS_PER_LIFE)
            case Fault.PAUSE:
                self._pause(worker)
            case Fault.CLOCK_JUMP:
                worker.clock.jump(world.mix.lease * self._chance.between(0.1, 3))
            case Fault.SUSPECT:
                self._suspect(worker)
            case Fault.BREAK_LINK:
                world.network.sever(worker, other)
            case Fault.PARTITION:
                for ends in ((worker, other), (other, worker)):
                    world.network.cut(ends[0].life[0], ends[1].life[0], self._a_while())
            case Fault.PARTITION_ONE_WAY:
                ends = (worker, other) if self._chance.happens(0.5) else (other, worker)
                world.network.cut(ends[0].life[0], ends[1].life[0], self._a_while())
            case Fault.CANCEL:
                asks = [ask for ask in world.gateway.asks if not ask.answered]
                if asks:
                    world.gateway.cancel(self._chance.pick(asks))

    def _crash(self, worker: "Worker") -> None:
        """It ends, is started again, and is noticed to have ended: in either order of these."""
        world = self._world
        if worker.process.dead:
            return
        world.kill(worker)
        world.loop.call_in_of(world.loop.world, self._a_while().ns, self._noticed, worker)
        world.loop.call_in_of(world.loop.world, self._a_while().ns, world.restart, worker)

    def _noticed(self, worker: "Worker") -> None:
        if not self._over:
            self._world.gateway.exited(worker)

    def _pause(self, worker: "Worker") -> None:
        """As SIGSTOP, for longer than the lease in part of the cases, and then fenced in part of these."""
        world = self._world
        duration = self._a_while()
        world.loop.stop_process(worker.process)
        world.loop.call_in(duration.ns, self._thaw, worker)
        if self._chance.happens(0.5):
            world.loop.call_in(int(duration.ns * self._chance.between(0.2, 1.2)), self._silent, worker)

    def _silent(self, worker: "Worker") -> None:
        if not self._over and not worker.process.dead:
            self._suspect(worker)

    def _thaw(self, worker: "Worker") -> None:
        self._world.transcript.note(worker.name, "goes on")
        self._world.loop.go_on(worker.process)

    def _suspect(self, worker: "Worker") -> None:
        """Declared over while it lives. It finds out, ends itself some time later, and comes back as another life."""
        world = self._world
        world.gateway.fence(worker, "silent for too long")
        world.loop.call_in(self._a_while().ns, self._leave, worker)

    def _leave(self, worker: "Worker") -> None:
        if worker.process.stopped or self._over:
            return  # it has not found out, being stopped; the healing ends it
        self._crash(worker)

    def _a_while(self) -> Duration:
        return self._world.mix.lease * self._chance.pick((0.05, 0.3, 0.8, 1.5, 3))
