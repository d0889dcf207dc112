"""Accelerators by the names that people type (`data/accelerators.yaml`)."""

import difflib
from functools import cache

from isthmus.catalogue.data_files import read_data
from isthmus.core.errors import BadInput
from isthmus.state.structs import WireStruct

__all__ = ["Accelerator", "accelerator_named"]


class Accelerator(WireStruct, frozen=True, kw_only=True):
    """A part. `fp8` is the exact e4m3 form that its kernels take, or none; `memory_gbps` is gigabytes a second."""

    source: str
    vendor: str
    arch: str
    fp8: str
    memory_gb: float
    memory_gbps: float
    nic_gbps: float | None = None
    aliases: tuple[str, ...] = ()
    notes: str = ""


@cache
def _all() -> dict[str, tuple[str, Accelerator]]:
    found = read_data("accelerators", Accelerator)
    return {alias.lower(): (name, part) for name, part in found.items() for alias in (name, *part.aliases)}


def accelerator_named(name: str) -> tuple[str, Accelerator]:
    """A part and its name in the catalogue, by any of its names.

    Raises:
        BadInput: there is none, with the nearest that there are.
    """
    parts = _all()
    if name.lower() not in parts:
        near = difflib.get_close_matches(name.lower(), parts, n=3, cutoff=0.4)
        known = f"nearest known: {', '.join(near)}" if near else f"known: {', '.join(sorted(parts)[:12])} …"
        raise BadInput(f"accelerator: {name!r} is not in the catalogue; {known}", field="accelerator")
    return parts[name.lower()]
