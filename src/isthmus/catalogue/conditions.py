"""Conditions on settings, as the rules of engines and connectors write them.

    name: value                    it is that
    name: [a, b]                   it is one of these
    name: {not: value or list}     it is none of these, or not set
    name: {min: n}  {max: n}  {multiple_of: n}  {not_multiple_of: n}
    name: {set: true|false}        whether it is set at all

A condition on a name that is not set is false, except `not` and `{set: false}`. Conditions on several names must all
hold, and so must several tests of one name. A number in a string counts as the number where numbers are compared.
"""

from collections.abc import Callable, Mapping

from isthmus.core.errors import Bug

__all__ = ["Condition", "Value", "holds"]

Value = str | int | float | bool
Condition = Value | list[Value] | dict[str, Value | list[Value]]


def holds(when: Mapping[str, Condition], settings: Mapping[str, Value]) -> bool:
    """Whether all conditions hold.

    Raises:
        Bug: a condition uses a test that there is not.
    """
    for name, condition in when.items():
        value = settings.get(name)
        if isinstance(condition, dict):
            if not all(_test(kind, operand, value) for kind, operand in condition.items()):
                return False
        elif value is None or not _among(value, condition):
            return False
    return True


def _among(value: Value, wanted: Value | list[Value]) -> bool:
    """Whether a value is one of those wanted. YAML's booleans are the words `true` and `false` here."""
    options = wanted if isinstance(wanted, list) else [wanted]
    return any(value == _word(option) for option in options)


def _word(option: Value) -> Value:
    return str(option).lower() if isinstance(option, bool) else option


def _number(value: Value) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


_NUMERIC: dict[str, Callable[[int, int], bool]] = {
    "min": lambda value, bound: value >= bound,
    "max": lambda value, bound: value <= bound,
    "multiple_of": lambda value, unit: value % unit == 0,
    "not_multiple_of": lambda value, unit: value % unit != 0,
}


def _test(kind: str, operand: Value | list[Value], value: Value | None) -> bool:
    if kind == "not":
        return value is None or not _among(value, operand)
    if kind == "set":
        return (value is not None) == (_word(operand) == "true" if not isinstance(operand, list) else False)
    if kind not in _NUMERIC or isinstance(operand, list):
        raise Bug(f"conditions: no test {kind!r} of {operand!r}", field=kind)
    number = None if value is None else _number(value)
    return number is not None and _NUMERIC[kind](number, int(operand))
