"""The threat model points at what is there: files, functions and tests that do not exist defend nothing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "THREAT_MODEL.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:[\w.]+/)*[\w.]+(?:\.py|\.md)|(?:[\w.]+/)+)`", TEXT)))
NAMES = sorted(set(re.findall(r"`(?:[A-Z]\w+\.)?([a-z_]\w+)`(?=[),])", TEXT)))
PLACES = (ROOT, ROOT / "src" / "isthmus", ROOT / "tests" / "security", ROOT / "tests")


@pytest.mark.parametrize("path", PATHS)
def test_every_file_that_is_named_exists(path):
    assert any((place / path).exists() for place in PLACES)


def test_every_function_that_is_named_exists():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert [name for name in NAMES if not re.search(rf"def {name}\b|\b{name}:", source)] == []


def test_there_is_something_to_check():
    assert len(PATHS) > 30
    assert {"check_read", "check_name", "on_token"} <= set(NAMES)
