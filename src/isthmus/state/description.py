"""What one side of a hand-off is: an engine on an accelerator, its identity and its representation.

`isthmus describe` writes one; `isthmus check` takes two.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.core.limits import LAYER_GROUPS_MAX
from isthmus.state.assumption import Assumption
from isthmus.state.identity import Identity
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.structs import Name, WireStruct

__all__ = ["Description"]


class Description(WireStruct, frozen=True, kw_only=True):
    """One side. `attn_backends` (one a group) and `kv_cache_dtype` are the engine's own words, `dtype` what it runs in.

    `assumed` is what the launch line did not say.
    """

    engine: Name
    engine_version: Name
    accelerator: Name
    model: Name
    attn_backends: Annotated[tuple[str, ...], Meta(max_length=LAYER_GROUPS_MAX)]
    kv_cache_dtype: str
    dtype: str
    identity: Identity
    representation: KVRepresentation
    assumed: tuple[Assumption, ...] = ()
    environment: dict[str, str] = msgspec.field(default_factory=dict)
