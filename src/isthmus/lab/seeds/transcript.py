"""What happened in a world, in order; what faults were injected; and what rule was broken, if one was."""

import hashlib
from collections import Counter

from isthmus.lab.seeds.loop import VirtualLoop

__all__ = ["Transcript"]


class Transcript:
    """Lines are kept as they come and made text only when somebody reads them."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._lines: list[tuple[int, str, str, tuple[object, ...]]] = []
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []
        self._closed = False

    def close(self) -> None:
        """The run is over: what its remains still do is nobody's."""
        self._closed = True

    def note(self, who: str, what: str, *details: object) -> None:
        if self._closed:
            return
        self._lines.append((self._loop.now, who, what, details))

    def fault(self, kind: str, who: str, *details: object) -> None:
        """A fault was injected."""
        self.faults[kind] += 1
        self._lines.append((self._loop.now, who, f"FAULT {kind}", details))

    def violated(self, rule: str, what: str) -> None:
        """A rule is broken: the run ends here."""
        if self._closed:
            return
        self.violations.append(f"{rule}: {what}")
        self._lines.append((self._loop.now, "watch", f"VIOLATED {rule}", (what,)))
        self._loop.halt()

    def text(self) -> list[str]:
        return [
            f"{now / 1e6:12.4f} ms  {who:<12} {what}" + "".join(f" {detail}" for detail in details)
            for now, who, what, details in self._lines
        ]

    def digest(self) -> str:
        """Equal for two runs that went the same way."""
        found = hashlib.blake2b(digest_size=8)
        for line in self.text():
            found.update(line.encode() + b"\n")
        return found.hexdigest()
