"""`isthmus demo`: the whole of it, in a terminal or as JSON."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["demo"]


def demo(
    *,
    model: Annotated[Path | None, Parameter(help="A local Hugging Face directory (Llama, Qwen2, Qwen3).")] = None,
    max_tokens: Annotated[int, Parameter(help="Tokens of each answer, at most.")] = 32,
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> int:
    """Have a real model answer, prefilled by one process and decoded by others that store KV in other forms.

    Compares each answer, and the KV that crossed, with one engine that does it all alone. Exits 0 where the lossless
    pair is identical and no block is held at the end, else 3.
    """
    from isthmus.engines.embedded.prepare import prepare_smollm2
    from isthmus.lab.demo.compare import summary
    from isthmus.lab.demo.prompts import PROMPTS
    from isthmus.lab.demo.run import run_demo
    from isthmus.lab.demo.show import show
    from isthmus.serve.models import cache_folder, model_path

    path = prepare_smollm2(cache_folder()) if model is None else model_path(model)
    result = asyncio.run(run_demo(path, PROMPTS, max_tokens=max_tokens, say=_say))
    found = summary(result)
    if json_:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        show(found)
    return 0 if found["lossless_identical"] and not found["blocks_held_after"] else 3


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)  # noqa: T201
