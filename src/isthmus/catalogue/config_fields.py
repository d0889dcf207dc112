"""Reading a config.json strictly: every value is checked where it is read, and an error names the field.

Numbers are bounded here, so that no size that a stranger wrote reaches a loop.
"""

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence

from isthmus.core.errors import BadInput
from isthmus.core.limits import NAME_CHARS_MAX, TOKENS_PER_REQUEST_MAX

__all__ = ["POSITIONS_MAX", "Fields", "bad", "canonical"]

POSITIONS_MAX = 64 * TOKENS_PER_REQUEST_MAX
"""The most positions that a config may name. Some name more than a request may have."""

RECORD_CHARS_MAX = 64 * NAME_CHARS_MAX
RECORD_DEPTH_MAX = 4
LIST_LENGTH_MAX = 4096
INTEGER_MAX = 2**53
"""The largest integer that every reader of JSON takes for the same number."""


def bad(field: str, got: object, wanted: str) -> BadInput:
    """The error for a value that will not do; `got` None says that it is missing."""
    said = "missing" if got is None else f"got {_shown(got)}"
    return BadInput(f"config.json: {field}: {said}, wanted {wanted}", field=field)


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"


def canonical(field: str, record: Mapping[str, object]) -> str:
    """A record as JSON text that is the same for the same values: keys in order, 8.0 written as 8, no nulls.

    Raises:
        BadInput: a value is not JSON, not finite, or there is too much of it.
    """
    plain = _plain(field, record, RECORD_DEPTH_MAX)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > RECORD_CHARS_MAX:
        raise bad(field, text, f"at most {RECORD_CHARS_MAX} characters of JSON")
    return text


def _plain(field: str, value: object, depth: int) -> object:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return _number(field, value)
    if depth > 0 and isinstance(value, Mapping) and len(value) <= LIST_LENGTH_MAX:
        kept = {key: one for key, one in value.items() if one is not None}
        if all(isinstance(key, str) for key in kept):
            return {key: _plain(field, one, depth - 1) for key, one in kept.items()}
    if depth > 0 and isinstance(value, list | tuple) and len(value) <= LIST_LENGTH_MAX:
        return [_plain(field, one, depth - 1) for one in value if one is not None]
    raise bad(field, value, f"JSON of at most {RECORD_DEPTH_MAX} levels, lists of at most {LIST_LENGTH_MAX}")


def _number(field: str, value: int | float) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise bad(field, value, "a finite number")
    if abs(value) > INTEGER_MAX:
        raise bad(field, value, f"a number of at most {INTEGER_MAX}")
    return int(value) if value == int(value) else value


class Fields:
    """The fields of one config, with what its family takes where one is missing or null.

    `within` is what errors put before a field's name: the object that it is in, and a dot.
    """

    def __init__(self, values: Mapping[str, object], defaults: Mapping[str, object], *, within: str = "") -> None:
        self._values = values
        self._defaults = defaults
        self._within = within

    def get(self, name: str) -> object:
        """A field as it is; None where it is missing."""
        value = self._values.get(name)
        return self._defaults.get(name) if value is None else value

    def says(self, name: str) -> bool:
        """Whether the config has the field, be it null."""
        return name in self._values

    def which(self, *names: str) -> str:
        """The first of several spellings that is there: in the config, else in the family; else ''."""
        for source in (self._values, self._defaults):
            for name in names:
                if source.get(name) is not None:
                    return name
        return ""

    def integer(self, name: str, most: int, *, least: int = 1, wanted: str = "") -> int:
        """A field that must be an integer of `least` to `most`. Raises BadInput."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise bad(self._within + name, value, wanted or f"an integer of {least} to {most}")
        return value

    def integer_or(self, name: str, absent: int, most: int) -> int:
        """The same, or `absent` where there is none."""
        return absent if self.get(name) is None else self.integer(name, most)

    def number(self, name: str) -> float:
        """A field that must be a positive finite number. Raises BadInput."""
        return positive(name, self.get(name))

    def switch(self, name: str) -> bool:
        """A field that must be true or false; false where it is missing. Raises BadInput."""
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise bad(name, value, "true or false")
        return value

    def text(self, name: str) -> str:
        """A field that must be a name. Raises BadInput."""
        return named(name, self.get(name))

    def record(self, name: str) -> dict[str, object]:
        """A field that must be an object; {} where it is missing. Raises BadInput."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise bad(name, value, "an object")
        return {key: one for key, one in value.items() if one is not None}

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of words. Raises BadInput."""
        return [named(name, one) for one in self._list(name)]

    def integers(self, name: str, most: int) -> list[int]:
        """A field that must be a list of integers of 0 to `most`. Raises BadInput."""
        found = []
        for one in self._list(name):
            if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= most:
                raise bad(name, one, f"integers of 0 to {most}")
            found.append(one)
        return found

    def _list(self, name: str) -> Sequence[object]:
        value = self.get(name)
        if not isinstance(value, list | tuple) or len(value) > LIST_LENGTH_MAX:
            raise bad(name, value, f"a list of at most {LIST_LENGTH_MAX}")
        return value


def positive(name: str, value: object) -> float:
    """A positive finite number. Raises BadInput."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= INTEGER_MAX:
        raise bad(name, value, "a positive number")
    return float(value)


def named(name: str, value: object) -> str:
    """A word of reasonable length. Raises BadInput."""
    if not isinstance(value, str) or not re.fullmatch(rf"[!-~]{{1,{NAME_CHARS_MAX}}}", value):
        raise bad(name, value, "a word")
    return value
