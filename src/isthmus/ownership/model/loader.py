"""Production's protocol with one guard taken out, loaded beside the real one.

A mutant names a fragment of a module's source and what stands in its place. The fragment must occur exactly once, so
that a guard that has moved or changed fails loudly instead of being tested no more. The whole protocol package is then
loaded a second time, from its own files but for that fragment, into modules that nobody else sees. Events go in and
states come out by value, since each family of modules has classes of its own.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from isthmus.core.errors import Bug
from isthmus.ownership.model.rules import Rules
from isthmus.ownership.protocol import effects as production_effects
from isthmus.ownership.protocol.states import DestinationHandoff, SourceHandoff

__all__ = ["mutated"]

PACKAGE = "isthmus.ownership.protocol"

ValueT = TypeVar("ValueT")


class _Patched(SourceFileLoader):
    """A module's own source, with one fragment replaced."""

    def __init__(self, fullname: str, path: str, fragment: str, replacement: str) -> None:
        super().__init__(fullname, path)
        self._fragment = fragment
        self._replacement = replacement

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path).decode()
        count = source.count(self._fragment)
        if count != 1:
            raise Bug(f"{self.name}: the fragment occurs {count} times, wanted once: {self._fragment!r}")
        return source.replace(self._fragment, self._replacement).encode()

    def get_code(self, fullname: str) -> Any:
        # Past the cache of byte code, which is of the source as it stands.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    def __init__(self, module: str, fragment: str, replacement: str) -> None:
        self._module = f"{PACKAGE}.{module}"
        self._patch = (fragment, replacement)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise Bug(f"{fullname}: no such module")
        spec.loader = _Patched(fullname, spec.origin, *self._patch)
        return spec


def mutated(module: str, fragment: str, replacement: str) -> Rules:
    """The protocol with `fragment` of its module `module` replaced. Raises Bug unless it is there exactly once."""
    with _family(_Finder(module, fragment, replacement)) as load:
        source, ends, destination, push = (
            load(name) for name in ("source", "source_ends", "destination", "destination_push")
        )
        states, events = load("states"), load("events")
    return Rules(
        source=_by_value(source.step, states.SourceHandoff, SourceHandoff, events),
        destination=_by_value(destination.step, states.DestinationHandoff, DestinationHandoff, events),
        source_lease_over=lambda state, now: ends.lease_over(_copied(state, states.SourceHandoff), now),
        destination_lease_over=lambda state, now: push.lease_over(_copied(state, states.DestinationHandoff), now),
    )


@contextmanager
def _family(finder: MetaPathFinder) -> Iterator[Callable[[str], ModuleType]]:
    """A second set of the protocol's modules. Outside the block the first is what everybody imports."""
    own = {name: module for name, module in sys.modules.items() if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    parent = sys.modules[PACKAGE.rpartition(".")[0]]
    for name in own:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield lambda name: importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        sys.modules.update(own)
        parent.protocol = own[PACKAGE]  # type: ignore[attr-defined]


def _by_value(
    step: Callable[[Any, Any], Any], theirs: type, ours: type, events: ModuleType
) -> Callable[[Any, Any], Any]:
    def stepped(state: Any, event: Any) -> Any:
        given = None if state is None else _copied(state, theirs)
        after, effects = step(given, _copied(event, getattr(events, type(event).__name__)))
        came = None if after is None else _copied(after, ours)
        return came, tuple(_copied(effect, getattr(production_effects, type(effect).__name__)) for effect in effects)

    return stepped


def _copied(value: object, kind: type[ValueT]) -> ValueT:
    return msgspec.convert(msgspec.to_builtins(value), kind)
