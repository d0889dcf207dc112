"""Reading YAML that a person wrote, within bounds: neither deep nesting nor aliases, which can stand for anything."""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from isthmus.core.errors import BadInput
from isthmus.core.files import read_at_most
from isthmus.core.limits import YAML_BYTES_MAX, YAML_DEPTH_MAX

__all__ = ["check_bounds", "read_yaml"]


def read_yaml(path: Path, kind: Any, *, hint: str, field: str) -> Any:
    """A YAML file as `kind`.

    Args:
        hint: what to give instead, for the error about `field`.

    Raises:
        BadInput: it cannot be read, is too large or too deep, uses aliases, or is no such thing.
    """
    try:
        data = read_at_most(path, YAML_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', error)}; {hint}", field=field) from None
    try:
        check_bounds(path, data, field=field)
        return msgspec.yaml.decode(data, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: {error}; {hint}", field=field) from None


def check_bounds(path: Path, data: bytes, *, field: str) -> None:
    """Walk the events, which takes no stack, before anything is built of them. Raises BadInput, yaml.YAMLError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(data, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"{path}: uses an alias (*{event.anchor}); write it out", field=field)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > YAML_DEPTH_MAX:
            raise BadInput(f"{path}: nested deeper than {YAML_DEPTH_MAX}", field=field)
