"""The words after the command, read by an engine's flags: to settings, or to a refusal that names the nearest."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.catalogue.conditions import Value
from isthmus.catalogue.rules import EngineFile, Flag
from isthmus.core.errors import BadInput, NotCovered
from isthmus.engines.launch.yaml_text import read_yaml

__all__ = ["read_environment", "read_flags"]

CONFIG_FILE = "config_file"
"""The setting of a flag whose value is a YAML file with `config_keys`."""


def read_flags(rules: EngineFile, words: Sequence[str]) -> dict[str, Value]:
    """Settings from arguments.

    Raises:
        BadInput: a flag or a value that the engine does not have, or a configuration file that cannot be read.
        NotCovered: a flag that bears on KV in a way that no rule covers.
    """
    settings: dict[str, Value] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            _positional(rules, settings, word)
            continue
        name, equals, attached = word.partition("=")
        flag = rules.flag_named(_normal(rules, name))
        if flag is None:
            _skip(rules, name, bool(equals), rest)
            continue
        if flag.type == "switch" or flag.unknown:
            value: Value = flag.value
        else:
            value = _read(flag, name, attached if equals else _next(name, rest))
        _set(settings, flag, name, value)
    if CONFIG_FILE in settings:
        _config_file(rules, settings, str(settings[CONFIG_FILE]))
    return settings


def read_environment(rules: EngineFile, environment: Mapping[str, str]) -> dict[str, Value]:
    """Settings from variables that the engine's rules know; the others do not bear on KV, or are refused.

    Raises:
        BadInput: a variable with the engine's prefix that its rules do not know, or a wrong value.
    """
    settings: dict[str, Value] = {}
    prefixes = {name.split("_")[0] for name in rules.environment}
    for name, text in environment.items():
        flag = rules.environment.get(name)
        if flag is not None and flag.type == "switch":
            _set(settings, flag, name, "true" if text.lower() in ("1", "true", "on") else "false")
        elif flag is not None:
            _set(settings, flag, name, _read(flag, name, text))
        elif name.split("_")[0] in prefixes and name not in rules.ignored:
            near = difflib.get_close_matches(name, rules.environment, n=1, cutoff=0.5)
            hint = f"; nearest known: {near[0]}" if near else ""
            raise NotCovered(f"{name}: no rule covers this variable of {rules.title}{hint}", field=name)
    return settings


def _normal(rules: EngineFile, name: str) -> str:
    """A flag with dashes as the rules spell it: engines take `--kv_cache_dtype` and `--kv-cache-dtype` alike."""
    if rules.flag_named(name) is not None or name in rules.ignored:
        return name
    for spelling in (name.replace("_", "-"), "--" + name[2:].replace("-", "_")):
        if rules.flag_named(spelling) is not None or spelling in rules.ignored:
            return spelling
    return name


def _positional(rules: EngineFile, settings: dict[str, Value], word: str) -> None:
    if rules.positional is None or rules.positional in settings:
        raise BadInput(f"{word!r}: {rules.title} takes no such argument here", field="line")
    settings[rules.positional] = word


def _skip(rules: EngineFile, name: str, attached: bool, rest: list[str]) -> None:
    """Pass over a flag that does not bear on KV, with its value."""
    kind = rules.ignored.get(_normal(rules, name))
    if kind is None:
        known = [*rules.flags, *rules.ignored, *(a for flag in rules.flags.values() for a in flag.aliases)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"nearest known: {', '.join(near)}" if near else "see its --help"
        raise BadInput(
            f"{name}: {rules.title} {rules.versions[-1]} has no such flag that we know, so what it does to KV is not "
            f"known; {hint}",
            field=name,
        )
    if kind == "value" and not attached:
        _next(name, rest)
    if kind in ("optional", "values"):
        while rest and not rest[0].startswith("-") and not attached:
            rest.pop(0)
            if kind == "optional":
                return


def _next(name: str, rest: list[str]) -> str:
    if not rest:
        raise BadInput(f"{name}: got nothing, wanted a value", field=name)
    return rest.pop(0)


def _set(settings: dict[str, Value], flag: Flag, name: str, value: Value) -> None:
    if flag.unknown:
        raise NotCovered(f"{name}: bears on KV, and no rule covers it ({flag.unknown})", field=name)
    settings[flag.setting] = value


def _read(flag: Flag, name: str, text: str) -> Value:
    value: Value = text
    if flag.type == "int":
        try:
            value = int(text)
        except ValueError:
            raise BadInput(f"{name}: got {text!r}, wanted a whole number", field=name) from None
    if flag.values and value not in flag.values:
        near = difflib.get_close_matches(str(value), [str(v) for v in flag.values], n=1, cutoff=0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        known = ", ".join(str(v) for v in flag.values)
        raise BadInput(f"{name}: got {text!r}, wanted one of {known}{hint}", field=name)
    return value


def _config_file(rules: EngineFile, settings: dict[str, Value], path: str) -> None:
    """Settings from a YAML file's keys, by dotted path. A flag on the line wins."""
    tree = read_yaml(Path(path), Any, hint="give the YAML file of this line", field=path)
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: got {type(tree).__name__}, wanted a mapping of keys to values", field=path)
    for key, value in _flat(tree, ""):
        flag = rules.config_keys.get(key)
        if value is None or (flag is not None and not flag.unknown and flag.setting in settings):
            continue
        if flag is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            _set(settings, flag, f"{path}: {key}", text if flag.type == "switch" else _read(flag, key, text))
        elif f"--{key}" not in rules.ignored:
            near = difflib.get_close_matches(key, rules.config_keys, n=1, cutoff=0.5)
            hint = f"; nearest known: {near[0]}" if near else ""
            raise NotCovered(f"{path}: {key}: no rule covers this key{hint}", field=key)


def _flat(tree: object, prefix: str) -> list[tuple[str, object]]:
    if not isinstance(tree, dict):
        return [(prefix.rstrip("."), tree)]
    return [pair for key, child in tree.items() for pair in _flat(child, f"{prefix}{key}.")]
