"""Reading the catalogue's data files, strictly: an unknown key or a wrong type is a bug of ours."""

from importlib import resources
from typing import TypeVar

import msgspec

from isthmus.core.errors import Bug

__all__ = ["read_data"]

Entry = TypeVar("Entry")


def read_data(name: str, entry: type[Entry]) -> dict[str, Entry]:
    """The entries of `data/<name>.yaml` by name.

    Raises:
        Bug: the file does not hold what its reader takes.
    """
    text = resources.files("isthmus.catalogue").joinpath("data", f"{name}.yaml").read_bytes()
    try:
        return msgspec.yaml.decode(text, type=dict[str, entry])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise Bug(f"catalogue/data/{name}.yaml: {error}", field=name) from error
