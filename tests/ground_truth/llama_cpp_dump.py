"""Runs llama.cpp on the CPU, in this process, and writes out its KV. Run by the other environment's Python.

    python llama_cpp_dump.py ORDERS.json

ORDERS.json holds {cases: [{model, folder, prompt, filler, type_k, type_v, flash_attn, rotate}]}: a GGUF file, token
ids, and what `llama-server` calls -ctk, -ctv (null: not given) and -fa; `rotate` false sets LLAMA_ATTN_ROT_DISABLE. A
folder gets:

    facts.json           the version, the cells, the kind of RoPE; {"started": false} where llama.cpp refuses
    key.bin, value.bin   the memory of the cache's tensors, layer after layer, as it lies
    state.bin            what llama_state_seq_get_data gives for the prompt's sequence

With a filler of n tokens, another sequence takes cells [0, n) first and gives them back in the middle of the prompt, so
that the prompt's last n tokens lie in cells [0, n), and those before them in cells from n on.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

CELLS = 256
"""The cache's cells: llama.cpp rounds up to this many."""
TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
VIEWS = {"(view)", "(reshaped)", "(permuted)", "(transposed)"}
"""What ggml adds to the name of a tensor's view, and not to that of a copy."""
FILLER, PROMPT = 0, 1

libggml.ggml_get_name.restype = ctypes.c_char_p
libggml.ggml_get_data.restype = ctypes.c_void_p
libggml.ggml_nbytes.restype = ctypes.c_size_t
for function in (libggml.ggml_get_name, libggml.ggml_get_data, libggml.ggml_nbytes):
    function.argtypes = [ctypes.c_void_p]


class Tensors:
    """Where the cache's tensors lie, by name: the widest view of each that a computation has touched."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._note)

    def _note(self, tensor: int, ask: bool, _: Any) -> bool:
        name, *views = libggml.ggml_get_name(tensor).decode().split(" ")
        if name.startswith("cache_") and set(views) <= VIEWS:
            start, size = libggml.ggml_get_data(tensor), libggml.ggml_nbytes(tensor)
            known = self.found.get(name, (start, 0))
            self.found[name] = (min(start, known[0]), max(size, known[1]))
        return False


def main() -> None:
    orders = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llama_cpp.llama_backend_init()
    for case in orders["cases"]:
        os.environ["LLAMA_ATTN_ROT_DISABLE"] = "0" if case["rotate"] else "1"
        _dump(case)


def _dump(case: dict[str, Any]) -> None:
    model = llama_cpp.llama_model_load_from_file(case["model"].encode(), llama_cpp.llama_model_default_params())
    tensors = Tensors()
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = CELLS
    settings.n_seq_max = 2
    settings.kv_unified = True
    settings.n_threads = settings.n_threads_batch = 1  # two would wait for each other where cores are busy
    if case["type_k"]:
        settings.type_k = TYPES[case["type_k"]]
    if case["type_v"]:
        settings.type_v = TYPES[case["type_v"]]
    settings.flash_attn_type = FLASH_ATTN[case["flash_attn"]]
    settings.cb_eval = tensors.callback
    folder = Path(case["folder"])
    folder.mkdir(parents=True)
    context = llama_cpp.llama_init_from_model(model, settings)
    if context:
        _run(context, case)
        _write(context, model, tensors, folder)
        llama_cpp.llama_free(context)
    else:
        (folder / "facts.json").write_text(json.dumps({"started": False}), encoding="utf-8")
    llama_cpp.llama_model_free(model)


def _run(context: Any, case: dict[str, Any]) -> None:
    memory = llama_cpp.llama_get_memory(context)
    prompt, filler = case["prompt"], case["filler"]
    first = len(prompt) - len(filler)
    if filler:
        _decode(context, filler, 0, FILLER)
    _decode(context, prompt[:first], 0, PROMPT)
    if filler:
        llama_cpp.llama_memory_seq_rm(memory, FILLER, -1, -1)
        _decode(context, prompt[first:], first, PROMPT)


def _write(context: Any, model: Any, tensors: Tensors, folder: Path) -> None:
    (folder / "state.bin").write_bytes(_state(context))
    for letter, name in (("k", "key"), ("v", "value")):
        layers = [tensors.found[f"cache_{letter}_l{layer}"] for layer in range(llama_cpp.llama_model_n_layer(model))]
        (folder / f"{name}.bin").write_bytes(b"".join(ctypes.string_at(start, size) for start, size in layers))
    facts = {
        "started": True,
        "llama_cpp_python": llama_cpp.__version__,
        "cells": llama_cpp.llama_n_ctx(context),
        "rope": {0: "interleaved", 2: "neox"}[llama_cpp.llama_model_rope_type(model)],
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _decode(context: Any, tokens: list[int], position: int, sequence: int) -> None:
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for index, token in enumerate(tokens):
        batch.token[index] = token
        batch.pos[index] = position + index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = index + 1 == len(tokens)
    batch.n_tokens = len(tokens)
    if llama_cpp.llama_decode(context, batch) != 0:
        raise SystemExit("llama_decode failed")
    llama_cpp.llama_batch_free(batch)


def _state(context: Any) -> bytes:
    size = llama_cpp.llama_state_seq_get_size(context, PROMPT)
    found = np.zeros(size, np.uint8)
    pointer = found.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    written = llama_cpp.llama_state_seq_get_data(context, pointer, size, PROMPT)
    if written != size:
        raise SystemExit(f"llama_state_seq_get_data wrote {written} of {size} bytes")
    return found.tobytes()


if __name__ == "__main__":
    main()
