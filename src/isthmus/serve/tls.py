"""Which certificate a process of `serve` uses, and where it must have one.

Off by default on loopback, where the machine's own users are the boundary. Required as soon as workers listen for each
other, or the gateway for workers, on any other address; `tls: insecure` is the only way around, and says what it is.
"""

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import WorkerId
from isthmus.transport.tls import Tls

__all__ = ["GATEWAY", "TlsConfig", "TlsSetting", "is_loopback", "load_tls"]

GATEWAY = WorkerId("gateway")
"""The gateway's name in its certificate. No worker has it: theirs end in a number."""


class TlsConfig(BaseModel):
    """Files in PEM. `{name}` in `certificate` and `key` is the worker's name, or `gateway`, so that one file of a
    deployment does for all its processes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path
    certificate: Path
    key: Path


TlsSetting = TlsConfig | Literal["insecure"] | None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what listens on `host`. A name other than localhost is not believed."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_tls(setting: TlsSetting, name: WorkerId) -> Tls | None:
    """The contexts of the process that is `name`; None where TLS is off.

    Raises:
        ConfigInvalid: a file cannot be used, or the certificate is another's.
    """
    if not isinstance(setting, TlsConfig):
        return None
    ca, certificate, key = (
        Path(str(path).replace("{name}", name)).expanduser() for path in (setting.ca, setting.certificate, setting.key)
    )
    tls = Tls(ca=ca, certificate=certificate, key=key)
    if tls.own.worker != name:
        raise ConfigInvalid(
            f"tls.certificate: {certificate} is for {tls.own.worker!r}, wanted one for {name!r}: "
            f"isthmus certs issue {certificate.parent} --worker {name}",
            field="tls.certificate",
        )
    return tls
