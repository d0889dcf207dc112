"""PROTOCOL.md and INVARIANTS.md say what is there: tables as the code has them, references that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.cli.verify.protocol import protocol
from isthmus.core.errors import BadInput
from isthmus.lab.protocol_doc import BLOCKS, drift, regenerated
from isthmus.lab.protocol_tables import transitions_of_consumer, transitions_of_producer
from isthmus.ownership.protocol.states import DestinationPhase, SourcePhase, TriggerMode

ROOT = Path(__file__).parents[2]
PROTOCOL, INVARIANTS = ROOT / "PROTOCOL.md", ROOT / "INVARIANTS.md"
NAMES = [f"I{number}" for number in range(1, 11)]
KINDS = ("production", "model", "simulation", "tests")
REFERENCE = re.compile(r"`(?P<path>[\w/.-]+\.py)(?:::(?P<name>[\w.]+))?`")


def sections() -> dict[str, str]:
    """What INVARIANTS.md says of each."""
    parts = re.split(r"^## (I\d+): ", INVARIANTS.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def references(invariant: str, kind: str) -> list[tuple[Path, str]]:
    lists = re.split(r"^- (\w+): ", sections()[invariant], flags=re.MULTILINE)[1:]
    said = dict(zip(lists[::2], lists[1::2], strict=True))[kind]
    return [(ROOT / match["path"], match["name"] or "") for match in REFERENCE.finditer(said)]


def source_of(path: Path, name: str) -> str:
    """The lines of a function, method or class, or of the whole file. Raises KeyError if the name is not there."""
    text = path.read_text()
    if not name:
        return text
    node = dict(_named(ast.parse(text), ""))[name]
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield prefix + child.name, child
            yield from _named(child, f"{prefix}{child.name}.")


# PROTOCOL.md


def test_the_protocol_s_tables_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert protocol(PROTOCOL) == 0, capsys.readouterr().out
    assert drift(PROTOCOL) == []


def test_a_cell_that_is_not_what_the_code_says_is_shown_and_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "PROTOCOL.md"
    copy.write_text(PROTOCOL.read_text().replace("| VerifyBad, Abort, Fence |", "| VerifyBad |"))
    assert protocol(copy) == 1
    assert "-| VerifyBad |" in capsys.readouterr().out
    assert protocol(copy, write=True) == 0
    assert copy.read_text() == PROTOCOL.read_text()


@pytest.mark.parametrize("change", [("generated: drain -->", "generated: drains -->"), ("generated: drain -->", "")])
def test_a_table_that_is_missing_or_unknown_is_refused_by_name(change: tuple[str, str]) -> None:
    with pytest.raises(BadInput, match="drain"):
        regenerated(PROTOCOL.read_text().replace(*change))


def test_writing_again_changes_nothing() -> None:
    once = regenerated(PROTOCOL.read_text())
    assert regenerated(once) == once
    assert len(BLOCKS) == PROTOCOL.read_text().count("<!-- generated:")


@pytest.mark.parametrize("mode", TriggerMode)
def test_the_transitions_come_to_every_phase_that_the_mode_has(mode: TriggerMode) -> None:
    def reached(rows: list) -> set[str]:  # type: ignore[type-arg]
        return {row.leads_to for row in rows if row.leads_to}

    pull = mode is TriggerMode.PULL
    read = {SourcePhase.EXPOSED.name, SourcePhase.EXPIRED.name, SourcePhase.IN_DOUBT.name}
    sources = {phase.name for phase in SourcePhase} - (set() if pull else read)
    destinations = {phase.name for phase in DestinationPhase} - ({"EXPOSED"} if pull else set())
    assert reached(transitions_of_producer(mode)) == sources
    assert reached(transitions_of_consumer(mode)) == destinations


# INVARIANTS.md


def test_every_invariant_is_there_with_all_four_kinds_of_check() -> None:
    assert list(sections()) == NAMES
    for invariant in NAMES:
        assert all(references(invariant, kind) for kind in KINDS), invariant


@pytest.mark.parametrize("invariant", NAMES)
def test_every_reference_of_an_invariant_exists(invariant: str) -> None:
    missing = []
    for kind in KINDS:
        for path, name in references(invariant, kind):
            try:
                source_of(path, name)
            except (OSError, KeyError):
                missing.append(f"{path.relative_to(ROOT)}::{name}")
    assert not missing


@pytest.mark.parametrize("invariant", NAMES)
def test_the_production_check_names_its_invariant_where_it_stands(invariant: str) -> None:
    names = re.compile(rf"\b{invariant}\b")
    silent = [name for path, name in references(invariant, "production") if not names.search(source_of(path, name))]
    assert not silent


@pytest.mark.parametrize("invariant", NAMES)
def test_a_comment_in_the_source_marks_each_invariant_s_line(invariant: str) -> None:
    comment = re.compile(rf"#.*\b{invariant}\b")
    checks = [path for path, _ in references(invariant, "production")]
    assert any(comment.search(line) for path in checks for line in path.read_text().splitlines())


@pytest.mark.parametrize("invariant", NAMES)
def test_the_model_and_the_simulation_can_report_each_invariant(invariant: str) -> None:
    for kind in ("model", "simulation"):
        for path, name in references(invariant, kind):
            assert re.search(rf"\b{invariant}\b", source_of(path, name)), f"{path.name} never reports {invariant}"
