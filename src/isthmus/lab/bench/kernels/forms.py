"""The pairs that the bench measures: named, compiled by the real compiler, lowered, written down as `cases.json`.

Run as `python -m isthmus.lab.bench.kernels.forms` to write them anew; a test holds the file against this.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from isthmus.kernels.lowering import lower
from isthmus.lab.bench.kernels.cases import CASES_PATH
from isthmus.portability.compiler import compile_plans
from isthmus.state.encoding import Encoding, Granularity, Quant, ScaleLocation, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["PAIRS", "as_json"]

LAYERS, HEADS, HEAD_SIZE = 32, 8, 128
UNKNOWN_SCALES = "5ca1e5" * 4


@dataclass(frozen=True, slots=True)
class Pair:
    """Two forms, and the ratio to copy that is wanted on a GPU and on one core of a CPU."""

    name: str
    producer: KVRepresentation
    consumer: KVRepresentation
    gpu: float
    cpu: float


def _encoding(dtype: StorageDtype, granularity: Granularity | None = None, **quant: Any) -> Encoding:
    if granularity is None:
        return Encoding(storage_dtype=dtype)
    fields = {"scale_dtype": StorageDtype.F32, "scale_location": ScaleLocation.LAYER_ATTR} | quant
    return Encoding(storage_dtype=dtype, quant=Quant(granularity=granularity, **fields))


def _attention(
    encoding: Encoding,
    layout: Layout = Layout.LBNHC,
    block_size: int = 16,
    tp_size: int = 1,
    kv_order: KvOrder = KvOrder.KV_OUTER,
) -> KVRepresentation:
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=tuple(range(LAYERS)),
        components=attention(heads=HEADS, head_size=HEAD_SIZE, head_size_v=HEAD_SIZE, encoding=encoding),
        block_size=block_size,
        layout=layout,
        kv_order=kv_order,
    )
    return KVRepresentation(groups=(group,), partition=Partition(tp_size=tp_size))


def _latent(latent: Component, rope: Component, row_bytes: int) -> KVRepresentation:
    group = GroupRepresentation(
        kind=GroupKind.MLA,
        layers=tuple(range(LAYERS)),
        components=(latent, rope),
        block_size=64,
        layout=Layout.LBNHC,
        kv_order=KvOrder.PACKED_C,
        row_bytes=row_bytes,
    )
    return KVRepresentation(groups=(group,), partition=Partition())


def _mla(name: str, count: int, encoding: Encoding, offset: int | None = None) -> Component:
    return Component(name=name, heads=1, count=count, encoding=encoding, offset=offset)


BF16 = _encoding(StorageDtype.BF16)
E4M3 = _encoding(StorageDtype.F8_E4M3FN, Granularity.HEAD, scale_values=UNKNOWN_SCALES)
E4M3_LAYER = _encoding(StorageDtype.F8_E4M3FN, Granularity.TENSOR, scale_values="ones")
FNUZ_LAYER = _encoding(StorageDtype.F8_E4M3FNUZ, Granularity.TENSOR, scale_values=UNKNOWN_SCALES)
E4M3_ROW = _encoding(StorageDtype.F8_E4M3FN, Granularity.TOKEN_HEAD, scale_location=ScaleLocation.SIDE_POOL)
I8_ROW = _encoding(StorageDtype.I8, Granularity.TOKEN_HEAD, scale_location=ScaleLocation.SIDE_POOL)
NVFP4 = _encoding(
    StorageDtype.E2M1,
    Granularity.BLOCK,
    block=16,
    scale_dtype=StorageDtype.F8_E4M3FN,
    scale_location=ScaleLocation.SIDE_POOL,
    tensor_scale=True,
    scale_values=UNKNOWN_SCALES,
)
MXFP8 = _encoding(
    StorageDtype.F8_E4M3FN,
    Granularity.BLOCK,
    block=32,
    scale_dtype=StorageDtype.UE8M0,
    scale_location=ScaleLocation.SIDE_POOL,
)
DS_LATENT = _encoding(
    StorageDtype.F8_E4M3FN, Granularity.BLOCK, block=128, scale_location=ScaleLocation.INLINE, scale_offset=512
)
MLA_1152 = _latent(_mla("latent", 512, BF16), _mla("rope", 64, BF16), 1152)
MLA_656 = _latent(_mla("latent", 512, DS_LATENT, 0), _mla("rope", 64, BF16, 528), 656)
MLA_576 = _latent(_mla("latent", 512, E4M3_LAYER), _mla("rope", 64, E4M3_LAYER), 576)
HND = Layout.LBHNC

PAIRS = (
    Pair("bf16 NHD/16 -> HND/64", _attention(BF16), _attention(BF16, HND, 64), 0.9, 0.8),
    Pair("bf16 NHD/64 -> HND/16", _attention(BF16, block_size=64), _attention(BF16, HND), 0.9, 0.8),
    Pair("bf16 NHD/16 -> HND/16", _attention(BF16), _attention(BF16, HND), 0.9, 0.8),
    Pair("bf16 -> e4m3fn, scale per head, 16 -> 64", _attention(BF16), _attention(E4M3, HND, 64), 0.9, 0.5),
    Pair(
        "bf16 -> e4m3fn, scale found per token and head, 16 -> 64",
        _attention(BF16),
        _attention(E4M3_ROW, HND, 64),
        0.85,
        0.4,
    ),
    Pair(
        "bf16 -> int8, scale found per token and head, 16 -> 64",
        _attention(BF16),
        _attention(I8_ROW, HND, 64),
        0.85,
        0.4,
    ),
    Pair("e4m3fn -> e4m3fnuz, 16 -> 16", _attention(E4M3_LAYER), _attention(FNUZ_LAYER), 0.85, 0.5),
    Pair("e4m3fnuz -> e4m3fn, 16 -> 16", _attention(FNUZ_LAYER), _attention(E4M3_LAYER), 0.85, 0.5),
    Pair("bf16 tp 8 -> tp 2, 16 -> 16", _attention(BF16, tp_size=8), _attention(BF16, tp_size=2), 0.9, 0.7),
    Pair("bf16 tp 2 -> tp 8, 16 -> 16", _attention(BF16, tp_size=2), _attention(BF16, tp_size=8), 0.9, 0.7),
    Pair("MLA 1152 -> 656, 64 -> 64", MLA_1152, MLA_656, 0.8, 0.4),
    Pair("MLA 656 -> 1152, 64 -> 64", MLA_656, MLA_1152, 0.8, 0.4),
    Pair("MLA 656 -> 576, 64 -> 64", MLA_656, MLA_576, 0.8, 0.4),
    Pair("bf16 BLNHC -> LBNHC, 16 -> 16", _attention(BF16, Layout.BLNHC), _attention(BF16), 0.9, 0.8),
    Pair("bf16 LBNHC -> BLNHC, 16 -> 16", _attention(BF16), _attention(BF16, Layout.BLNHC), 0.9, 0.8),
    Pair("bf16 -> nvfp4, 16 -> 16", _attention(BF16), _attention(NVFP4), 0.75, 0.0),
    Pair("bf16 -> mxfp8, 16 -> 16", _attention(BF16), _attention(MXFP8), 0.75, 0.0),
)


def as_json() -> str:
    """All cases, lowered."""
    found = []
    for pair in PAIRS:
        (plan,) = compile_plans(pair.producer, pair.consumer)
        case = {"name": pair.name, "gpu": pair.gpu, "cpu": pair.cpu, "lowered": dataclasses.asdict(lower(plan))}
        found.append(case)
    return json.dumps(found, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    CASES_PATH.write_text(as_json(), encoding="utf-8")
