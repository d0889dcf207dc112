"""Interiors of a head's page, against formulas written out for each of them."""

import pytest

from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import row_at
from tests.strategies import encoding_of

HEADS, TOKENS, BLOCKS = 3, 32, 2


def x_packed(x):
    """K [D/X, N, X], V [D, N]: vLLM's paged attention, ROCM_ATTN."""
    return (
        lambda n, d, size: (d // x * TOKENS + n) * x + d % x,
        lambda n, d, size: d * TOKENS + n,
    )


def shuffled(x):
    """K [D/X, N, X], V [N/X, D, X]: AITER; SGLang's vectorized_5d."""
    return (
        lambda n, d, size: (d // x * TOKENS + n) * x + d % x,
        lambda n, d, size: (n // x * size + d) * x + n % x,
    )


def nz(x):
    """[D/X, N, X] for both: Ascend's FRACTAL_NZ."""
    return (lambda n, d, size: (d // x * TOKENS + n) * x + d % x,) * 2


def vec():
    """K [D, N], V [N, D]: vLLM's CPU attention."""
    return (lambda n, d, size: d * TOKENS + n, lambda n, d, size: n * size + d)


def amx():
    """K [N/16, D/2, 16, 2], V [D/16, N/2, 16, 2]: pairs of elements for K, of tokens for V."""
    return (
        lambda n, d, size: ((n // 16 * (size // 2) + d // 2) * 16 + n % 16) * 2 + d % 2,
        lambda n, d, size: ((d // 16 * (TOKENS // 2) + n // 2) * 16 + d % 16) * 2 + n % 2,
    )


FORMULAS = {
    "x_packed:8": x_packed(8),
    "x_packed:16": x_packed(16),
    "shuffled:8": shuffled(8),
    "shuffled:16": shuffled(16),
    "nz:16": nz(16),
    "isa_packed:vec": vec(),
    "isa_packed:vec16": vec(),
    "isa_packed:amx": amx(),
}


def a_group(interior: str, layout: Layout, order: KvOrder, dtype: str, value: int) -> GroupRepresentation:
    return GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=(0, 4),
        components=attention(heads=HEADS, head_size=32, head_size_v=value, encoding=encoding_of(dtype)),
        block_size=TOKENS,
        layout=layout,
        kv_order=order,
        interior=interior,
    )


def page_of(layout: Layout, layer: int, block: int, head: int) -> int:
    """The number of a head's page, counting pages of one head and one component or row of components."""
    index = {"L": (layer, 2), "B": (block, BLOCKS), "H": (head, HEADS)}
    at = 0
    for axis in layout.value[:-2]:
        at = at * index[axis][1] + index[axis][0]
    return at


@pytest.mark.parametrize("dtype", ["bf16", "f8_e4m3fn"])
@pytest.mark.parametrize("value", [32, 16])
@pytest.mark.parametrize("layout", [layout for layout in Layout if layout.value.endswith("NC")])
@pytest.mark.parametrize("interior", FORMULAS)
def test_a_page_is_arranged_by_its_formula(interior, layout, value, dtype):
    """K's page and then V's in a head's page (packed), and each in a region of its own."""
    size = 2 if dtype == "bf16" else 1
    for order in (KvOrder.PACKED_C, KvOrder.TWO_TENSORS):
        group = a_group(interior, layout, order, dtype, value)
        (shards,) = KVRepresentation(groups=(group,), partition=Partition()).address()
        for name, count, formula in zip(("key", "value"), (32, value), FORMULAS[interior], strict=True):
            field = shards[0].field(name)
            whole = TOKENS * ((32 + value) if order is KvOrder.PACKED_C else count)
            first = TOKENS * 32 if (order, name) == (KvOrder.PACKED_C, "value") else 0
            for layer, block, head, token in ((0, 0, 0, 0), (0, 1, 2, 31), (1, 1, 1, 17), (1, 0, 2, 5)):
                start = page_of(layout, layer, block, head) * whole + first
                wanted = [(start + formula(token, d, count)) * size + b for d in range(count) for b in range(size)]
                assert row_at(field, BLOCKS, layer, block, token, head).tolist() == wanted


def test_slots_of_k_and_of_v_may_be_packed_inside():
    """vllm 0.33.0, rocm_attn.py: all heads of K, then all heads of V, in one block."""
    group = a_group("x_packed:8", Layout.LBHNC, KvOrder.TWO_SLOTS, "bf16", 32)
    (shards,) = KVRepresentation(groups=(group,), partition=Partition()).address()
    for which, name in enumerate(("key", "value")):
        page = (1 * 2 * HEADS + which * HEADS + 2) * TOKENS * 32
        wanted = [(page + FORMULAS["x_packed:8"][which](7, d, 32)) * 2 + b for d in range(32) for b in range(2)]
        assert row_at(shards[0].field(name), BLOCKS, 0, 1, 7, 2).tolist() == wanted


def test_what_an_interior_stands_for_is_refused_where_it_cannot_be():
    for interior, fields, named in (
        ("x_packed:8", {"layout": Layout.LBNHC}, "layout"),
        ("nz:16", {"row_bytes": 128, "kv_order": KvOrder.PACKED_C}, "layout"),
        ("x_packed:8", {"dtype": "e2m1"}, "interior"),
        ("x_packed:5", {}, "interior"),
    ):
        layout, order = fields.pop("layout", Layout.LBHNC), fields.pop("kv_order", KvOrder.PACKED_C)
        group = a_group("row", layout, order, fields.pop("dtype", "bf16"), 32)
        with pytest.raises(ValueError, match=f"^{named}: got"):
            KVRepresentation(groups=(_with(group, interior=interior, **fields),), partition=Partition())


def _with(group: GroupRepresentation, **fields) -> GroupRepresentation:
    return GroupRepresentation(**{name: getattr(group, name) for name in group.__struct_fields__} | fields)
