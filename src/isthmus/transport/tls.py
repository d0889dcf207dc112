"""Who is at the other end, proven: TLS 1.3 with a certificate on both sides, each naming one worker.

    spiffe://isthmus/<deployment>/worker/<name>       whom a certificate is for; the gateway's name is `gateway`
    spiffe://isthmus/<deployment>/tenant/<tenant>     whose requests it may handle; none named means everybody's

A peer still says its name in its first frame, because a name has an incarnation, which no certificate has; what it says
must be what it proves. Addresses prove nothing, so host names are not looked at. Standard library only.

Refuses to know how certificates are made and where they lie: `serve/tls.py`.
"""

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from isthmus.core.errors import ConfigInvalid, NotAuthorised
from isthmus.core.ids import TenantId, WorkerId

__all__ = ["HANDSHAKE_FAILED", "Connection", "Proof", "Tls", "names_of", "tenant_uri", "worker_uri"]

SCHEME = "spiffe://isthmus/"
HANDSHAKE_FAILED = "the TLS handshake failed; both ends must use TLS, with certificates of one CA"


class Connection(Protocol):
    """An asyncio transport or stream writer."""

    def get_extra_info(self, name: str, default: object = None) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a certificate says. No tenants: it is not restricted to any."""

    deployment: str
    worker: WorkerId
    tenants: frozenset[TenantId] = frozenset()

    def check_tenant(self, tenant: TenantId) -> None:
        """Raise NotAuthorised where the certificate is for other tenants (I7)."""
        if self.tenants and tenant not in self.tenants:
            raise NotAuthorised(
                f"tenant: the certificate of {self.worker} does not cover {tenant!r}; issue one with --tenant",
                field="tenant",
            )


def worker_uri(deployment: str, worker: str) -> str:
    return f"{SCHEME}{quote(deployment, safe='')}/worker/{quote(worker, safe='')}"


def tenant_uri(deployment: str, tenant: str) -> str:
    return f"{SCHEME}{quote(deployment, safe='')}/tenant/{quote(tenant, safe='')}"


def names_of(uris: list[str]) -> Proof:
    """What the URIs of a certificate say. Raises NotAuthorised where they do not name one worker of one deployment."""
    deployments, workers, tenants = set(), [], set()
    for uri in uris:
        parts = [unquote(part) for part in uri.removeprefix(SCHEME).split("/")]
        if not uri.startswith(SCHEME) or len(parts) != 3 or not all(parts):
            raise NotAuthorised(f"certificate: {uri[:200]!r} is no name of Isthmus", field="certificate")
        deployment, kind, name = parts
        deployments.add(deployment)
        if kind == "worker":
            workers.append(WorkerId(name))
        elif kind == "tenant":
            tenants.add(TenantId(name))
        else:
            raise NotAuthorised(f"certificate: {uri[:200]!r} is of an unknown kind", field="certificate")
    if len(deployments) != 1 or len(workers) != 1:
        raise NotAuthorised(
            f"certificate: names {len(workers)} workers of {len(deployments)} deployments, wanted one",
            field="certificate",
        )
    return Proof(deployment=deployments.pop(), worker=workers[0], tenants=frozenset(tenants))


class Tls:
    """One process's certificate, and the CA whose certificates it believes."""

    def __init__(self, *, ca: Path, certificate: Path, key: Path) -> None:
        """Raises ConfigInvalid naming the file that cannot be used."""
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, ca, certificate, key)
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, ca, certificate, key)
        self.own = _shake_hands(self.server, self.client, certificate)

    def peer(self, connection: Connection) -> Proof:
        """What the peer has proven. Raises NotAuthorised where that is nothing, or of another deployment."""
        end = connection.get_extra_info("ssl_object")
        if not isinstance(end, ssl.SSLObject):
            raise NotAuthorised("certificate: the connection is not TLS", field="certificate")
        proof = _proof_in(end)
        if proof.deployment != self.own.deployment:
            raise NotAuthorised(
                f"certificate: of deployment {proof.deployment!r}, this is {self.own.deployment!r}", field="certificate"
            )
        return proof

    def check_name(self, connection: Connection, claimed: str) -> Proof:
        """The peer's proof, where it is of the name that it claims. Raises NotAuthorised."""
        proof = self.peer(connection)
        if proof.worker != claimed:
            raise NotAuthorised(
                f"certificate: is for {proof.worker!r}, the peer says that it is {claimed[:200]!r}", field="certificate"
            )
        return proof


def _proof_in(end: ssl.SSLObject) -> Proof:
    """What the certificate of the other end says. It has been verified: it is signed by the CA and in its time."""
    names = (end.getpeercert() or {}).get("subjectAltName", ())
    return names_of([str(pair[1]) for pair in names if pair[0] == "URI"])


def _context(side: int, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a worker is a name, wherever it listens; `check_name` looks at that
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"tls.ca: {ca}: {_said(error)}", field="tls.ca") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"tls.certificate, tls.key: {certificate}, {key}: {_said(error)}", field="tls.certificate"
        ) from None
    return context


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted; a process that starts by itself cannot be asked for a password")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, certificate: Path) -> Proof:
    """Both ends of a connection with ourselves, in memory: shows that peers will believe us, and as whom."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = server.wrap_bio(to_server, to_client, server_side=True)
    near = client.wrap_bio(to_client, to_server)
    try:
        for end in (near, far, near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return _proof_in(near)
    except (ssl.SSLError, ValueError, NotAuthorised) as error:
        raise ConfigInvalid(f"tls.certificate: {certificate}: {error}", field="tls.certificate") from None
