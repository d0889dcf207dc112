"""Reading YAML that a person wrote, within bounds: neither deep nesting nor aliases, which can stand for anything."""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from isthmus.core.errors import BadInput
from isthmus.core.files import read_at_most
from isthmus.core.limits import YAML_BYTES_MAX, YAML_DEPTH_MAX, YAML_NODES_MAX

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


def check_bounds(path: Path, data: bytes, *, field: str, aliases: bool = False) -> None:
    """Walk the events, which takes no stack, before anything is built of them. Raises BadInput, yaml.YAMLError.

    `aliases`: they may be used, as long as what they stand for, written out, is not too much.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    anchored: dict[str, int] = {}
    nodes: list[tuple[str | None, int]] = [(None, 0)]  # of each open collection: its anchor, and what is in it
    for event in yaml.parse(data, Loader=loader):
        anchor, size = None, 0
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                raise BadInput(f"{path}: uses an alias (*{event.anchor}); write it out", field=field)
            if event.anchor not in anchored:
                raise BadInput(f"{path}: alias *{event.anchor} stands for nothing before it", field=field)
            size = anchored[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.CollectionStartEvent):
            nodes.append((event.anchor, 1))
            if len(nodes) > YAML_DEPTH_MAX + 1:
                raise BadInput(f"{path}: nested deeper than {YAML_DEPTH_MAX}", field=field)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = nodes.pop()
        if anchor is not None:
            anchored[anchor] = size
        outer, before = nodes[-1]
        nodes[-1] = outer, before + size
        if before + size > YAML_NODES_MAX:
            raise BadInput(f"{path}: more than {YAML_NODES_MAX} values, with aliases written out", field=field)
