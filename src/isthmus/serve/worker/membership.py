"""Who the gateway says is a member, and who is fenced. The only place where a peer's address comes from."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from isthmus.core.errors import Bug, PeerLost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.serve.messages import Fenced, Member, Members
from isthmus.serve.running import report_bug
from isthmus.serve.worker.exits import Exits

__all__ = ["Membership"]

log = structlog.get_logger(__name__)

OnLost = Callable[[WorkerId, Incarnation], Awaitable[None]]


class Membership:
    """Members by name, as last announced. Listeners are told of each life that is over."""

    def __init__(self) -> None:
        self._members: dict[WorkerId, Member] = {}
        self._changed = asyncio.Event()
        self._listeners: list[OnLost] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._exit_listeners: list[OnLost] = []
        self._exits = Exits(lambda worker, life: self._tell_all(self._exit_listeners, worker, life))

    def on_fenced(self, listener: OnLost) -> None:
        """Call `listener` for each life of a worker that is declared over."""
        self._listeners.append(listener)

    def on_exited(self, listener: OnLost) -> None:
        """Call `listener` for each life that was ever a member while we were, once its process of this host is gone.

        Fenced or not, before or after: a process that is only stopped is fenced, and still holds its mappings.
        """
        self._exit_listeners.append(listener)

    def update(self, members: Members) -> None:
        """Take the gateway's word for who is there."""
        self._members = {WorkerId(member.worker): member for member in members.members}
        self._changed.set()
        self._changed = asyncio.Event()
        for member in members.members if self._exit_listeners else ():
            self._exits.watch(member)

    def fenced(self, message: Fenced) -> None:
        """A life is over: forget it, and tell."""
        worker, incarnation = WorkerId(message.worker), Incarnation(message.incarnation)
        member = self._members.get(worker)
        if member is not None and member.incarnation == incarnation:
            del self._members[worker]
        self._tell_all(self._listeners, worker, incarnation)

    def _tell_all(self, listeners: list[OnLost], worker: WorkerId, incarnation: Incarnation) -> None:
        for listener in listeners:
            task = asyncio.create_task(_tell(listener, worker, incarnation))
            self._telling.add(task)
            task.add_done_callback(self._told)

    def _told(self, task: "asyncio.Task[None]") -> None:
        self._telling.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Bug):
            report_bug(error)
        elif error is not None:
            log.error("fence_listener_failed", exc_info=error)

    def find(self, worker: WorkerId, incarnation: Incarnation) -> Member:
        """This life of this worker. Raises PeerLost where it is not, or is no more, a member."""
        member = self._members.get(worker)
        if member is None or member.incarnation != incarnation:
            raise PeerLost(f"{worker}: this incarnation is not a member", field="worker")
        return member

    async def wait_for(self, worker: WorkerId, incarnation: Incarnation) -> Member:
        """As `find`, but wait: a peer's greeting may overtake the gateway's announcement of it."""
        while True:
            try:
                return self.find(worker, incarnation)
            except PeerLost:
                await self._changed.wait()


async def _tell(listener: OnLost, worker: WorkerId, incarnation: Incarnation) -> None:
    await listener(worker, incarnation)
