"""Watching the processes of other lives on this host: who is certainly gone, with every mapping and socket it had (I8).

    a life's process has ended                                    the kernel says so, by its pidfd
    another life of the same worker is in the very same process   it has become another process image: a worker that
                                                                  finds itself fenced does, and keeps its pid

A worker keeps one life for as long as its process image lasts, so both prove that the old life's image is no more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.limits import PROCESSES_WATCHED_MAX
from isthmus.serve.messages import Member
from isthmus.serve.processes import ended, is_here

__all__ = ["Exits"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    """One life, and the task that awaits its process's end."""

    member: Member
    task: "asyncio.Task[None]"


class Exits:
    """Lives by incarnation, from when they are first seen until they are gone. `on_exit` is told, once each."""

    def __init__(self, on_exit: Callable[[WorkerId, Incarnation], None]) -> None:
        self._on_exit = on_exit
        self._watches: dict[Incarnation, _Watch] = {}

    def watch(self, member: Member) -> None:
        """Begin to watch a life, if its process is of this host. Of too many, the first seen are not watched on."""
        life = Incarnation(member.incarnation)
        if life in self._watches or not is_here(member.process):
            return
        for other in [watch.member for watch in self._watches.values()]:
            if (other.worker, other.process) == (member.worker, member.process):
                self._gone(other)
        self._watches[life] = _Watch(member, asyncio.create_task(self._await_end(member)))
        while len(self._watches) > PROCESSES_WATCHED_MAX:
            self._watches.pop(next(iter(self._watches))).task.cancel()

    async def _await_end(self, member: Member) -> None:
        try:
            await ended(member.process)
        except OSError as error:
            log.warning("process_not_watched", worker=member.worker, pid=member.process.pid, reason=error.strerror)
            return
        self._gone(member)

    def _gone(self, member: Member) -> None:
        watch = self._watches.pop(Incarnation(member.incarnation), None)
        if watch is None:
            return
        if not watch.task.done() and watch.task is not asyncio.current_task():
            watch.task.cancel()
        self._on_exit(WorkerId(member.worker), Incarnation(member.incarnation))
