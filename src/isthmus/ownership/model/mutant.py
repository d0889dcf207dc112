"""A guard taken away, and the small worlds in which it is missed.

A guard of the protocol is taken out of production's own source (`loader`), so that drift fails loudly; a guard of the
shell around it is a switch of the scope.
"""

from dataclasses import dataclass, replace
from typing import Final

from isthmus.ownership.model.loader import mutated
from isthmus.ownership.model.rules import PRODUCTION, Rules
from isthmus.ownership.model.scope import Faults, Scope, Switches
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["FENCED", "PARTS", "PULL", "PUSH", "SEND", "TENANTS", "Mutant", "of_the_shell", "without"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`module` is of the protocol; it is empty where the guard is the shell's, which `scope` has a switch for."""

    name: str
    removes: str
    violates: str
    scope: Scope
    module: str = ""
    fragment: str = ""
    replacement: str = ""

    def rules(self) -> Rules:
        """The protocol without the guard. Raises Bug where production has drifted."""
        return mutated(self.module, self.fragment, self.replacement) if self.module else PRODUCTION


_HOSTILE: Final = Faults(forges=True, renews=True, sees_reads=True, flips=True, source_gives_up=True)
PULL: Final = Scope(
    name="mutant", about="two pulls through one source block", requests=2, source_slots=1, faults=_HOSTILE
)
TENANTS: Final = replace(
    PULL,
    tenants=(0, 1),
    faults=Faults(crashes=1, forges=True, source_gives_up=True, doubts=True),
)
FENCED: Final = replace(TENANTS, faults=Faults(pauses=1, fences=True))
PUSH: Final = replace(
    PULL, mode=TriggerMode.PUSH, source_slots=2, destination_slots=1, faults=replace(_HOSTILE, crashes=1)
)
SEND: Final = replace(PUSH, mode=TriggerMode.SEND, source_slots=1)
PARTS: Final = Scope(name="mutant", about="a hand-off of two parts", requests=1, parts=2)


def without(name: str, removes: str, violates: str, scope: Scope, *patch: str) -> Mutant:
    """A mutant of the protocol. `patch` is the module, the fragment, and what stands in its place."""
    module, fragment, replacement = patch
    return Mutant(
        name=name,
        removes=removes,
        violates=violates,
        scope=scope,
        module=module,
        fragment=fragment,
        replacement=replacement,
    )


def of_the_shell(name: str, removes: str, violates: str, scope: Scope, switches: Switches) -> Mutant:
    """A mutant of the shell around the protocol."""
    return Mutant(name=name, removes=removes, violates=violates, scope=replace(scope, switches=switches))
