"""The file that describes a deployment."""

from pathlib import Path

from fuzz.files import file_of
from isthmus.core.errors import ConfigInvalid
from isthmus.serve.config import load_config

REFUSALS = (ConfigInvalid,)
EXAMPLES = Path(__file__).parents[2] / "examples"


def seeds() -> list[bytes]:
    return [(EXAMPLES / "local.yaml").read_bytes(), b"tls: insecure\npools:\n  - {name: a, role: prefill}\n"]


def parse(data: bytes) -> None:
    load_config(file_of(data, "deployment.yaml"))
