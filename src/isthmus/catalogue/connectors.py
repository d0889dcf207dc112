"""What each known connector compares, converts and lets through (`data/connectors.yaml`).

Each step names its source. How steps are applied to two sides: `portability/connectors`.
"""

from functools import cache
from typing import Literal

import msgspec

from isthmus.catalogue.conditions import Condition
from isthmus.catalogue.data_files import read_data
from isthmus.core.errors import Bug
from isthmus.state.structs import WireStruct

__all__ = ["Connector", "ConnectorStep", "StepOutcome", "connectors"]

StepOutcome = Literal["harmless", "converts", "refuses", "crashes", "corrupts silently"]


class ConnectorStep(WireStruct, frozen=True, kw_only=True):
    """One step. It matches where one of `differ` differs (or none is named) and all of `when` holds.

    `converts` and `harmless` cover what they name in `differ`; the others end the transfer, and decide.
    """

    outcome: StepOutcome
    why: str
    source: str
    differ: frozenset[str] = frozenset()
    when: dict[str, Condition] = msgspec.field(default_factory=dict)


class Connector(WireStruct, frozen=True, kw_only=True):
    """One connector. `joins` are pairs of engines, producer first; `compares` says what it compares at all.

    `steps_of` names the connector whose steps run after its own, where it carries that one's transfers.
    """

    title: str
    version: str
    source: str
    joins: tuple[tuple[str, str], ...]
    compares: str
    steps: tuple[ConnectorStep, ...] = ()
    steps_of: str = ""


@cache
def connectors() -> dict[str, Connector]:
    """All known connectors by name, each with all of its steps.

    Raises:
        Bug: the file does not hold what this reads, or names a connector that it does not hold.
    """
    found = read_data("connectors", Connector)
    for connector in found.values():
        if connector.steps_of and connector.steps_of not in found:
            raise Bug(f"catalogue/data/connectors.yaml: no connector {connector.steps_of!r}", field="steps_of")
    return {
        name: connector
        if not connector.steps_of
        else msgspec.structs.replace(connector, steps=(*connector.steps, *found[connector.steps_of].steps), steps_of="")
        for name, connector in found.items()
    }
