"""PROTOCOL.md: its tables are written by the code that they describe, its prose by people, and one must fit the other.

A generated block stands between `<!-- generated: NAME -->` and `<!-- end -->`. Owns the names of blocks and what each
says; refuses to know prose.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from isthmus.core import limits
from isthmus.core.errors import BadInput
from isthmus.lab.protocol_tables import Transition, transitions_of_consumer, transitions_of_producer
from isthmus.ownership.protocol import effects, events
from isthmus.ownership.protocol.drain import DRAIN_TABLE, Evidence, TransportKind
from isthmus.ownership.protocol.failures import MEANWHILE, OBTAINABLE, Access, Failure, settles
from isthmus.ownership.protocol.states import DestinationPhase, SourcePhase, TriggerMode
from isthmus.ownership.rows import Answers, destination_answers, source_answers

__all__ = ["BLOCKS", "drift", "regenerated"]

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SHOWN_LINES_MAX = 40


def regenerated(text: str) -> str:
    """`text` with every generated block as the code says it now.

    Raises:
        BadInput: a block has a name that is not known here, or one of ours is missing.
    """
    names = [match["name"] for match in _BLOCK.finditer(text)]
    for name in names:
        if name not in BLOCKS:
            raise BadInput(f"generated block: got {name!r}, wanted one of {', '.join(BLOCKS)}", field="generated")
    for name in BLOCKS:
        if names.count(name) != 1:
            raise BadInput(f"generated block {name!r}: got {names.count(name)} of it, wanted one", field="generated")
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match['name']]()}\n{match[3]}", text)


def drift(path: Path) -> list[str]:
    """The first lines of the difference between a document and what the code says; empty where there is none."""
    text = _read(path)
    lines = difflib.unified_diff(
        text.splitlines(), regenerated(text).splitlines(), str(path), "what the code says", lineterm="", n=0
    )
    return list(lines)[:_SHOWN_LINES_MAX]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", field="path") from error


# tables


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _transitions(rows: list[Transition]) -> str:
    def cells() -> Iterator[list[str]]:
        for row in rows:
            phases = ", ".join(row.phases) if row.phases != ("",) else "(nothing)"
            yield [", ".join(row.events), phases, row.leads_to or "=", "; ".join(row.effects)]

    return _table(("event", "in", "to", "effects, in order"), cells())


def _drain() -> str:
    kinds = list(TransportKind)

    def cells() -> Iterator[list[str]]:
        for evidence in Evidence:
            for column in ("source", "destination", "pushed"):
                told = [getattr(DRAIN_TABLE[kind, evidence], column) for kind in kinds]
                yield [
                    f"`{evidence}`" if column == "source" else "",
                    {"source": "read by the peer", "destination": "written by us", "pushed": "written by the peer"}[
                        column
                    ],
                    *("frees" if settled else "keeps" for settled in told),
                ]

    reasons = {evidence: dict.fromkeys(DRAIN_TABLE[kind, evidence].reason for kind in kinds) for evidence in Evidence}
    why = "\n".join(f"- `{evidence}`: {'; '.join(each)}." for evidence, each in reasons.items())
    return _table(("evidence", "blocks", *kinds), cells()) + "\n\n" + why


def _failures() -> str:
    def cells() -> Iterator[list[str]]:
        for access in Access:
            for failure in Failure:
                told = [_had(access, failure, kind) for kind in TransportKind]
                yield [str(access), str(failure), *told, MEANWHILE[access][failure]]

    return _table(("blocks", "the peer", *TransportKind, "meanwhile"), cells())


def _had(access: Access, failure: Failure, kind: TransportKind) -> str:
    """What can be had, what of it frees in bold."""
    had = OBTAINABLE[access][failure].get(kind)
    if had is None:
        return "one process: cannot be"
    return ", ".join(f"**{each}**" if settles(access, kind, each) else str(each) for each in had)


def _five(phases: Iterable[Any], answers_of: Callable[[TriggerMode, Any], Answers]) -> str:
    def cells() -> Iterator[list[str]]:
        for phase in phases:
            told: dict[Answers, list[TriggerMode]] = {}
            for mode in TriggerMode:
                try:
                    told.setdefault(answers_of(mode, phase), []).append(mode)
                except KeyError:
                    continue  # the mode has no such phase
            for answers, modes in told.items():
                said = [answer.format(own="this worker", peer="the peer") for answer in answers]
                which = "all" if len(modes) == len(TriggerMode) else ", ".join(modes)
                yield [phase.name, which, said[0], "its ledger", *said[1:]]

    head = ("phase", "mode", "who holds", "who accounts", "who declares completion", "who releases", "who cleans up")
    return _table(head, cells())


def _words(module: Any, kinds: Iterable[type]) -> str:
    public = [kind for kind in kinds if kind.__module__ == module.__name__]
    return _table(("name", "means"), ([f"`{kind.__name__}`", _doc(kind)] for kind in public))


def _doc(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def _events() -> str:
    producer, consumer = get_args(events.SourceEvent), get_args(events.DestinationEvent)

    def cells() -> Iterator[list[str]]:
        for kind in dict.fromkeys((*producer, *consumer)):
            sides = [name for name, of in (("producer", producer), ("consumer", consumer)) if kind in of]
            yield [f"`{kind.__name__}`", ", ".join(sides), _doc(kind)]

    return _table(("event", "side", "means"), cells())


_BOUNDS = (
    "GRANTS_PER_WORKER_MAX",
    "GRANTS_PER_PEER_MAX",
    "TOMBSTONES_MAX",
    "INCARNATIONS_LOST_MAX",
    "WORKERS_MAX",
    "CALLS_IN_FLIGHT_MAX",
    "CALL_BYTES_IN_FLIGHT_MAX",
    "CONTROL_FRAME_BYTES_MAX",
    "MANIFEST_BYTES_MAX",
    "OFFER_BYTES_MAX",
    "BLOCKS_PER_POOL_MAX",
    "HANDOFFS_LOGGED_MAX",
    "MOMENTS_PER_HANDOFF_MAX",
    "READS_PER_EXPORTER_MAX",
    "READ_MS_MAX",
    "WRITE_MS_MAX",
)


def _bounds() -> str:
    return _table(("bound", "value"), ([f"`{name}`", f"{getattr(limits, name):,}"] for name in _BOUNDS))


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "events": _events,
    "effects": lambda: _words(effects, get_args(effects.Effect)),
    "five-answers-producer": lambda: _five(SourcePhase, source_answers),
    "five-answers-consumer": lambda: _five(DestinationPhase, destination_answers),
    "producer-pull": lambda: _transitions(transitions_of_producer(TriggerMode.PULL)),
    "producer-push": lambda: _transitions(transitions_of_producer(TriggerMode.PUSH)),
    "producer-send": lambda: _transitions(transitions_of_producer(TriggerMode.SEND)),
    "consumer-pull": lambda: _transitions(transitions_of_consumer(TriggerMode.PULL)),
    "consumer-push": lambda: _transitions(transitions_of_consumer(TriggerMode.PUSH)),
    "drain": _drain,
    "failures": _failures,
    "bounds": _bounds,
}
