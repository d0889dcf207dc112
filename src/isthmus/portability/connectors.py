"""What would happen without Isthmus: each known connector's own steps, on the facts of a pair."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from isthmus.catalogue.conditions import holds
from isthmus.catalogue.connectors import TERMINAL, Connector, all_connectors

__all__ = ["ConnectorOutcome", "without_isthmus"]

Facts = Mapping[str, str | int]
_COMPARED = (
    *("engine_version", "model", "dtype", "num_kv_heads", "head_size", "num_layers", "attn_backend", "kv_cache_dtype"),
    *("element_bytes", "row_bytes", "block_bytes", "num_regions", "kinds", "layout", "storage_dtype", "fields"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOutcome:
    """works, converts, refuses, crashes, corrupts silently, or not applicable; why, and where that was read."""

    connector: str
    outcome: str
    why: str
    source: str


def without_isthmus(producer: Facts, consumer: Facts, differing: Collection[str]) -> tuple[ConnectorOutcome, ...]:
    """The outcome of each connector.

    Args:
        producer, consumer: `portability.facts.facts_of` of the sides.
        differing: the fields in which the two differ (`portability.check.differing`).
    """
    facts = _joined(producer, consumer)
    connectors = all_connectors()
    return tuple(_outcome(connector, connectors, facts, frozenset(differing)) for connector in connectors.values())


def _joined(producer: Facts, consumer: Facts) -> dict[str, str | int | float | bool]:
    """Both sides' facts as `p.name` and `c.name`, whether they are the same, and in which ratio some stand."""
    facts: dict[str, str | int | float | bool] = {f"p.{name}": value for name, value in producer.items()}
    facts |= {f"c.{name}": value for name, value in consumer.items()}
    for name in _COMPARED:
        facts[f"same.{name}"] = "true" if producer[name] == consumer[name] else "false"
    for name in ("block_size", "tp_size", "dcp_size"):
        facts[f"{name}.ratio"] = _ratio(int(producer[name]), int(consumer[name]))
    return facts


def _ratio(ours: int, theirs: int) -> str:
    if ours == theirs:
        return "equal"
    if ours % theirs == 0:
        return "producer_multiple"
    return "consumer_multiple" if theirs % ours == 0 else "neither"


def _outcome(
    connector: Connector,
    connectors: Mapping[str, Connector],
    facts: Mapping[str, str | int | float | bool],
    differing: frozenset[str],
) -> ConnectorOutcome:
    if facts["p.engine"] not in connector.producers or facts["c.engine"] not in connector.consumers:
        joins = f"{' or '.join(connector.producers)} to {' or '.join(connector.consumers)}"
        return _said(connector, "not applicable", f"it joins {joins}", connector.source)
    if connector.delegates:
        found = _outcome(connectors[connector.delegates], connectors, facts, differing)
        return _said(connector, found.outcome, f"{connector.compares}; {found.why}", found.source)
    left = set(differing)
    converted: list[str] = []
    for step in connector.steps:
        if (step.differ and not left.intersection(step.differ)) or not holds(step.when, facts):
            continue
        if step.outcome in TERMINAL:
            return _said(connector, step.outcome, step.why, step.source or connector.source)
        if step.outcome == "converts":
            converted.append(step.why)
        left.difference_update(step.differ)
    if left:
        why = f"nothing compares {', '.join(sorted(left))}; what is compared: {connector.compares}"
        return _said(connector, "corrupts silently", why, connector.source)
    if converted:
        return _said(connector, "converts", "; ".join(converted), connector.source)
    return _said(connector, "works", f"equal in all that it compares: {connector.compares}", connector.source)


def _said(connector: Connector, outcome: str, why: str, source: str) -> ConnectorOutcome:
    return ConnectorOutcome(connector=connector.title, outcome=outcome, why=why, source=source)
