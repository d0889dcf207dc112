"""What would happen without Isthmus: two sides and each known connector.

The connectors' own steps, in their own order, on facts of both sides (`catalogue/connectors`). What differs and no step
names passes: the bytes arrive, and are read as something else.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from isthmus.catalogue.conditions import Value, holds
from isthmus.catalogue.connectors import Connector, connectors

__all__ = ["ConnectorOutcome", "without_isthmus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOutcome:
    """A connector by its title, and what it would do.

    `outcome` is works, converts, refuses, crashes, corrupts silently or not applicable. `source` says where that
    was read.
    """

    connector: str
    outcome: str
    why: str
    source: str


_MLA = ("mla", "sliding_window_mla")


def without_isthmus(
    producer: Mapping[str, str | int], consumer: Mapping[str, str | int], differing: Collection[str]
) -> tuple[ConnectorOutcome, ...]:
    """The outcome with each known connector.

    Args:
        producer: facts of that side, as `portability.facts` gives them. `consumer`: the same facts of the other.
        differing: names of the fields in which the two differ, such that it matters.
    """
    facts: dict[str, Value] | None = None
    found = []
    for connector in connectors().values():
        if not _joins(connector, str(producer["engine"]), str(consumer["engine"])):
            found.append(_not_applicable(connector, producer, consumer))
            continue
        if facts is None:
            facts = _facts(producer, consumer)
        found.append(_outcome(connector, facts, frozenset(differing)))
    return tuple(found)


def _joins(connector: Connector, producer: str, consumer: str) -> bool:
    return (producer, consumer) in connector.joins


def _not_applicable(
    connector: Connector, producer: Mapping[str, str | int], consumer: Mapping[str, str | int]
) -> ConnectorOutcome:
    joined = ", ".join(f"{ours} with {theirs}" for ours, theirs in connector.joins)
    return ConnectorOutcome(
        connector=connector.title,
        outcome="not applicable",
        why=f"it joins {joined}; here {producer['engine']} would meet {consumer['engine']}",
        source=connector.source,
    )


def _outcome(connector: Connector, facts: Mapping[str, Value], differing: frozenset[str]) -> ConnectorOutcome:
    """Steps in order. The first that ends the transfer decides; else what is left uncovered does."""
    covered: set[str] = set()
    passed = []
    for step in connector.steps:
        if (step.differ and step.differ.isdisjoint(differing)) or not holds(step.when, facts):
            continue
        if step.outcome in ("harmless", "converts"):
            covered |= step.differ & differing
            passed.append(step)
            continue
        return ConnectorOutcome(connector=connector.title, outcome=str(step.outcome), why=step.why, source=step.source)
    left = sorted(differing - covered)
    if left:
        verb = "differs" if len(left) == 1 else "differ"
        return ConnectorOutcome(
            connector=connector.title,
            outcome="corrupts silently",
            why=f"{', '.join(left)} {verb}, which it does not compare; it compares {connector.compares}",
            source=connector.source,
        )
    converted = [step for step in passed if step.outcome == "converts"]
    if not passed:
        why, source = "nothing differs that matters to it", connector.source
    else:
        shown = converted or passed
        why = "; ".join(dict.fromkeys(step.why for step in shown))
        source = "; ".join(dict.fromkeys(step.source for step in shown))
    return ConnectorOutcome(
        connector=connector.title, outcome="converts" if converted else "works", why=why, source=source
    )


def _facts(producer: Mapping[str, str | int], consumer: Mapping[str, str | int]) -> dict[str, Value]:
    """Facts of both sides as `p.NAME` and `c.NAME`, and what follows from the two together."""
    facts: dict[str, Value] = {f"p.{name}": value for name, value in producer.items()}
    facts |= {f"c.{name}": value for name, value in consumer.items()}
    facts |= {f"same_{name}": _word(value == consumer[name]) for name, value in producer.items()}
    for name in ("block_size", "tp_size", "pp_size", "dcp_size"):
        facts[f"{name.removesuffix('_size')}_ratio"] = _ratio(int(producer[name]), int(consumer[name]))
    for side, own in (("p", producer), ("c", consumer)):
        kinds = str(own["kinds"]).split(",")
        facts[f"{side}.version"] = _version(str(own["engine_version"]))
        facts[f"{side}.mla"] = _word(kinds[0] in _MLA)
        facts[f"{side}.mamba"] = _word("mamba" in kinds)
        facts[f"{side}.gdn"] = _word("gdn" in kinds)
        facts[f"{side}.heads_repeat"] = _word(int(own["tp_size"]) > int(own["num_kv_heads"]))
    rows = int(producer["row_bytes"]) - int(consumer["row_bytes"])
    facts["row_bytes_ratio"] = "equal" if rows == 0 else "producer_larger" if rows > 0 else "consumer_larger"
    facts["blocks_fit"] = _word(_bytes_of(producer, consumer) == _bytes_of(consumer, producer))
    return facts


def _bytes_of(side: Mapping[str, str | int], other: Mapping[str, str | int]) -> int:
    """Bytes of a block in common units: equal on both sides where tokens and heads have the same bytes."""
    return int(side["block_bytes"]) * int(other["block_size"]) * _rank_heads(other)


def _rank_heads(side: Mapping[str, str | int]) -> int:
    """KV heads of one rank. MLA's one row is on all ranks, whole."""
    if str(side["kinds"]).split(",")[0] in _MLA:
        return 1
    return max(1, int(side["num_kv_heads"]) // int(side["tp_size"]))


def _ratio(producer: int, consumer: int) -> str:
    if producer == consumer:
        return "equal"
    if consumer and producer % consumer == 0:
        return "producer_multiple"
    return "consumer_multiple" if producer and consumer % producer == 0 else "neither"


def _version(text: str) -> int:
    """A version as one number: 0.5.23 is 5023, 1.2 is 1002000. 0 where it is none."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return 0 if match is None else int(match[1]) * 1_000_000 + int(match[2]) * 1000 + int(match[3] or 0)


def _word(fact: bool) -> str:
    return "true" if fact else "false"
