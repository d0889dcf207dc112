"""Random representations, all that can be described, and the pools and block tables that go with them.

A shape is what two sides must share; a side is everything else that a worker may configure. Combinations that no
engine could have are dropped by the types' own checks (`valid`), so few of them are drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from isthmus.state.encoding import TRAITS, Encoding, Granularity, NibbleOrder, Quant, ScaleLocation, StorageDtype
from isthmus.state.fields import ShardAddressing
from isthmus.state.partition import Partition
from isthmus.state.representation import STATE_KINDS, Component, GroupKind, GroupRepresentation, KvOrder, Layout
from isthmus.state.runtime_kv_state import KVRepresentation

T = TypeVar("T")
POISON = 0xA5

ELEMENTS = tuple(dtype for dtype in StorageDtype if dtype not in (StorageDtype.UE8M0, StorageDtype.U8))
"""Encodings of elements; `ue8m0` is one of scales, and `u8` says that nobody knows the meaning."""
SCALES = (StorageDtype.F32, StorageDtype.F16, StorageDtype.BF16, StorageDtype.F8_E4M3FN, StorageDtype.UE8M0)
DIGESTS = ("ab" * 8, "cd" * 16)
ON_LAYER = (Granularity.TENSOR, Granularity.HEAD, Granularity.CHANNEL)
ATTENTION_KINDS = (
    GroupKind.FULL_ATTENTION,
    GroupKind.SLIDING_WINDOW,
    GroupKind.CHUNKED_LOCAL,
    GroupKind.CROSS,
    GroupKind.SINK,
    GroupKind.DRAFT,
)
ROWS_TOGETHER = (Layout.LBNHC, Layout.LBHNC, Layout.BLNHC, Layout.BLHNC)
TOKENS_INNERMOST = tuple(layout for layout in Layout if layout.value.endswith("NC"))


def quant_of(granularity: str, location: str, scale_dtype: str = "f32", **fields) -> Quant:
    """A quantisation by its names."""
    return Quant(
        granularity=Granularity(granularity),
        scale_location=ScaleLocation(location),
        scale_dtype=StorageDtype(scale_dtype),
        **fields,
    )


def encoding_of(dtype: str, quant: Quant | None = None, **fields) -> Encoding:
    """An encoding by its names."""
    return Encoding(storage_dtype=StorageDtype(dtype), quant=quant, **fields)


EMBEDDED_ENCODINGS = tuple(
    [encoding_of(name) for name in ("f32", "bf16", "f16", "f8_e4m3fn")]
    + [encoding_of("i8", quant_of("token_head", place)) for place in ("inline", "side_pool", "segregated")]
)
"""What torch executes, and the embedded engine stores."""


@dataclass(frozen=True)
class Part:
    """A component's name, heads, count and transform."""

    name: str
    heads: int
    count: int
    transform: str = "none"


@dataclass(frozen=True)
class Shape:
    """The fields that both sides of a pair must share."""

    kind: GroupKind
    layers: tuple[int, ...]
    parts: tuple[Part, ...]
    tokens_per_state: int = 1


def valid(make: Callable[[], T]) -> T:
    """What `make` makes, or another example where its fields do not fit each other."""
    try:
        return make()
    except ValueError:
        assume(False)
        raise


@st.composite
def layers_of(draw) -> tuple[int, ...]:
    """One to three layers of six, with gaps."""
    return tuple(sorted(draw(st.sets(st.integers(0, 5), min_size=1, max_size=3))))


@st.composite
def shapes(draw, kinds: tuple[GroupKind, ...] = tuple(GroupKind)) -> Shape:
    kind, layers = draw(st.sampled_from(kinds)), draw(layers_of())
    transform = draw(st.sampled_from(["none", "none", "none", "hadamard:32"]))
    if kind in STATE_KINDS:
        taps = draw(st.sampled_from([2, 4]))
        sections = draw(st.integers(1, 3))
        heads = [draw(st.sampled_from([1, 2])) for _ in range(sections + 1)]
        channels = [draw(st.integers(1, 3)) for _ in range(sections)]
        names = ("conv_x", "conv_b", "conv_c")[:sections]
        parts = [Part(n, h, taps * c) for n, h, c in zip(names, heads, channels, strict=False)]
        return Shape(kind, layers, (*parts, Part("ssm", heads[-1], draw(st.sampled_from([2, 8, 12])))))
    if kind in (GroupKind.MLA, GroupKind.SLIDING_WINDOW_MLA):
        latent, rope = draw(st.sampled_from([(8, 4), (16, 8), (16, 4), (32, 8)]))
        return Shape(kind, layers, (Part("latent", 1, latent, transform), Part("rope", 1, rope)))
    if kind is GroupKind.INDEXER:
        count = draw(st.sampled_from([4, 16]))
        return Shape(kind, layers, (Part("index_key", 1, count),), draw(st.sampled_from([1, 1, 2, 4])))
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    size = draw(st.sampled_from([2, 4, 8, 16]))
    size_v = draw(st.sampled_from([size, size, size, 4]))
    parts = (Part("key", heads, size, transform), Part("value", heads, size_v))
    return Shape(kind, layers, parts, draw(st.sampled_from([1, 1, 1, 2])))


@st.composite
def quants(draw, count: int, bits: int, places: tuple[ScaleLocation, ...]) -> Quant:
    """Any quantisation of `count` elements whose scales, where they are in the pool, may lie in `places`."""
    granularity = draw(
        st.sampled_from([*ON_LAYER, *[Granularity.TOKEN_HEAD, *[Granularity.BLOCK] * 2] * 2 * bool(places)])
    )
    scale_dtype = draw(st.sampled_from(SCALES))
    if granularity in ON_LAYER:
        values = draw(st.sampled_from(["ones", *DIGESTS]))
        return quant_of(granularity, ScaleLocation.LAYER_ATTR, scale_dtype, scale_values=values)
    if granularity is Granularity.TOKEN_HEAD:
        places = tuple(place for place in places if place is not ScaleLocation.INTERLEAVED)
        assume(places)
    place, block = draw(st.sampled_from(places)), 0
    if granularity is Granularity.BLOCK:
        blocks = [1, 2, 3, 4, 16]
        if place is ScaleLocation.INTERLEAVED:
            blocks = [size for size in (2, 4, 8) if count % size == 0 and size * bits % 8 == 0]
            assume(blocks)
        block = draw(st.sampled_from(blocks))
    fields = {}
    if place in (ScaleLocation.SEGREGATED, ScaleLocation.SIDE_POOL):
        fields["scale_row_bytes"] = draw(st.sampled_from([0, 0, 8, 70]))
    if draw(st.integers(0, 4)) == 0:
        fields |= {"tensor_scale": True, "scale_values": draw(st.sampled_from(["ones", *DIGESTS]))}
    return quant_of(granularity, place, scale_dtype, block=block, **fields)


@st.composite
def encodings(draw, part: Part, places: tuple[ScaleLocation, ...] = ()) -> Encoding:
    """Any encoding of a component, known scales and all."""
    dtype = draw(st.sampled_from([d for d in ELEMENTS if part.count * TRAITS[d].bits % 8 == 0]))
    bits, quant = TRAITS[dtype].bits, None
    if dtype in (StorageDtype.I8, StorageDtype.I4) or draw(st.booleans()):
        quant = draw(quants(part.count, bits, places))
    order = draw(st.sampled_from(NibbleOrder)) if bits == 4 else NibbleOrder.LOW_FIRST
    return Encoding(storage_dtype=dtype, quant=quant, nibble_order=order, transform=part.transform)


def places_for(layout: Layout, interior: str, part: Part) -> tuple[ScaleLocation, ...]:
    """Where a component's scales may lie."""
    if part.name.startswith("conv_"):
        return ()
    if interior != "row" and not interior.startswith("conv_sd"):
        return (ScaleLocation.SIDE_POOL,)
    apart = (ScaleLocation.SEGREGATED,) if layout in ROWS_TOGETHER else ()
    return (ScaleLocation.INLINE, ScaleLocation.INTERLEAVED, ScaleLocation.SIDE_POOL, *apart)


@st.composite
def arrangements(draw, shape: Shape) -> tuple[KvOrder, Layout, str]:
    """An order of components, a layout, and an interior that goes with both."""
    heads = {part.heads for part in shape.parts}
    together = [KvOrder.PACKED_C] if len(heads) == 1 else []
    alike = len({part.count for part in shape.parts}) == len(heads) == 1
    orders = [KvOrder.TWO_SLOTS, KvOrder.TWO_TENSORS, *together, *together]
    kv_order = draw(st.sampled_from(orders + [KvOrder.KV_OUTER, KvOrder.KV_OUTERMOST] * alike))
    interiors = ["row"]
    if shape.kind in STATE_KINDS:
        taps = math.gcd(*(part.count for part in shape.parts if part.name != "ssm"))
        interiors += [f"conv_sd:{taps}"] * (kv_order is KvOrder.TWO_SLOTS and taps > 0)
    elif shape.kind is not GroupKind.INDEXER:
        packs = [f"{name}:{x}" for name in ("x_packed", "shuffled", "nz") for x in (2, 4)]
        interiors = ["row"] * 8 + packs + ["isa_packed:vec", "isa_packed:vec16"]
        interiors += ["isa_packed:amx"] * all(part.count % 16 == 0 for part in shape.parts)
    interior = draw(st.sampled_from(interiors))
    layouts = list(Layout)
    if interior.startswith("conv_sd"):
        layouts = list(ROWS_TOGETHER)
    elif interior != "row":
        layouts = list(TOKENS_INNERMOST)
    return kv_order, draw(st.sampled_from(layouts)), interior


@st.composite
def groups(draw, shape: Shape) -> GroupRepresentation:
    """One side's group: everything but the shape."""
    kv_order, layout, interior = draw(arrangements(shape))
    chosen: list[Encoding] = []
    for part in shape.parts:
        places = places_for(layout, interior, part)
        own = draw(encodings(part, places))
        if interior.startswith("conv_sd") and part.name.startswith("conv_"):
            own = encoding_of("bf16", transform=part.transform)
        same = chosen and (kv_order.value.startswith("kv_outer") or draw(st.integers(0, 3)))
        chosen.append(msgspec.structs.replace(chosen[0], transform=part.transform) if same else own)
    parts = [
        valid(lambda p=part, e=encoding: _component(draw, p, e))
        for part, encoding in zip(shape.parts, chosen, strict=True)
    ]
    fields: dict[str, object] = {}
    if kv_order is KvOrder.PACKED_C and interior == "row":
        if draw(st.booleans()):
            parts, fields["row_bytes"] = _offsets(draw, parts)
        if draw(st.integers(0, 3)) == 0:
            parts = parts[::-1]
    if draw(st.integers(0, 5)) == 0:
        fields["page_size_padded"] = _more_than_a_page(parts, shape) + draw(st.integers(0, 9))
    block_size = 1 if shape.kind in STATE_KINDS else draw(st.integers(1, 6))
    if interior.startswith("shuffled") or interior.endswith("amx"):
        block_size = 16 if interior.endswith("amx") else int(interior[-1]) * draw(st.integers(1, 2))
    if "sliding" in shape.kind.value:
        fields["sliding_window"] = draw(st.sampled_from([0, 1, 5, 9]))
    return valid(
        lambda: GroupRepresentation(
            kind=shape.kind,
            layers=shape.layers,
            components=tuple(parts),
            block_size=block_size,
            layout=layout,
            kv_order=kv_order,
            interior=interior,
            tokens_per_state=shape.tokens_per_state,
            **fields,
        )
    )


def _component(draw, part: Part, encoding: Encoding) -> Component:
    order = "model"
    if part.name in ("key", "rope") and encoding.traits.bits >= 8 and draw(st.integers(0, 4)) == 0:
        order = "rope_pairs"
    return Component(name=part.name, heads=part.heads, count=part.count, encoding=encoding, element_order=order)


def _offsets(draw, parts: list[Component]) -> tuple[list[Component], int]:
    """Components with offsets in a packed row, in any order and with gaps, and the row's bytes."""
    at, placed = 0, {}
    for part in draw(st.permutations(parts)):
        at += draw(st.integers(0, 3))
        quant = part.encoding.quant
        inside = quant is not None and quant.scale_location in (ScaleLocation.INLINE, ScaleLocation.INTERLEAVED)
        codes = part.encoding.traits.size(part.count)
        placed[part.name], start = msgspec.structs.replace(part, offset=at), at
        at += part.row_bytes if inside else codes
        if inside and quant.scale_location is ScaleLocation.INLINE and draw(st.booleans()):
            gap = draw(st.integers(0, 4))
            moved = msgspec.structs.replace(quant, scale_offset=start + codes + gap)
            encoding = msgspec.structs.replace(part.encoding, quant=moved)
            placed[part.name] = msgspec.structs.replace(placed[part.name], encoding=encoding)
            at += gap
    return [placed[part.name] for part in parts], at + draw(st.integers(0, 3))


def _more_than_a_page(parts: list[Component], shape: Shape) -> int:
    quants_ = [part.encoding.quant for part in parts]
    rows = sum(part.heads * (part.row_bytes + 80 * (q is not None)) for part, q in zip(parts, quants_, strict=True))
    return (rows + 64 * max(part.heads for part in parts)) * 16 * len(shape.layers)


@st.composite
def partitions(draw, group: GroupRepresentation) -> Partition:
    """Ranks that divide the heads or repeat them, stages anywhere, tokens dealt where heads are repeated."""
    heads = {part.heads for part in group.components}
    fitting = [n for n in (1, 1, 1, 2, 3, 4, 6, 8) if all(h % n == 0 or n % h == 0 for h in heads)]
    tp_size = draw(st.sampled_from(fitting))
    starts = draw(st.sets(st.integers(1, 6), max_size=2)) if draw(st.integers(0, 2)) == 0 else ()
    fields = {}
    dealt = [n for n in (2, 3, 4) if all(tp_size % (h * n) == 0 for h in heads)]
    if dealt and group.kind not in STATE_KINDS and draw(st.booleans()):
        divisors = [n for n in range(1, group.block_size + 1) if group.block_size % n == 0]
        fields = {"dcp_size": draw(st.sampled_from(dealt)), "dcp_interleave": draw(st.sampled_from(divisors))}
    return Partition(tp_size=tp_size, pp_starts=(0, *sorted(starts)), **fields)


@st.composite
def sides(draw, shape: Shape) -> KVRepresentation:
    """One side of one layer group."""
    group = draw(groups(shape))
    partition = draw(partitions(group))
    return valid(lambda: KVRepresentation(groups=(group,), partition=partition))


@st.composite
def pairs(draw, kinds: tuple[GroupKind, ...] = tuple(GroupKind)) -> tuple[KVRepresentation, KVRepresentation]:
    """Two sides of one shape; sometimes all but one thing alike."""
    shape = draw(shapes(kinds))
    one = draw(sides(shape))
    if draw(st.integers(0, 3)):
        return one, draw(sides(shape))
    (group,) = one.groups
    partition = draw(st.one_of(st.just(one.partition), partitions(group)))
    if draw(st.booleans()):
        group = msgspec.structs.replace(group, layout=draw(st.sampled_from(Layout)))
    return one, valid(lambda: KVRepresentation(groups=(valid(lambda: group),), partition=partition))


@st.composite
def embedded_shapes(draw) -> Shape:
    size = draw(st.sampled_from([1, 2, 3, 8, 16]))
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    return Shape(GroupKind.FULL_ATTENTION, draw(layers_of()), (Part("key", heads, size), Part("value", heads, size)))


@st.composite
def embedded_sides(draw, shape: Shape) -> KVRepresentation:
    """One side that the embedded engine may have."""
    encoding = draw(st.sampled_from(EMBEDDED_ENCODINGS))
    group = valid(
        lambda: GroupRepresentation(
            kind=shape.kind,
            layers=shape.layers,
            components=tuple(
                Component(name=part.name, heads=part.heads, count=part.count, encoding=encoding) for part in shape.parts
            ),
            block_size=draw(st.integers(1, 7)),
            layout=draw(st.sampled_from(Layout)),
            kv_order=draw(st.sampled_from(KvOrder)),
        )
    )
    heads = shape.parts[0].heads
    tp_size = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    return valid(lambda: KVRepresentation(groups=(group,), partition=Partition(tp_size=tp_size)))


@st.composite
def embedded_pairs(draw) -> tuple[KVRepresentation, KVRepresentation]:
    shape = draw(embedded_shapes())
    return draw(embedded_sides(shape)), draw(embedded_sides(shape))


def empty_regions(shards: tuple[ShardAddressing, ...], num_blocks: int) -> list[list[np.ndarray]]:
    """Flat regions by [shard][region], filled with a byte that no test writes on purpose."""
    return [
        [np.full(region.size_bytes(num_blocks), POISON, dtype=np.uint8) for region in shard.regions] for shard in shards
    ]


def block_table(rng: np.random.Generator, tokens: int, block_size: int, num_blocks: int) -> list[int]:
    """Enough distinct blocks for `tokens`, in random order."""
    return [int(block) for block in rng.permutation(num_blocks)[: -(-tokens // block_size)]]
