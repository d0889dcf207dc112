"""What `isthmus check` and `isthmus describe` take: launch lines, description files, and fleets of them."""

import json

import msgspec

from fuzz.files import file_of
from isthmus.core.errors import BadInput, NotCovered, UnknownModel, Unsupported
from isthmus.engines.launch.describe import describe, describe_line
from isthmus.engines.launch.fleet import check_fleet

REFUSALS = (BadInput, UnknownModel, Unsupported, NotCovered)
LINES = (
    "vllm serve Qwen/Qwen3-32B --kv-cache-dtype fp8 -tp 4 @mi300x",
    "vllm serve meta-llama/Llama-3.1-8B --block-size 32 @h100",
)


def seeds() -> list[bytes]:
    found = describe(LINES[0])
    fleet = json.dumps({"a": LINES[0], "b": LINES[1]})
    return [*(b"L" + line.encode() for line in LINES), b"J" + msgspec.json.encode(found), b"F" + fleet.encode()]


def parse(data: bytes) -> None:
    """The first byte says what the rest is."""
    kind, rest = data[:1], data[1:]
    if kind == b"J":
        describe(str(file_of(rest, "side.json")))
    elif kind == b"Y":
        describe(str(file_of(rest, "side.yaml")))
    elif kind == b"F":
        check_fleet(file_of(rest, "fleet.yaml"))
    else:
        text = rest.decode("utf-8", "surrogateescape")
        # A line may name files of its own, which are the user's to name; a fuzzer's are not.
        if "/" not in text.replace("Qwen/", "").replace("meta-llama/", "") and "config" not in text:
            describe_line(text) if "@" in text else None
