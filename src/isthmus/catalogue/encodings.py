"""Encodings and MLA rows by the names that engines' rules use (`data/encodings.yaml`, `data/rows.yaml`)."""

from functools import cache

from isthmus.catalogue.data_files import read_data
from isthmus.core.errors import Bug
from isthmus.state.encoding import Encoding
from isthmus.state.structs import WireStruct

__all__ = ["NamedRow", "RowComponent", "encoding_named", "row_named"]


class RowComponent(WireStruct, frozen=True, kw_only=True):
    """A component of a row: `count` elements, of a named encoding or of one that is spelt out."""

    name: str
    count: int
    encoding: str | Encoding
    offset: int | None = None

    def stored(self) -> Encoding:
        return encoding_named(self.encoding) if isinstance(self.encoding, str) else self.encoding


class NamedRow(WireStruct, frozen=True, kw_only=True):
    """A row of an MLA or indexer cache: bytes a token, and its fields. `block_align` rounds a page up."""

    source: str
    row_bytes: int
    components: tuple[RowComponent, ...]
    block_align: int = 1
    kv_order: str = "packed_c"
    interior: str = ""


@cache
def _encodings() -> dict[str, Encoding]:
    return read_data("encodings", Encoding)


@cache
def encoding_named(name: str) -> Encoding:
    """An encoding by its name in the catalogue. Raises Bug where a rule names one that is not there."""
    found = _encodings().get(name)
    if found is None:
        raise Bug(f"catalogue/data/encodings.yaml: no {name!r}, which a rule names", field=name)
    return found


@cache
def row_named(name: str) -> NamedRow:
    """A row by its name in the catalogue. Raises Bug where a rule names one that is not there."""
    found = read_data("rows", NamedRow).get(name)
    if found is None:
        raise Bug(f"catalogue/data/rows.yaml: no {name!r}, which a rule names", field=name)
    return found
