"""A payload of the durable index. A checksum that does not hold is made to, so that what is behind it is parsed."""

import tempfile
from pathlib import Path

import xxhash

from fuzz.files import file_of
from isthmus.ownership.index_file import FileHeader, FileKey, Torn, read_file, write_file

REFUSALS = (Torn,)
CHECKSUM_BYTES = 16


def seeds() -> list[bytes]:
    key = FileKey(prefix=b"p", tenant=b"t", identity=b"i", representation=b"r")
    header = FileHeader(key=key, payload_bytes=7, logical_digest=1, recompute_ms=1.0)
    with tempfile.TemporaryDirectory() as name:
        write_file(Path(name), header, b"payload")
        return [next(Path(name).glob("*.kv")).read_bytes()]


def parse(data: bytes) -> None:
    for content in (data, data[:-CHECKSUM_BYTES] + xxhash.xxh3_128_digest(data[:-CHECKSUM_BYTES])):
        try:
            read_file(file_of(content, "x.kv"))
        except Torn:
            continue
