"""Representation: how one layer group's KV is laid out and encoded. Names are vLLM's (`kv_cache_layout.py`, 0.33).

`layout` orders the axes L (layer), B (block), H (head), N (token in block) around the content C of one row. What vLLM
calls NHD is LBNHC, HND is LBHNC, and the block-outermost cross-layer forms are BLNHC and BLHNC. A group's components
(key and value; latent and rope; the sections of a convolution's state) are arranged by `kv_order`:

    packed_c      one row holds all components, one after another                         (fused)
    two_slots     H counts slots: all heads of the first component, then all of the next  (fused)
    kv_outer      an axis over the components just inside L, as [layer, 2, block, ...]
    kv_outermost  an axis over the components just outside L, as [2, layer, token, ...]
    two_tensors   each component in a region of its own                                   (separate)
"""

import enum
from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import (
    BLOCK_SIZE_TOKENS_MAX,
    COMPONENTS_MAX,
    HEAD_SIZE_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    PAGE_BYTES_MAX,
    TOKENS_PER_REQUEST_MAX,
    TOKENS_PER_STATE_MAX,
)
from isthmus.core.units import BlockCount
from isthmus.state.encoding import TRAITS, Encoding, ScaleLocation
from isthmus.state.identity import TokenRange
from isthmus.state.interior import Interior, interior_kind
from isthmus.state.structs import WireStruct, require

__all__ = [
    "FIELD_NAMES",
    "STATE_KINDS",
    "Component",
    "GroupKind",
    "GroupRepresentation",
    "KvOrder",
    "Layout",
    "attention",
]

COMPONENT_NAMES = ("key", "value", "latent", "rope", "index_key", "conv_x", "conv_b", "conv_c", "ssm")

FIELD_NAMES = (
    "key", "value", "key_scale", "value_scale", "latent", "rope", "latent_scale", "rope_scale",
    "index_key", "index_key_scale", "conv_x", "conv_b", "conv_c", "ssm", "ssm_scale",
)  # fmt: skip
"""Fields of a row in their fixed order; the index is part of the logical digest's position."""


class GroupKind(enum.StrEnum):
    """Kind of a layer group (vLLM `KVCacheGroupSpec`)."""

    FULL_ATTENTION = "full_attention"
    SLIDING_WINDOW = "sliding_window"
    CHUNKED_LOCAL = "chunked_local"
    MLA = "mla"
    SLIDING_WINDOW_MLA = "sliding_window_mla"
    INDEXER = "indexer"
    MAMBA = "mamba"
    GDN = "gdn"
    CROSS = "cross"
    SINK = "sink"
    DRAFT = "draft"


STATE_KINDS = (GroupKind.MAMBA, GroupKind.GDN)
"""Kinds that keep one state for all tokens so far, and not a row for each."""


class Layout(enum.StrEnum):
    """Axis order, outermost first."""

    LBNHC = "LBNHC"
    LBHNC = "LBHNC"
    LHBNC = "LHBNC"
    BLNHC = "BLNHC"
    BLHNC = "BLHNC"
    BHLNC = "BHLNC"


class KvOrder(enum.StrEnum):
    """Where a group's components lie with respect to each other."""

    PACKED_C = "packed_c"
    TWO_SLOTS = "two_slots"
    KV_OUTER = "kv_outer"
    KV_OUTERMOST = "kv_outermost"
    TWO_TENSORS = "two_tensors"


class Component(WireStruct, frozen=True, kw_only=True):
    """One named part of a row: `count` elements for each of the model's `heads`.

    `offset` is its byte in a packed row, where it does not follow the one before it. `element_order` `rope_pairs` says
    that the two elements which RoPE turns together are neighbours, where the model has them half a head apart
    (llama.cpp permutes the weights of Llama models so).
    """

    name: Annotated[str, Meta(pattern=f"^({'|'.join(COMPONENT_NAMES)})\\Z")]
    heads: int
    count: int
    encoding: Encoding
    offset: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    element_order: Annotated[str, Meta(pattern=r"^(model|rope_pairs)\Z")] = "model"

    def __post_init__(self) -> None:
        require(
            self.element_order == "model" or (self.count % 2 == 0 and self.encoding.traits.bits >= 8),
            "element_order",
            self.element_order,
            "model, for an odd count or 4-bit elements",
        )
        require(1 <= self.heads <= HEADS_MAX, "heads", self.heads, f"1 to {HEADS_MAX}")
        # A state's row is a whole head's matrix, which is larger than any head of attention.
        most = HEAD_SIZE_MAX * (HEAD_SIZE_MAX if self.name in ("ssm", "conv_x", "conv_b", "conv_c") else 1)
        require(1 <= self.count <= most, "count", self.count, f"1 to {most}")
        bits = self.encoding.traits.bits
        require(self.count * bits % 8 == 0, "count", self.count, f"an even number of {bits}-bit elements")
        quant = self.encoding.quant
        in_pool = self.encoding.scales_per_row(self.count) > 0
        require(
            not in_pool or f"{self.name}_scale" in FIELD_NAMES, "quant", self.name, "a component that may have scales"
        )
        if quant is not None and quant.scale_location is ScaleLocation.INTERLEAVED:
            require(
                self.count % quant.block == 0 and quant.block * bits % 8 == 0,
                "quant.block",
                quant.block,
                f"a divisor of count = {self.count}, of whole bytes",
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one token and head, scales that lie in the pool included."""
        quant = self.encoding.quant
        scales = 0 if quant is None else TRAITS[quant.scale_dtype].size(self.encoding.scales_per_row(self.count))
        return self.encoding.traits.size(self.count) + scales


class GroupRepresentation(WireStruct, frozen=True, kw_only=True):
    """One layer group over all shards; `layers` are the model's layer numbers, `heads` of components the model's.

    `row_bytes` and `page_size_padded` say where there is padding (0: none): after a packed row's fields, and after a
    page (what a block holds of one layer, or less where heads lie outside blocks). `sliding_window` > 0 says that
    only the tokens need be there that the next one looks at: the window, less itself. A row stands for
    `tokens_per_state` tokens.
    """

    kind: GroupKind
    layers: Annotated[tuple[int, ...], Meta(min_length=1, max_length=LAYERS_MAX)]
    components: Annotated[tuple[Component, ...], Meta(min_length=1, max_length=COMPONENTS_MAX)]
    block_size: int
    layout: Layout
    kv_order: KvOrder
    interior: Interior = "row"
    row_bytes: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    page_size_padded: Annotated[int, Meta(ge=0, le=PAGE_BYTES_MAX)] = 0
    sliding_window: Annotated[int, Meta(ge=0, le=TOKENS_PER_REQUEST_MAX)] = 0
    tokens_per_state: Annotated[int, Meta(ge=1, le=TOKENS_PER_STATE_MAX)] = 1

    def __post_init__(self) -> None:
        layers = self.layers
        require(
            layers[0] >= 0 and layers[-1] < LAYERS_MAX and all(map(int.__lt__, layers, layers[1:])),
            "layers",
            layers,
            f"ascending layer numbers below {LAYERS_MAX}",
        )
        require(
            1 <= self.block_size <= BLOCK_SIZE_TOKENS_MAX,
            "block_size",
            self.block_size,
            f"1 to {BLOCK_SIZE_TOKENS_MAX} tokens",
        )
        names = [component.name for component in self.components]
        require(len(set(names)) == len(names), "components", names, "each name once")
        rows = {component.row_bytes for component in self.components}
        heads = {component.heads for component in self.components}
        if self.kv_order in (KvOrder.KV_OUTER, KvOrder.KV_OUTERMOST):
            require(
                len(rows) == len(heads) == 1,
                "kv_order",
                self.kv_order.value,
                "two_tensors, two_slots or packed_c where components differ in heads or in row bytes",
            )
        if self.kv_order is KvOrder.PACKED_C:
            require(len(heads) == 1, "components", sorted(heads), "the same heads for all components of a packed row")
        require(
            not self.row_bytes or self.kv_order is KvOrder.PACKED_C, "row_bytes", self.row_bytes, "0 unless packed_c"
        )
        require(
            self.kind not in STATE_KINDS or self.block_size == 1,
            "block_size",
            self.block_size,
            f"1 for kind {self.kind.value}: a block holds a state",
        )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        return max(component.heads for component in self.components)

    @property
    def opaque(self) -> bool:
        return interior_kind(self.interior) == "opaque"

    def component(self, name: str) -> Component:
        """The component of that name. Raises KeyError."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    @property
    def bytes_per_token(self) -> float:
        """KV bytes one token takes in this group, scales included, once (replicas not counted); 0 for states."""
        if self.kind in STATE_KINDS:
            return 0.0
        row = sum(component.heads * component.row_bytes for component in self.components)
        return self.num_layers * max(row, self.num_kv_heads * self.row_bytes) / self.tokens_per_state

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes one sequence takes whatever its length: a state's."""
        if self.kind not in STATE_KINDS:
            return 0
        return self.num_layers * sum(component.heads * component.row_bytes for component in self.components)

    def held(self, tokens: TokenRange) -> TokenRange:
        """The rows of a range that must be there, as a range of rows: a window's last ones, one for a state."""
        start, stop = self._rows(tokens.start, tokens.stop)
        return TokenRange(start=start, stop=stop)

    def blocks_of(self, start: int, stop: int, ranks: int) -> BlockCount:
        """How many blocks hold those rows of the tokens [start, stop), dealt to `ranks`."""
        first, end = self._rows(start, stop)
        span = self.block_size * ranks
        return BlockCount(-(-end // span) - first // span)

    def _rows(self, start: int, stop: int) -> tuple[int, int]:
        if self.kind in STATE_KINDS:
            return 0, 1
        if self.sliding_window:  # the next token looks at itself and at one token less than the window
            start = max(start, stop - max(1, self.sliding_window - 1))
        each = self.tokens_per_state
        if each == 1:
            return min(start, stop - 1), stop
        return min(start // each, (stop - 1) // each), -(-stop // each)


def attention(*, heads: int, head_size: int, head_size_v: int, encoding: Encoding) -> tuple[Component, ...]:
    """The components of an attention group whose K and V are stored alike."""
    return (
        Component(name="key", heads=heads, count=head_size, encoding=encoding),
        Component(name="value", heads=heads, count=head_size_v, encoding=encoding),
    )
