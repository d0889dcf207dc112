"""Interior: how the tokens and elements of one head's page are arranged, where a token's elements are not one row.

    row               tokens and elements as the layout says
    x_packed:X        K [D/X, N, X], V [D, N]                (vLLM paged attention, ROCM_ATTN)
    shuffled:X        K [D/X, N, X], V [N/X, D, X]           (AITER; SGLang vectorized_5d)
    nz:X              [D/X, N, X]                            (Ascend FRACTAL_NZ)
    isa_packed:vec    K [D, N], V [N, D]                     (vLLM CPU attention; vec16 is the same bytes)
    isa_packed:amx    K [N/16, D/2, 16, 2], V [D/16, N/2, 16, 2]
    conv_sd:T         convolution state as [T taps, channels of all sections], not [channels, taps]
    opaque:NAME       something that nobody has described: equal to itself alone

N is tokens of a page, D elements of a head. All but `row`, `conv_sd` and `opaque` are a `Tile`: an order of digits of
the token and the element, so they need a layout in which a head's page is contiguous (..HNC, or H outside).
"""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from isthmus.state.structs import require

__all__ = ["Interior", "Tile", "TileDigit", "interior_kind", "interior_number", "tile_of"]

Interior = Annotated[
    str,
    Meta(pattern=r"^(row|(x_packed|shuffled|nz|conv_sd):[0-9]{1,4}|isa_packed:(vec|vec16|amx)|opaque:[\w.+-]{1,64})\Z"),
]


@dataclass(frozen=True, slots=True)
class TileDigit:
    """The digit (index // divisor) % extent of the token (`N`) or of the element (`D`)."""

    axis: str
    divisor: int
    extent: int


Tile = tuple[TileDigit, ...]
"""Digits, outermost first."""


def interior_kind(interior: str) -> str:
    """The interior's name without its number."""
    return interior.partition(":")[0]


def interior_number(interior: str) -> int:
    """The number after the colon. Raises ValueError where there is none."""
    return int(interior.partition(":")[2])


def tile_of(interior: str, component: str, block_size: int, count: int) -> Tile:
    """The order of digits within a head's page.

    Raises:
        ValueError: the page does not divide into the interior's units.
    """
    is_value = component == "value"
    kind = interior_kind(interior)
    if kind == "isa_packed":
        return _isa_tile(interior, block_size, count, is_value=is_value)
    unit = interior_number(interior)
    require(unit >= 1, "interior", interior, "a number of at least 1 after the colon")
    if kind == "x_packed" and is_value:
        return (TileDigit("D", 1, count), TileDigit("N", 1, block_size))
    if kind == "shuffled" and is_value:
        require(block_size % unit == 0, "block_size", block_size, f"a multiple of {unit} for interior {interior}")
        return (TileDigit("N", unit, block_size // unit), TileDigit("D", 1, count), TileDigit("N", 1, unit))
    require(count % unit == 0, "interior", interior, f"a divisor of the {count} elements of {component}")
    return (TileDigit("D", unit, count // unit), TileDigit("N", 1, block_size), TileDigit("D", 1, unit))


def _isa_tile(interior: str, block_size: int, count: int, *, is_value: bool) -> Tile:
    """What vLLM's CPU attention packs, by instruction set."""
    if interior in ("isa_packed:vec", "isa_packed:vec16"):
        tokens, elements = TileDigit("N", 1, block_size), TileDigit("D", 1, count)
        return (tokens, elements) if is_value else (elements, tokens)
    require(interior == "isa_packed:amx", "interior", interior, "isa_packed:vec, isa_packed:vec16 or isa_packed:amx")
    require(block_size % 16 == 0 and count % 16 == 0, "block_size", block_size, "tokens and elements in sixteens")
    lanes, pairs = ("D", "N") if is_value else ("N", "D")
    extents = {"N": block_size, "D": count}
    return (
        TileDigit(lanes, 16, extents[lanes] // 16),
        TileDigit(pairs, 2, extents[pairs] // 2),
        TileDigit(lanes, 1, 16),
        TileDigit(pairs, 1, 2),
    )
