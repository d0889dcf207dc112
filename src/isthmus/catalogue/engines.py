"""Engines' rules: what the words of an engine's configuration mean."""

from functools import cache

from isthmus.catalogue.data_files import read_data
from isthmus.core.errors import Unsupported
from isthmus.state.encoding import Granularity, StorageDtype
from isthmus.state.representation import Layout
from isthmus.state.structs import WireStruct

__all__ = ["CacheDtype", "EngineRules", "engine_rules"]


class CacheDtype(WireStruct, frozen=True, kw_only=True):
    """What a `kv_cache_dtype` stands for: an encoding, and its scales where it has them."""

    storage_dtype: StorageDtype
    granularity: Granularity | None = None
    scale_dtype: StorageDtype | None = None


class EngineRules(WireStruct, frozen=True, kw_only=True):
    """One engine. `source` says where the rules were read."""

    source: str
    model_types: tuple[str, ...]
    rope_types: tuple[str, ...]
    kv_cache_dtypes: dict[str, CacheDtype]
    layouts: dict[str, Layout]


@cache
def engine_rules(engine: str) -> EngineRules:
    """The rules of an engine by its name.

    Raises:
        Unsupported: it is not in the catalogue.
    """
    found = read_data("engines", EngineRules)
    if engine not in found:
        raise Unsupported(f"engine: {engine!r} is not known; known are {', '.join(sorted(found))}", field="engine")
    return found[engine]
