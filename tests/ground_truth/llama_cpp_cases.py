"""What llama.cpp is started with, one case for each form that its KV takes."""

from dataclasses import dataclass
from typing import Any

TOKENS = 100
PROMPT = [(index * 7919 + 13) % 49_000 + 20 for index in range(TOKENS)]
FILLER = [token + 1 for token in PROMPT[:60]]
CELLS = 256
CELLS_OF_PROMPT = [*range(60, 100), *range(60)]
"""The cell of each token: the filler's cells come free after 40 tokens."""
SMALL_PROMPT = [(index * 37 + 5) % 500 for index in range(TOKENS)]
"""For the made-up models, without a filler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Flags of `llama-server`; None where not given.

    `first` and `any` are how far a row (a token and head of a layer) may be from what transformers computes with f32
    weights and arithmetic, in the first layer and in any, relative to the row's norm. Measured: about a third of these.
    """

    name: str
    model: str = "smollm2-f32"
    ctk: str | None = None
    ctv: str | None = None
    fa: str | None = None
    rotate: bool = True
    first: float = 0.0
    any: float = 0.0

    @property
    def small(self) -> bool:
        return self.model in ("qwen3", "gemma3")

    @property
    def prompt(self) -> list[int]:
        return SMALL_PROMPT if self.small else PROMPT

    @property
    def cells(self) -> list[int]:
        return list(range(TOKENS)) if self.small else CELLS_OF_PROMPT

    @property
    def types(self) -> dict[str, str]:
        """What is stored: f16 where the line does not say."""
        return {"key": self.ctk or "f16", "value": self.ctv or "f16"}

    def line(self, model: str) -> str:
        """The launch line, without what follows @."""
        flags = {"-ctk": self.ctk, "-ctv": self.ctv, "-fa": self.fa}
        words = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
        variable = [] if self.rotate else ["LLAMA_ATTN_ROT_DISABLE=1"]
        return " ".join([*variable, "llama-server", "-m", model, *words])

    def order(self, model: str, folder: str) -> dict[str, Any]:
        return {
            "model": model,
            "folder": folder,
            "prompt": self.prompt,
            "filler": [] if self.small else FILLER,
            "type_k": self.ctk,
            "type_v": self.ctv,
            "flash_attn": self.fa or "auto",
            "rotate": self.rotate,
        }


F32 = Case(name="f32", ctk="f32", ctv="f32", fa="off", first=6e-6, any=2e-5)
F16 = Case(name="f16", ctk="f16", ctv="f16", fa="on", first=1e-3, any=0.02)
F16_TRANSPOSED = Case(name="f16-fa-off", ctk="f16", ctv="f16", fa="off", first=1e-3, any=7e-3)
BF16 = Case(name="bf16", ctk="bf16", ctv="bf16", fa="on", first=0.01, any=0.06)
Q8 = Case(name="q8", ctk="q8_0", ctv="q8_0", fa="on", first=0.025, any=0.2)
Q8_PLAIN = Case(name="q8-not-rotated", ctk="q8_0", ctv="q8_0", fa="on", rotate=False, first=0.04, any=0.25)
MIXED = Case(name="q8-f16", ctk="q8_0", fa="on", first=0.025, any=0.15)
# llama.cpp quantises activations to 8 bits where weights have 4, which is more than its cache loses.
DEFAULTS = Case(name="defaults", model="smollm2", first=0.13, any=0.35)
PACKAGED_Q8 = Case(name="packaged-q8", model="smollm2", ctk="q8_0", ctv="q8_0", fa="on", first=0.13, any=0.35)
QWEN3 = Case(name="qwen3", model="qwen3", ctk="f32", ctv="f32", fa="on", first=6e-6, any=2.5e-3)
GEMMA3 = Case(name="gemma3", model="gemma3", ctk="f16", ctv="f16", fa="on", first=1e-3, any=2.5e-3)
REFUSED = Case(name="refused", ctk="q8_0", ctv="q8_0", fa="off")

LLAMA = (F32, F16, F16_TRANSPOSED, BF16, Q8, Q8_PLAIN, MIXED, DEFAULTS, PACKAGED_Q8)
CASES = (*LLAMA, QWEN3, GEMMA3, REFUSED)
