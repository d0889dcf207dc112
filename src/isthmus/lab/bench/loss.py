"""`isthmus bench loss`: the error of every pair of encodings, on random values and on a real model's KV.

`catalogue/data/measured_loss.json` is a copy of its result; `isthmus check` quotes it beside the bound.
"""

import itertools
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from isthmus.catalogue.encodings import encoding_named
from isthmus.catalogue.measured import encoding_key
from isthmus.kernels.reference import Counts, convert
from isthmus.kernels.reference_codec import decode, encode
from isthmus.lab.bench.harness import Row, progress, result, row
from isthmus.portability.conversion import conversion_of
from isthmus.state.encoding import Encoding, ScaleLocation, StorageDtype
from isthmus.state.representation import Component
from isthmus.state.sameness import meaning_of

__all__ = ["bench_loss"]

Floats = NDArray[np.float32]

PLAIN = ("f32", "bf16", "f16")
NAMED = (
    "f8_e4m3fn_tensor",
    "f8_e4m3fnuz_tensor",
    "f8_e4m3_tensor",
    "f8_e5m2_tensor",
    "i8_token_head_inline",
    "f8_e4m3fn_token_head_inline",
    "f8_e4m3fnuz_token_head_inline",
    "nvfp4_side",
    "fp4_mx16_side",
    "mxfp4_side",
    "mxfp8_side",
    "q8_0",
)
PROMPT = (
    "Explain in simple words why the sea is salty, why ice floats on water, and what the tides have to do with the "
    "moon. Then list three rivers, their lengths in kilometres, and the seas into which they flow."
)


def bench_loss() -> dict[str, Any]:
    """All pairs, each on both kinds of values."""
    progress("computing the KV of a real model")
    values = {"random": _random(), "real": _real()}
    encodings = [_alike(encoding_named(name), values["real"].shape[-1]) for name in (*PLAIN, *NAMED)]
    encodings.append(_alike(_fp8_ds(), values["real"].shape[-1]))
    pairs: dict[str, Any] = {}
    rows: list[Row] = []
    for source, target in itertools.product(encodings, encodings):
        if source == target:
            continue
        name = f"{encoding_key(source)} -> {encoding_key(target)}"
        pairs[name] = {kind: _measure(source, target, each) for kind, each in values.items()}
        rows.append(row(name, [pairs[name]["real"]["rms"]], "rms error / rms, real KV"))
    return result("loss", rows, ("numpy", "ml-dtypes")) | {"pairs": pairs}


def _alike(encoding: Encoding, count: int) -> Encoding:
    return meaning_of(encoding, 2, count)


def _fp8_ds() -> Encoding:
    """The latent of a 656-byte row, with blocks that fit a small head."""
    return msgspec.convert(
        {
            "storage_dtype": StorageDtype.F8_E4M3FN.value,
            "quant": {
                "granularity": "block",
                "block": 32,
                "scale_dtype": "f32",
                "scale_location": ScaleLocation.INLINE.value,
            },
        },
        Encoding,
    )


def _measure(source: Encoding, target: Encoding, values: Floats) -> dict[str, float]:
    """Errors against the root mean square of what the source stores. `saturated` is a share of all elements."""
    count = values.shape[-1]
    stored = encode(values, source)
    before = decode(stored.raw, source, stored.scales)
    rows = {"key": stored.raw}
    if stored.scales is not None:
        rows["key_scale"] = stored.scales
    parts = [Component(name="key", heads=2, count=count, encoding=encoding) for encoding in (source, target)]
    counts = Counts()
    conversion = conversion_of(parts[0], parts[1])
    found = convert(conversion, rows, counts)
    after = decode(found["key"], conversion.target, found.get("key_scale"))
    scale = float(np.sqrt(np.mean(before.astype(np.float64) ** 2)))
    error = np.abs(after.astype(np.float64) - before)
    return {
        "rms": _short(float(np.sqrt(np.mean(error**2))) / scale),
        "max": _short(float(error.max()) / scale),
        "saturated": _short(sum(counts.saturated.values()) / before.size),
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _random() -> Floats:
    """Normal values, as [tokens, heads, elements]."""
    return np.random.default_rng(0).normal(0, 1, (512, 4, 64)).astype(np.float32)


def _real() -> Floats:
    """K and V of all layers of SmolLM2 over a prompt: f32 [layers * 2 * tokens, heads, elements]."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from isthmus.engines.embedded.prepare import prepare_smollm2
    from isthmus.serve.models import cache_folder

    folder = prepare_smollm2(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
    tensors = [tensor[0].transpose(0, 1) for layer in cache.layers for tensor in (layer.keys, layer.values)]
    found: Floats = torch.cat(tensors).numpy().astype(np.float32)
    return found
