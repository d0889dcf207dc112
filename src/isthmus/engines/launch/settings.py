"""Applying an engine's rules: from what a line says to all that a representation needs."""

from collections.abc import Mapping

from isthmus.catalogue.conditions import Value, holds
from isthmus.catalogue.rules import EngineFile, Rule
from isthmus.core.errors import BadInput, NotCovered
from isthmus.state.assumption import Assumption

__all__ = ["apply_rules"]


def apply_rules(
    rules: EngineFile, version: str, given: Mapping[str, Value], assumed: list[Assumption]
) -> dict[str, Value]:
    """All settings for one kind of layer: `given`, and what the rules add, in their order.

    What a rule assumes is added to `assumed`.

    Raises:
        BadInput: a rule refuses the settings.
        NotCovered: a rule says that nobody knows.
    """
    settings = dict(given)
    for rule in rules.rules:
        if (rule.versions and version not in rule.versions) or not holds(rule.when, settings):
            continue
        if rule.refuse:
            raise BadInput(f"{rule.refuse} ({rule.source})", field=_field(rule.refuse))
        if rule.unknown:
            raise NotCovered(f"{rule.unknown} ({rule.source})", field=_field(rule.unknown))
        for name, value in rule.set.items():
            if name in settings:
                continue
            settings[name] = _resolved(value, settings)
            if rule.assume:
                assumption = Assumption(field=name, value=str(settings[name]), why=_because(rule))
                if assumption not in assumed:
                    assumed.append(assumption)
    return settings


def _resolved(value: Value, settings: Mapping[str, Value]) -> Value:
    """A value, or the setting that `$name` stands for. YAML's booleans are the words `true` and `false`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith("$"):
        return settings.get(value[1:], value)
    return value


def _because(rule: Rule) -> str:
    return f"{rule.why} ({rule.source})" if rule.why else rule.source


def _field(text: str) -> str:
    """The field that a sentence is about: what stands before its colon."""
    head, colon, _ = text.partition(":")
    return head if colon and " " not in head else "rule"
