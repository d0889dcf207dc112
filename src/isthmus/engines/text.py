"""Token ids to text as it streams, and stop strings. Imports no torch; the engine's users and the gateway share it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.core.limits import STOP_STRING_CHARS_MAX, STOP_STRINGS_MAX

__all__ = ["Detokenizer", "StopStrings", "TextStream", "Tokenizer", "load_tokenizer"]

_REPLACEMENT = "\ufffd"
_INCOMPLETE_MAX = 3  # bytes of a character before its last, each at most one replacement character in decoded text


class Tokenizer(Protocol):
    """What is asked of a tokenizer; a transformers one will do."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of some tokens."""
        ...


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a local model directory (transformers', with its chat template). The network is never asked.

    Raises:
        ConfigInvalid: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"model: {path} has no tokenizer: {error}", field="model") from None


class Detokenizer:
    """Text of a growing answer, piece by piece: the pieces, with `finish`'s, concatenate to the text of all tokens.

    A token may end inside a character; such an end is held back until the character is whole. Only a short window of
    tokens is decoded each time: back to the last place where text and tokens ended together, and one such stretch more,
    since some tokenizers drop a space at the start of what they decode.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._stretch_start = 0  # where, in the window, the last whole stretch begins
        self._given = 0  # characters of the window's text that have been given out

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes certain; may be empty."""
        self._window.append(token_id)
        text = self._decode()
        stable = text[: len(text) - _incomplete(text)]
        piece = stable[self._given :]
        self._given = max(self._given, len(stable))
        if len(stable) == len(text) and piece:
            self._window = self._window[self._stretch_start :]
            self._stretch_start = len(self._window)
            self._given = len(self._decode())
        return piece

    def finish(self) -> str:
        """What was held back: the answer has ended, so an incomplete character stays so."""
        piece = self._decode()[self._given :]
        self._given += len(piece)
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)


def _incomplete(text: str) -> int:
    """Characters at the end that another token may still turn into one."""
    return min(len(text) - len(text.rstrip(_REPLACEMENT)), _INCOMPLETE_MAX)


class StopStrings:
    """Cuts a stream of text before the first stop string to be completed (of several at one place, the longest).

    Text that may turn out to begin a stop string is held back, so that no part of one is ever given out.

    Raises:
        BadInput: a stop string is empty or too long, or there are too many.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > STOP_STRINGS_MAX:
            raise BadInput(f"stop: got {len(stops)} strings, wanted at most {STOP_STRINGS_MAX}", field="stop")
        if not all(1 <= len(stop) <= STOP_STRING_CHARS_MAX for stop in stops):
            raise BadInput(f"stop: wanted strings of 1 to {STOP_STRING_CHARS_MAX} characters", field="stop")
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to come before any stop string. Empty once one has matched."""
        if self.matched:
            return ""
        self._held += text
        cut = self._first_match()
        if cut is not None:
            self.matched = True
            piece, self._held = self._held[:cut], ""
            return piece
        keep = self._beginning()
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def finish(self) -> str:
        """What was held back: the text has ended, so it begins no stop string."""
        piece, self._held = self._held, ""
        return piece

    def _first_match(self) -> int | None:
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class TextStream:
    """Tokens to text cut at stop strings: a `Detokenizer` and a `StopStrings` in one."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met: the answer ends here."""
        return self._stops.matched

    def push(self, token_id: int) -> str:
        """Text that is certain now; may be empty."""
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The rest, where the answer ends for another reason."""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()
