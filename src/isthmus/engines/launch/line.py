"""A launch line, taken apart: environment, command, arguments, and what follows the @.

    VLLM_X=1 vllm serve Qwen/Qwen3-32B --kv-cache-dtype fp8 -tp 4 @mi300x,vllm=0.33

After @ stands the accelerator, then what the line itself cannot say: the engine's version, and of a model whose name is
not in the catalogue its `base` and `revision`.
"""

import difflib
import shlex
from dataclasses import dataclass

from isthmus.catalogue.rules import EngineFile, engine_commands, engine_file
from isthmus.core.errors import BadInput, NotCovered

__all__ = ["LaunchLine", "parse_line"]

LINE_CHARS_MAX = 16_384
OPTIONS = ("base", "revision")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLine:
    """`arguments` are the words after the command; `options` what was said after @ (without the version)."""

    rules: EngineFile
    environment: dict[str, str]
    arguments: tuple[str, ...]
    accelerator: str
    version: str
    version_given: bool
    options: dict[str, str]


def parse_line(text: str) -> LaunchLine:
    """Take a launch line apart.

    Raises:
        BadInput: it is none, or names an engine, an accelerator or an option that there is not.
        NotCovered: the engine's version has no rules.
    """
    if len(text) > LINE_CHARS_MAX:
        raise BadInput(f"launch line: got {len(text)} characters, wanted at most {LINE_CHARS_MAX}", field="line")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"launch line: {error}; check the quotes", field="line") from None
    words, place = _place(words)
    environment: dict[str, str] = {}
    while words and _assignment(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    rules, arguments = _command(words, text)
    accelerator, options = _options(place, rules)
    version, given = _version(rules, options.pop(rules.plugin_of or rules.engine, None))
    return LaunchLine(
        rules=rules,
        environment=environment,
        arguments=tuple(arguments),
        accelerator=accelerator,
        version=version,
        version_given=given,
        options=options,
    )


def _place(words: list[str]) -> tuple[list[str], str]:
    """What stands after @, and the words without it."""
    places = [word[1:] for word in words if word.startswith("@")]
    if len(places) != 1 or not places[0]:
        raise BadInput(
            f"accelerator: got {len(places)} words that begin with @, wanted one: end the line with where it runs, "
            "as in @h100 or @mi300x,vllm=0.33",
            field="accelerator",
        )
    return [word for word in words if not word.startswith("@")], places[0]


def _assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


def _command(words: list[str], text: str) -> tuple[EngineFile, list[str]]:
    """Whose command it is: of all that match, the longest."""
    found: tuple[int, str] | None = None
    for command, engine in engine_commands():
        wanted = command.split()
        if _same(words[: len(wanted)], wanted) and (found is None or len(wanted) > found[0]):
            found = (len(wanted), engine)
    if found is None:
        commands = [command for command, _ in engine_commands()]
        near = difflib.get_close_matches(" ".join(words[:3]), commands, n=2, cutoff=0.3)
        hint = f"nearest: {' | '.join(near)}" if near else f"known: {' | '.join(sorted(set(commands)))}"
        raise BadInput(f"launch line: no engine is started by {text[:60]!r}; {hint}", field="engine")
    return engine_file(found[1]), words[found[0] :]


def _same(words: list[str], wanted: list[str]) -> bool:
    """Whether a line begins with a command, under any path and any python."""
    if len(words) != len(wanted):
        return False
    first = words[0].rsplit("/", 1)[-1]
    program = "python" if first.startswith("python") else first
    return [program, *words[1:]] == wanted


def _options(place: str, rules: EngineFile) -> tuple[str, dict[str, str]]:
    accelerator, *rest = place.split(",")
    options: dict[str, str] = {}
    known = (*OPTIONS, rules.plugin_of or rules.engine)
    for option in rest:
        name, equals, value = option.partition("=")
        if name not in known or not equals or not value:
            raise BadInput(
                f"{option!r} after @: wanted one of {', '.join(f'{name}=…' for name in known)}", field=name or "@"
            )
        options[name] = value
    return accelerator, options


def _version(rules: EngineFile, given: str | None) -> tuple[str, bool]:
    """The version whose rules apply: the one given, or the newest."""
    if given is None:
        return rules.versions[-1], False
    for version in rules.versions:
        if given == version or given.startswith(f"{version}."):
            return version, True
    raise NotCovered(
        f"engine_version: no rules for {rules.title} {given}; there are rules for {', '.join(rules.versions)}",
        field="engine_version",
    )
