"""A prefill worker's ways into its consumers' memory: by the transport that one has registered, as long as it lives."""

from isthmus.core.ids import Incarnation, WorkerId
from isthmus.serve.worker.membership import Membership
from isthmus.serve.worker.process import Process
from isthmus.transport.base import Endpoint, Writer, transport_name
from isthmus.transport.select import Route, choose
from isthmus.transport.table import open_writers

__all__ = ["WriteRoutes"]


class WriteRoutes:
    """Where consumers are comes from the gateway's word, by life and transport; they name no address."""

    def __init__(self, process: Process) -> None:
        self._membership: Membership = process.membership
        self._writers = open_writers(process.pool.transports, process.transport)
        self._used: dict[tuple[WorkerId, Incarnation], set[Endpoint]] = {}
        self._membership.on_fenced(self._forget)

    def route(self, worker: WorkerId, incarnation: Incarnation, transport: str) -> Route[Writer]:
        """Raises PeerLost where it is no member, Unsupported where that transport does not lead there."""
        route = choose(self._membership.find(worker, incarnation).imports, self._writers, (transport,))
        self._used.setdefault((worker, incarnation), set()).add(route.endpoint)
        return route

    async def _forget(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A dead consumer's connections are not kept."""
        for endpoint in self._used.pop((worker, incarnation), set()):
            self._writers[transport_name(endpoint)].forget(endpoint)

    async def close(self) -> None:
        for writer in self._writers.values():
            await writer.close()
