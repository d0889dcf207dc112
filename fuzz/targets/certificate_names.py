"""The names in a peer's certificate. OpenSSL has parsed the rest."""

from isthmus.core.errors import NotAuthorised
from isthmus.transport.tls import names_of, tenant_uri, worker_uri

REFUSALS = (NotAuthorised,)


def seeds() -> list[bytes]:
    return [f"{worker_uri('d', 'prefill-0')}\n{tenant_uri('d', 'a/b')}".encode()]


def parse(data: bytes) -> None:
    proof = names_of(data.decode("utf-8", "replace").split("\n"))
    if not proof.worker or not proof.deployment:
        raise ValueError("a certificate of nobody was let through")
