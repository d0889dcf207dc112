"""Representation: how one layer group's KV is laid out and encoded. Names are vLLM's (`kv_cache_layout.py`, 0.33).

`layout` orders the axes L (layer), B (block), H (head), N (token in block) around the content C of one row. What vLLM
calls NHD is LBNHC, HND is LBHNC, and the block-outermost cross-layer forms are BLNHC and BLHNC. `kv_order` says where
K and V lie with respect to each other:

    packed_c     one row holds K's content, then V's               (fused)
    two_slots    H counts 2 * heads slots: all K heads, then all V (fused)
    kv_outer     an axis of two just inside L: K, then V           (one tensor, as [layer, 2, block, ...])
    two_tensors  K and V are separate regions                      (separate)
"""

import enum
from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import BLOCK_SIZE_TOKENS_MAX, HEAD_SIZE_MAX, HEADS_MAX, LAYERS_MAX, TP_SIZE_MAX
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.structs import WireStruct, require

__all__ = ["GroupKind", "GroupRepresentation", "KvOrder", "Layout", "Partition", "Quant", "ScaleLocation"]


class GroupKind(enum.StrEnum):
    """Kind of a layer group (vLLM `KVCacheGroupSpec`)."""

    FULL_ATTENTION = "full_attention"


class Layout(enum.StrEnum):
    """Axis order, outermost first."""

    LBNHC = "LBNHC"
    LBHNC = "LBHNC"
    LHBNC = "LHBNC"
    BLNHC = "BLNHC"
    BLHNC = "BLHNC"
    BHLNC = "BHLNC"


class KvOrder(enum.StrEnum):
    """Where V lies with respect to K."""

    PACKED_C = "packed_c"
    TWO_SLOTS = "two_slots"
    KV_OUTER = "kv_outer"
    TWO_TENSORS = "two_tensors"


class ScaleLocation(enum.StrEnum):
    """Where quantisation scales lie: after each row's elements, or in a region of their own."""

    INLINE = "inline"
    SIDE_POOL = "side_pool"


class Quant(WireStruct, frozen=True, kw_only=True):
    """Symmetric quantisation: value = code * scale. One scale per token and head, K and V apart."""

    granularity: Annotated[str, Meta(pattern=r"^token_head\Z")]
    scale_dtype: StorageDtype
    scale_location: ScaleLocation

    def __post_init__(self) -> None:
        require(self.scale_dtype is StorageDtype.F32, "quant.scale_dtype", self.scale_dtype.value, "f32")


class GroupRepresentation(WireStruct, frozen=True, kw_only=True):
    """One layer group. Sizes are of the whole group over all shards; `num_kv_heads` is the model's."""

    kind: GroupKind
    layer_start: int
    layer_stop: int
    num_kv_heads: int
    head_size: int
    head_size_v: int
    block_size: int
    layout: Layout
    kv_order: KvOrder
    storage_dtype: StorageDtype
    quant: Quant | None = None
    interior: Annotated[str, Meta(pattern=r"^row\Z")] = "row"

    def __post_init__(self) -> None:
        require(
            0 <= self.layer_start < self.layer_stop <= LAYERS_MAX,
            "layer_start, layer_stop",
            (self.layer_start, self.layer_stop),
            f"0 <= start < stop <= {LAYERS_MAX}",
        )
        require(1 <= self.num_kv_heads <= HEADS_MAX, "num_kv_heads", self.num_kv_heads, f"1 to {HEADS_MAX}")
        require(1 <= self.head_size <= HEAD_SIZE_MAX, "head_size", self.head_size, f"1 to {HEAD_SIZE_MAX}")
        require(1 <= self.head_size_v <= HEAD_SIZE_MAX, "head_size_v", self.head_size_v, f"1 to {HEAD_SIZE_MAX}")
        require(
            1 <= self.block_size <= BLOCK_SIZE_TOKENS_MAX,
            "block_size",
            self.block_size,
            f"1 to {BLOCK_SIZE_TOKENS_MAX} tokens",
        )
        integer = self.storage_dtype is StorageDtype.I8
        require(
            integer == (self.quant is not None),
            "quant",
            None if self.quant is None else self.quant.granularity,
            "a scale for i8, and none for floating-point encodings",
        )
        if self.kv_order in (KvOrder.TWO_SLOTS, KvOrder.KV_OUTER):
            require(
                self.head_size == self.head_size_v,
                "kv_order",
                self.kv_order.value,
                "packed_c or two_tensors where head_size and head_size_v differ",
            )

    @property
    def num_layers(self) -> int:
        return self.layer_stop - self.layer_start

    @property
    def bytes_per_token(self) -> int:
        """KV bytes one token takes in this group, scales included, over all shards."""
        elements = self.head_size + self.head_size_v
        scales = 2 * TRAITS[self.quant.scale_dtype].itemsize if self.quant is not None else 0
        return self.num_layers * self.num_kv_heads * (elements * TRAITS[self.storage_dtype].itemsize + scales)


class Partition(WireStruct, frozen=True, kw_only=True):
    """How heads are cut into shards: `tp_size` shards, shard r holds heads [r*h, (r+1)*h), h = num_kv_heads/tp_size.

    When `tp_size` exceeds the heads, heads are replicated; that is not expressed yet and is refused by addressing.
    """

    tp_size: int = 1

    def __post_init__(self) -> None:
        require(1 <= self.tp_size <= TP_SIZE_MAX, "tp_size", self.tp_size, f"1 to {TP_SIZE_MAX}")
