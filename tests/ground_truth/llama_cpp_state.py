"""llama.cpp's sequence state (`llama_state_seq_get_data`), taken apart. Little-endian, nothing aligned:

u32 0xaf143cd8, i32 sequence; then one part for each cache (a model with windows has two: full layers, then windows)
part      u32 streams; for each: u32 cells, nothing more where 0
cells     i32 position, u32 sequences (1), i32 sequence               in the order of the cells, not of positions
data      u32 whether V is transposed, u32 layers
K, layer  i32 ggml type, u64 bytes of a row, rows by cell              a row is all heads of a token
V, layer  i32 ggml type, u64 bytes of a row, rows by cell
  or      i32 ggml type, u32 bytes of an element, u32 elements of all heads, for each of them all cells
"""

import struct
from dataclasses import dataclass

import numpy as np

MAGIC = 0xAF143CD8
GGML_TYPES = {0: "f32", 1: "f16", 8: "q8_0", 30: "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """One cache's share: positions by cell, ggml's names of both types, and the bytes of all layers one after another,
    which is a pool with just these cells.
    """

    positions: list[int]
    transposed: bool
    layers: int
    types: dict[str, str]
    regions: dict[str, np.ndarray]


def parse_state(data: bytes) -> list[StatePart]:
    """The parts of a state with one stream. Fails where a byte is left over or missing."""
    reader = _Reader(data)
    assert reader.read("Ii")[0] == MAGIC
    parts = []
    while reader.at < len(data):
        parts.append(_part(reader))
    return parts


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return found

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.data)
        self.at += size
        return self.data[self.at - size : self.at]


def _part(reader: _Reader) -> StatePart:
    streams, cells = reader.read("II")
    assert streams == 1
    positions = []
    for _ in range(cells):
        position, sequences, _ = reader.read("iIi")
        assert sequences == 1
        positions.append(position)
    transposed, layers = reader.read("II")
    types: dict[str, set[str]] = {"key": set(), "value": set()}
    images: dict[str, list[bytes]] = {"key": [], "value": []}
    for name in ("key", "value"):
        for _ in range(layers):
            if name == "value" and transposed:
                kind, element, elements = reader.read("iII")
                size = element * elements
            else:
                kind, size = reader.read("iQ")
            types[name].add(GGML_TYPES[kind])
            images[name].append(reader.take(size * cells))
    return StatePart(
        positions=positions,
        transposed=bool(transposed),
        layers=layers,
        types={name: found.pop() for name, found in types.items() if len(found) == 1},
        regions={name: np.frombuffer(b"".join(image), np.uint8) for name, image in images.items()},
    )


def quantise_q8_0(values: np.ndarray) -> np.ndarray:
    """ggml's q8_0 of f32 [..., n]: uint8 [..., n / 32 * 34], blocks of an f16 scale (nearest) and 32 codes."""
    blocks = values.reshape(*values.shape[:-1], -1, 32).astype(np.float32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    rows = np.concatenate([scale.astype("<f2").view(np.uint8), codes], axis=-1)
    return rows.reshape(*values.shape[:-1], -1)
