"""What each engine's words mean: flags, environment, and rules from them to a representation (`data/engines/*.yaml`).

A rule whose conditions hold sets what is not set yet; so a flag that was given wins, and earlier rules win. Each rule
names its source. How rules are applied: `engines/launch`.
"""

import re
from functools import cache
from importlib import resources
from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.catalogue.conditions import Condition, Value
from isthmus.core.errors import Bug
from isthmus.state.structs import WireStruct

__all__ = ["EngineFile", "Flag", "Rule", "engine_commands", "engine_file", "engine_files", "engine_on"]


class Flag(WireStruct, frozen=True, kw_only=True):
    """A flag, an environment variable or a key of a configuration file that bears on KV.

    `setting` is what it sets; `type` how its value is read: str, int, or switch (no value: sets `value`, "true" if not
    said). `values` is the closed list where there is one. `unknown` says why no rule covers it.
    """

    setting: str = ""
    type: Annotated[str, Meta(pattern=r"^(str|int|switch)\Z")] = "str"
    values: tuple[Value, ...] = ()
    value: str = "true"
    aliases: tuple[str, ...] = ()
    unknown: str = ""
    source: str = ""


class Rule(WireStruct, frozen=True, kw_only=True):
    """Where all of `when` holds: `set` what is not set, or `refuse` (bad input), or say that it is `unknown`."""

    source: str
    when: dict[str, Condition] = msgspec.field(default_factory=dict)
    set: dict[str, Value] = msgspec.field(default_factory=dict)
    assume: bool = False
    why: str = ""
    refuse: str = ""
    unknown: str = ""
    versions: tuple[str, ...] = ()


class EngineFile(WireStruct, frozen=True, kw_only=True):
    """One engine. `commands` are how its launch line begins; `versions` those that the rules cover, newest last.

    A plugin has no command: on parts of `archs` its rules take the place of `plugin_of`'s, under that one's flags and
    variables and those that it adds.
    """

    engine: str
    title: str
    commands: tuple[str, ...]
    versions: Annotated[tuple[str, ...], Meta(min_length=1)]
    source: str
    positional: str | None = None
    flags: dict[str, Flag] = msgspec.field(default_factory=dict)
    ignored: dict[str, str] = msgspec.field(default_factory=dict)
    environment: dict[str, Flag] = msgspec.field(default_factory=dict)
    config_keys: dict[str, Flag] = msgspec.field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    plugin_of: str = ""
    archs: tuple[str, ...] = ()

    def flag_named(self, name: str) -> Flag | None:
        """The flag by its name or alias."""
        return self.flags.get(name) or _aliases(self.plugin_of or self.engine).get(name)


@cache
def engine_files() -> tuple[str, ...]:
    """The names of all engines that have rules."""
    folder = resources.files("isthmus.catalogue").joinpath("data", "engines")
    return tuple(sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")))


@cache
def engine_commands() -> tuple[tuple[str, str], ...]:
    """(command, engine) of all: how launch lines begin. Reads one line of each file, not all of its rules."""
    folder = resources.files("isthmus.catalogue").joinpath("data", "engines")
    found: list[tuple[str, str]] = []
    for name in engine_files():
        line = re.search(rb"^commands: (\[.*\])$", folder.joinpath(f"{name}.yaml").read_bytes(), re.MULTILINE)
        if line is None:
            raise Bug(f"catalogue/data/engines/{name}.yaml: no line `commands: [...]`", field=name)
        found += [(command, name) for command in msgspec.yaml.decode(line[1], type=list[str])]
    return tuple(found)


def engine_on(rules: EngineFile, arch: str) -> EngineFile:
    """An engine as it is on a part: with a plugin's rules, where one is for that architecture."""
    folder = resources.files("isthmus.catalogue").joinpath("data", "engines")
    for name in engine_files():
        text = folder.joinpath(f"{name}.yaml").read_text()
        if f"\nplugin_of: {rules.engine}\n" not in text:
            continue
        plugin = engine_file(name)
        if arch in plugin.archs:
            return msgspec.structs.replace(
                plugin, flags=rules.flags | plugin.flags, ignored=rules.ignored | plugin.ignored,
                environment=rules.environment | plugin.environment,
                positional=rules.positional, versions=rules.versions,
            )  # fmt: skip
    return rules


@cache
def engine_file(name: str) -> EngineFile:
    """The rules of an engine.

    Raises:
        Bug: its file does not hold what this reads.
    """
    text = resources.files("isthmus.catalogue").joinpath("data", "engines", f"{name}.yaml").read_bytes()
    try:
        return msgspec.yaml.decode(text, type=EngineFile)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise Bug(f"catalogue/data/engines/{name}.yaml: {error}", field=name) from error


@cache
def _aliases(engine: str) -> dict[str, Flag]:
    return {alias: flag for flag in engine_file(engine).flags.values() for alias in flag.aliases}
