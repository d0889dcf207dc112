"""What today's connectors compare, convert and pass over (`data/connectors.yaml`)."""

from functools import cache
from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.catalogue.conditions import Condition
from isthmus.catalogue.data_files import read_data
from isthmus.state.structs import WireStruct

__all__ = ["TERMINAL", "Connector", "Step", "all_connectors"]

TERMINAL = ("refuses", "crashes", "corrupts silently")


class Step(WireStruct, frozen=True, kw_only=True):
    """What a connector does where one of `differ` differs and all of `when` holds.

    A terminal outcome decides. `converts` and `harmless` take care of those differences, and the next step follows.
    """

    outcome: Annotated[str, Meta(pattern=r"^(converts|harmless|refuses|crashes|corrupts silently)\Z")]
    why: str
    source: str = ""
    differ: tuple[str, ...] = ()
    when: dict[str, Condition] = msgspec.field(default_factory=dict)


class Connector(WireStruct, frozen=True, kw_only=True):
    """A connector: which engines it joins, what it compares, and its steps in its own order.

    `delegates` names a connector that does the work of this one.
    """

    title: str
    version: str
    source: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    compares: str
    steps: tuple[Step, ...] = ()
    delegates: str = ""


@cache
def all_connectors() -> dict[str, Connector]:
    """All connectors by name, in the order of the file."""
    return read_data("connectors", Connector)
