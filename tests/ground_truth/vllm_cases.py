"""What vLLM is started with: a case for each form that its KV takes on a CPU."""

from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = ROOT / ".venv-engines" / "bin" / "python"
SMOLLM2 = ROOT / ".cache" / "isthmus" / "smollm2"
HEAD_80 = ROOT / ".cache" / "isthmus" / "llama-head-80"
"""A made-up Llama whose heads have 80 elements: no multiple of 32, so that vLLM takes its ISA vec16."""

TOKENS = 150
PROMPTS = [[(index * 7919 + start) % 49_000 + 20 for index in range(TOKENS)] for start in (13, 114)]
"""The first one leaves its blocks to the second, whose KV is looked at."""

THIS_CPU = "cpu-amx" if torch.cpu._is_amx_tile_supported() else "cpu"
"""vLLM asks the same (`v1/attention/backends/cpu_attn.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Flags as on a launch line; what is None is left to vLLM.

    `first_off_max` and `off_max` are how far a row (a token and head of a layer) may be from what transformers
    computes, in the first layer and in any, relative to the row's norm. In the first layer that is rounding; further on
    the differences of two ways of computing in `dtype` add up. Measured: a half to a tenth of these.
    """

    name: str
    model: Path = SMOLLM2
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    first_off_max: float
    off_max: float

    @property
    def settings(self) -> dict[str, str | int]:
        flags = {"dtype": self.dtype, "kv_cache_dtype": self.kv_cache_dtype, "block_size": self.block_size}
        return {name: value for name, value in flags.items() if value is not None}

    @property
    def line(self) -> str:
        flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in self.settings.items())
        return f"vllm serve '{self.model}'{flags} @{THIS_CPU},vllm=0.32"


F32 = Case(name="f32", dtype="float32", kv_cache_dtype="auto", block_size=32, first_off_max=1e-5, off_max=1e-4)
BF16 = Case(name="bf16", dtype="bfloat16", kv_cache_dtype="auto", block_size=128, first_off_max=0.01, off_max=0.2)
F16 = Case(name="f16", dtype="float16", block_size=32, first_off_max=0.002, off_max=0.05)
FP8 = Case(name="fp8", dtype="float32", kv_cache_dtype="fp8_e4m3", block_size=32, first_off_max=0.02, off_max=0.4)
E5M2 = Case(name="e5m2", dtype="float32", kv_cache_dtype="fp8_e5m2", block_size=64, first_off_max=0.04, off_max=0.5)
DEFAULTS = Case(name="defaults", kv_cache_dtype="fp8", first_off_max=0.1, off_max=0.6)
VEC16 = Case(name="vec16", model=HEAD_80, dtype="float32", block_size=32, first_off_max=1e-5, off_max=1e-4)

CASES = (F32, BF16, F16, FP8, E5M2, DEFAULTS, VEC16)
