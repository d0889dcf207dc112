"""Where a worker may say that it is reached. Nobody chooses whom others connect to.

Peers connect to the addresses of the registry, so a worker that registers could send them anywhere inside the network
(a request forged by the server). It may name the address that it connects to us from, and what the deployment's file
says of its pool; no other. Always on.
"""

import ipaddress

from isthmus.core.errors import NotAuthorised
from isthmus.core.ids import WorkerId
from isthmus.serve.config import ServeConfig
from isthmus.serve.messages import Member
from isthmus.serve.tls import is_loopback
from isthmus.transport.base import ShmEndpoint, TcpEndpoint

__all__ = ["Addresses"]


class Addresses:
    """The hosts that the file names, by worker."""

    def __init__(self, config: ServeConfig) -> None:
        self._named = {
            worker: frozenset(host for host in (pool.host, pool.advertised_host) if host)
            for worker, pool in config.workers()
        }

    def check(self, member: Member, remote_host: str) -> None:
        """Raise NotAuthorised where a member that connects from `remote_host` leads its peers to somebody else."""
        hosts = {"member.host": member.host}
        for index, endpoint in enumerate(member.endpoints):
            field = f"member.endpoints[{index}]"
            if isinstance(endpoint, TcpEndpoint):
                hosts[f"{field}.host"] = endpoint.host
                if (endpoint.peer.worker, endpoint.peer.incarnation) != (member.worker, member.incarnation):
                    raise NotAuthorised(f"{field}.peer: is not {member.worker} of this incarnation", field=field)
            if isinstance(endpoint, ShmEndpoint) and endpoint.pid != member.process.pid:
                raise NotAuthorised(
                    f"{field}.pid: {endpoint.pid}, but the worker's is {member.process.pid}", field=f"{field}.pid"
                )
        named = self._named.get(WorkerId(member.worker), frozenset())
        for field, host in hosts.items():
            if host not in named and not _same_host(host, remote_host):
                raise NotAuthorised(
                    f"{field}: {host!r} is neither the address that {member.worker} connects from, {remote_host}, nor "
                    "named for its pool in the deployment's file (host, advertised_host)",
                    field=field,
                )


def _same_host(host: str, remote_host: str) -> bool:
    if is_loopback(host) and is_loopback(remote_host):
        return True
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address(remote_host)
    except ValueError:
        return False  # a name leads wherever its server says
