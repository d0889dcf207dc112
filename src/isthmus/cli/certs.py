"""`isthmus certs`: certificates by which gateway and workers know each other."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from isthmus.core.clock import SystemClock
from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import TenantId, WorkerId

if TYPE_CHECKING:
    from isthmus.serve.certificates import Certificate

__all__ = ["certs"]

certs = App(name="certs", help="A certificate authority in a folder, for TLS between gateway and workers.")

Folder = Annotated[Path, Parameter(help="The folder of the CA and its certificates.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
Force = Annotated[bool, Parameter(name="--force", negative="", help="Replace what is there.")]


@certs.command
def init(
    folder: Folder,
    /,
    *,
    deployment: Annotated[str, Parameter(help="Peers of other deployments are refused.")] = "default",
    days: Annotated[int, Parameter(help="How long the CA is valid.")] = 3650,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Make a CA. Its key signs workers into the deployment: keep it away from them."""
    made = _certificates().create_authority(folder, deployment, SystemClock(), days=days, force=force)
    _show([made], json_=json_)


@certs.command
def issue(
    folder: Folder,
    /,
    *,
    worker: Annotated[list[str], Parameter(help="<pool>-<index>, or `gateway`; may be repeated.")],
    tenant: Annotated[
        list[str] | None, Parameter(help="Whose requests it may handle; may be repeated. None: everybody's.")
    ] = None,
    days: Annotated[int, Parameter(help="How long it is valid. Nothing is revoked before.")] = 90,
    force: Force = False,
    json_: Json = False,
) -> None:
    """Make a certificate and a key for each worker named."""
    module, tenants = _certificates(), [TenantId(name) for name in tenant or ()]
    made = [
        module.issue(folder, WorkerId(name), SystemClock(), tenants=tenants, days=days, force=force) for name in worker
    ]
    _show(made, json_=json_)


@certs.command
def show(folder: Folder, /, *, json_: Json = False) -> int:
    """List a folder's certificates. Exit code 1 where one is not valid now."""
    found = _certificates().read_folder(folder, SystemClock())
    _show(found, json_=json_)
    return 0 if all(one.valid_now for one in found) else 1


def _certificates() -> ModuleType:
    try:
        from isthmus.serve import certificates
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        raise ConfigInvalid(
            "cryptography: not installed, and making certificates needs it: pip install 'isthmus[tls]'",
            field="cryptography",
        ) from None
    return certificates


def _show(found: "Sequence[Certificate]", *, json_: bool) -> None:
    if json_:
        sys.stdout.write(json.dumps({"certificates": [dataclasses.asdict(one) for one in found]}) + "\n")
        return
    for one in found:
        state = "" if one.valid_now else "   NOT VALID NOW"
        sys.stdout.write(f"{one.file}   until {one.not_after[:10]}{state}\n")
        for uri in one.uris:
            sys.stdout.write(f"  {uri}\n")
