"""A small certificate authority in a folder, for development and for fleets that have none: `isthmus certs`.

    ca.pem, ca.key            the authority; its key belongs on one machine and within no worker's reach
    <name>.pem, <name>.key    one worker's, or the gateway's, whose name is `gateway`

Elliptic curve P-256; keys are readable by their owner only, and nothing is overwritten unless that is asked for. There
is no revocation: certificates are short-lived instead. An organisation that has a CA uses that, and gives certificates
the names of `transport/tls.py`. Needs the `cryptography` package, which using certificates does not.
"""

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from isthmus.core.clock import Clock
from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.core.files import read_at_most
from isthmus.core.ids import TenantId, WorkerId
from isthmus.core.limits import CERTIFICATE_BYTES_MAX
from isthmus.transport.tls import SCHEME, tenant_uri, worker_uri

__all__ = ["Certificate", "create_authority", "issue", "read_folder"]

AUTHORITY = "ca"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
CLOCK_SKEW = datetime.timedelta(minutes=5)  # how far behind a peer's clock may be
DAYS_MAX = 3650


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a file of the folder holds, for people. The authority has the name `ca`."""

    file: str
    name: str
    uris: tuple[str, ...]
    not_before: str
    not_after: str
    valid_now: bool
    sha256: str


def create_authority(folder: Path, deployment: str, clock: Clock, *, days: int, force: bool = False) -> Certificate:
    """A new CA. Raises BadInput; ConfigInvalid where there is one already or the folder cannot be written."""
    _check_name(deployment, "deployment")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"isthmus {deployment}")
    made = (
        _begin(subject, subject, key.public_key(), clock, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_names([SCHEME + deployment]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _store(folder, AUTHORITY, made, key, clock, force=force)


def issue(
    folder: Path,
    worker: WorkerId,
    clock: Clock,
    *,
    tenants: Sequence[TenantId] = (),
    days: int,
    force: bool = False,
) -> Certificate:
    """A certificate for one worker, for both ends of a connection. Raises as `create_authority`."""
    _check_name(worker, "worker")
    if worker == AUTHORITY:
        raise BadInput("worker: 'ca' is the authority's own name; choose another", field="worker")
    for tenant in tenants:
        if not tenant:
            raise BadInput("tenant: got '', wanted a name", field="tenant")
    authority, signer = _read(folder / f"{AUTHORITY}.pem"), _read_key(folder / f"{AUTHORITY}.key")
    deployment = _uris(authority)[0].removeprefix(SCHEME)
    key = ec.generate_private_key(ec.SECP256R1())
    uris = [worker_uri(deployment, worker), *(tenant_uri(deployment, tenant) for tenant in tenants)]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        _begin(_subject(worker), authority.subject, key.public_key(), clock, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(_names(uris), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _store(folder, worker, made, key, clock, force=force)


def read_folder(folder: Path, clock: Clock) -> list[Certificate]:
    """Every certificate of a folder, by name. Raises ConfigInvalid where there is none, or one that is none."""
    found = [_described(path, _read(path), clock) for path in sorted(folder.glob("*.pem"))]
    if not found:
        raise ConfigInvalid(f"{folder}: no certificates; `isthmus certs init {folder}` makes a CA", field="folder")
    return found


def _check_name(name: str, field: str) -> None:
    if not NAME.match(name):
        raise BadInput(f"{field}: got {name!r}, wanted a-z, 0-9, '.', '_' and '-', at most 63", field=field)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _names(uris: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [""]
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, clock: Clock, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= DAYS_MAX:
        raise BadInput(f"days: got {days}, wanted 1 to {DAYS_MAX}", field="days")
    now = _now(clock)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _now(clock: Clock) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(clock.unix_seconds(), datetime.UTC)


def _store(
    folder: Path,
    name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    clock: Clock,
    *,
    force: bool,
) -> Certificate:
    """Key first: a certificate is never there without its key."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    paths = folder / f"{name}.key", folder / f"{name}.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = [str(path) for path in paths if path.exists()]
        if there and not force:
            raise ConfigInvalid(f"{', '.join(there)}: exists; --force replaces it", field="folder")
        for path, content, mode in ((paths[0], private, 0o600), (paths[1], public, 0o644)):
            _write_new(path, content, mode)
    except OSError as error:
        raise ConfigInvalid(f"{folder}: {error.strerror}", field="folder") from None
    return _described(paths[1], certificate, clock)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """The file was never readable by others, not even for a moment, and is there whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _read_bounded(path: Path) -> bytes:
    try:
        return read_at_most(path, CERTIFICATE_BYTES_MAX)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}; `isthmus certs init` makes a CA", field="folder") from None


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read_bounded(path))
    except ValueError as error:
        raise ConfigInvalid(f"{path}: no certificate: {error}", field="folder") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read_bounded(path), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{path}: no private key: {error}", field="folder") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigInvalid(f"{path}: not a key of an elliptic curve", field="folder")
    return key


def _described(path: Path, certificate: x509.Certificate, clock: Clock) -> Certificate:
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Certificate(
        file=str(path),
        name=path.stem,
        uris=tuple(_uris(certificate)),
        not_before=starts.isoformat(),
        not_after=ends.isoformat(),
        valid_now=starts <= _now(clock) <= ends,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )
