"""Exact element encodings. Two encodings of one width are different things: a name here fixes every bit.

To add one: a member, its row in `TRAITS`, its NumPy type in `kernels/reference.py`; a torch type in
`kernels/torch_codec.py` where an engine of ours stores it. The tests then draw it by themselves.
"""

import enum
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import HEAD_SIZE_MAX
from isthmus.state.structs import WireStruct, require

__all__ = [
    "SCALE_MIN",
    "TRAITS",
    "Encoding",
    "Granularity",
    "NibbleOrder",
    "Quant",
    "ScaleLocation",
    "StorageDtype",
    "Traits",
]


SCALE_MIN = 2.0**-126
"""The smallest scale of a quantised row: f32's smallest normal number. A smaller one would be too coarse, or zero."""


class StorageDtype(enum.StrEnum):
    """How one element is stored. Byte order is little-endian throughout; two 4-bit elements share a byte."""

    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    F8_E4M3FN = "f8_e4m3fn"
    F8_E4M3FNUZ = "f8_e4m3fnuz"
    F8_E4M3 = "f8_e4m3"  # IEEE form, with infinities: range +-240, as Gaudi 2 has it
    F8_E5M2 = "f8_e5m2"
    F8_E5M2FNUZ = "f8_e5m2fnuz"
    UE8M0 = "ue8m0"
    E2M1 = "e2m1"
    I8 = "i8"
    I4 = "i4"
    U8 = "u8"  # bytes without a meaning that is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a conversion bound needs to know of an encoding.

    `significand_bits` counts the hidden bit, so half an ulp is at most 2**-significand_bits of the value;
    `smallest_step` is the spacing of subnormals (absolute); `largest` the largest finite value. Integers have no
    range of their own: `largest` is the largest code, and meaning comes from a scale.
    """

    bits: int
    significand_bits: int
    smallest_step: float
    largest: float
    exponent_bits: int

    @property
    def itemsize(self) -> int:
        """Bytes of the unit of addressing: an element, or the byte that holds two 4-bit elements."""
        return max(1, self.bits // 8)

    def size(self, count: int) -> int:
        """Bytes of `count` contiguous elements."""
        return count * self.bits // 8


def _float(bits: int, significand_bits: int, smallest_step: float, largest: float, exponent_bits: int) -> Traits:
    return Traits(
        bits=bits,
        significand_bits=significand_bits,
        smallest_step=smallest_step,
        largest=largest,
        exponent_bits=exponent_bits,
    )


TRAITS: dict[StorageDtype, Traits] = {
    StorageDtype.F32: _float(32, 24, 2.0**-149, float.fromhex("0x1.fffffep127"), 8),
    StorageDtype.BF16: _float(16, 8, 2.0**-133, float.fromhex("0x1.fep127"), 8),
    StorageDtype.F16: _float(16, 11, 2.0**-24, 65504.0, 5),
    StorageDtype.F8_E4M3FN: _float(8, 4, 2.0**-9, 448.0, 4),
    StorageDtype.F8_E4M3FNUZ: _float(8, 4, 2.0**-10, 240.0, 4),
    StorageDtype.F8_E4M3: _float(8, 4, 2.0**-9, 240.0, 4),
    StorageDtype.F8_E5M2: _float(8, 3, 2.0**-16, 57344.0, 5),
    StorageDtype.F8_E5M2FNUZ: _float(8, 3, 2.0**-17, 57344.0, 5),
    StorageDtype.UE8M0: _float(8, 1, 2.0**-127, 2.0**127, 8),
    StorageDtype.E2M1: _float(4, 2, 0.5, 6.0, 2),
    StorageDtype.I8: _float(8, 7, 1.0, 127.0, 0),
    StorageDtype.I4: _float(4, 3, 1.0, 7.0, 0),
    StorageDtype.U8: _float(8, 0, 0.0, 0.0, 0),
}

INTEGERS = (StorageDtype.I8, StorageDtype.I4)
SCALE_DTYPES = (
    StorageDtype.F32,
    StorageDtype.F16,
    StorageDtype.BF16,
    StorageDtype.F8_E4M3FN,
    StorageDtype.UE8M0,
)


class NibbleOrder(enum.StrEnum):
    """Which of two neighbours lies in the low four bits of their byte."""

    LOW_FIRST = "low_first"
    HIGH_FIRST = "high_first"


class Granularity(enum.StrEnum):
    """What shares a scale, K and V apart.

    tensor: a layer. head: a layer's head. channel: a layer's head and element. token_head: a token's head.
    block: `block` neighbouring elements of a token's head.
    """

    TENSOR = "tensor"
    HEAD = "head"
    CHANNEL = "channel"
    TOKEN_HEAD = "token_head"
    BLOCK = "block"


class ScaleLocation(enum.StrEnum):
    """Where scales lie.

    layer_attr: on the engine's layer, out of the pool. inline: in the row. interleaved: each before the elements that
    it scales. segregated: after all rows of the page. side_pool: in a region of their own.
    """

    LAYER_ATTR = "layer_attr"
    INLINE = "inline"
    INTERLEAVED = "interleaved"
    SEGREGATED = "segregated"
    SIDE_POOL = "side_pool"


IN_POOL = (Granularity.TOKEN_HEAD, Granularity.BLOCK)


class Quant(WireStruct, frozen=True, kw_only=True):
    """Quantisation: value = (code - zero) * scale * tensor scale; no zero point and no tensor scale unless said.

    `scale_offset` is the byte in the row where inline scales begin, if not right after the component.
    `scale_row_bytes` is what a token's head takes of scales that lie apart from the row, where that is padded.
    `scale_values` is what is known of scales on the layer: `ones`, a digest of their f32 values, or '' (unknown).
    `tensor_scale` says that one more f32 scale for the layer multiplies (nvfp4); `scale_values` then speaks of it.
    """

    granularity: Granularity
    scale_dtype: StorageDtype
    scale_location: ScaleLocation
    block: Annotated[int, Meta(ge=0, le=HEAD_SIZE_MAX)] = 0
    scale_offset: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    scale_row_bytes: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    scale_values: Annotated[str, Meta(pattern=r"^(ones|[0-9a-f]{16,64})?\Z")] = ""
    tensor_scale: bool = False
    zero_point: bool = False

    def __post_init__(self) -> None:
        require(self.scale_dtype in SCALE_DTYPES, "quant.scale_dtype", self.scale_dtype.value, _names(SCALE_DTYPES))
        require(
            (self.granularity in IN_POOL) == (self.scale_location is not ScaleLocation.LAYER_ATTR),
            "quant.scale_location",
            self.scale_location.value,
            "layer_attr for tensor, head and channel; a place in the pool for token_head and block",
        )
        require(
            (self.block > 0) == (self.granularity is Granularity.BLOCK),
            "quant.block",
            self.block,
            "elements per scale for granularity block, 0 for the others",
        )
        require(
            self.scale_location is not ScaleLocation.INTERLEAVED or self.granularity is Granularity.BLOCK,
            "quant.scale_location",
            self.scale_location.value,
            "interleaved for granularity block only",
        )
        require(
            self.scale_offset is None or self.scale_location is ScaleLocation.INLINE,
            "quant.scale_offset",
            self.scale_offset,
            "nothing unless scale_location is inline",
        )
        require(
            not self.scale_row_bytes or self.scale_location in (ScaleLocation.SEGREGATED, ScaleLocation.SIDE_POOL),
            "quant.scale_row_bytes",
            self.scale_row_bytes,
            "0 unless scales are segregated or in a side_pool",
        )
        static = self.scale_location is ScaleLocation.LAYER_ATTR or self.tensor_scale
        require(static or not self.scale_values, "quant.scale_values", self.scale_values, "'' where no scale is static")
        require(
            not self.tensor_scale or self.granularity in IN_POOL,
            "quant.tensor_scale",
            self.tensor_scale,
            "false where scales lie on the layer anyway",
        )
        require(not self.zero_point, "quant.zero_point", self.zero_point, "false: only symmetric codes are described")

    @property
    def static(self) -> bool:
        """Whether some scale lies on the layer, and so does not travel with the pool's bytes."""
        return self.scale_location is ScaleLocation.LAYER_ATTR or self.tensor_scale


class Encoding(WireStruct, frozen=True, kw_only=True):
    """How the elements of a component are stored. `transform` names what was applied before (a rotation, say)."""

    storage_dtype: StorageDtype
    quant: Quant | None = None
    nibble_order: NibbleOrder = NibbleOrder.LOW_FIRST
    transform: Annotated[str, Meta(pattern=r"^(none|[a-z][a-z0-9_]{0,31}:[A-Za-z0-9_.-]{1,128})\Z")] = "none"

    def __post_init__(self) -> None:
        require(
            self.storage_dtype not in INTEGERS or self.quant is not None,
            "quant",
            None,
            f"a scale for {self.storage_dtype.value}",
        )
        require(
            self.storage_dtype is not StorageDtype.UE8M0, "storage_dtype", "ue8m0", "an element encoding; ue8m0 scales"
        )
        require(
            self.nibble_order is NibbleOrder.LOW_FIRST or self.traits.bits == 4,
            "nibble_order",
            self.nibble_order.value,
            "low_first for elements of a byte and more",
        )

    @property
    def traits(self) -> Traits:
        return TRAITS[self.storage_dtype]

    def scales_per_row(self, count: int) -> int:
        """Scales in the pool for `count` elements of one token and head."""
        if self.quant is None or self.quant.granularity not in IN_POOL:
            return 0
        return -(-count // self.quant.block) if self.quant.block else 1


def _names(dtypes: tuple[StorageDtype, ...]) -> str:
    return ", ".join(dtype.value for dtype in dtypes)
