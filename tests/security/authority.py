"""Certificates for tests: one CA, some workers of it, and strangers."""

from pathlib import Path

from isthmus.core.clock import SystemClock
from isthmus.core.ids import TenantId, WorkerId
from isthmus.serve.certificates import create_authority, issue
from isthmus.transport.tls import Tls

__all__ = ["CLOCK", "Authority"]

CLOCK = SystemClock()


class Authority:
    """A CA in a folder."""

    def __init__(self, folder: Path, deployment: str = "test") -> None:
        self.folder = folder
        create_authority(folder, deployment, CLOCK, days=2)

    def tls(self, worker: str, *tenants: str, believes: "Authority | None" = None) -> Tls:
        """The contexts of a worker, with a certificate made for it; `believes` has another CA for its peers."""
        if not (self.folder / f"{worker}.pem").exists():
            issue(self.folder, WorkerId(worker), CLOCK, tenants=[TenantId(one) for one in tenants], days=1)
        own = self.folder
        ca = own / "ca.pem"
        tls = Tls(ca=ca, certificate=own / f"{worker}.pem", key=own / f"{worker}.key")
        if believes is not None:
            for context in (tls.server, tls.client):
                context.load_verify_locations(believes.folder / "ca.pem")
        return tls
