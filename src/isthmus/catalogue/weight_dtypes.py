"""What a checkpoint's weights are stored in, from its `quantization_config`."""

import re
from collections.abc import Mapping

from isthmus.catalogue.config_fields import Fields, bad, named

__all__ = ["weights_dtype_of"]

METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "modelopt_fp4": "nvfp4",
    "mixed_precision": "mixed",
}
WORD = re.compile(r"[a-z][a-z0-9_]{1,31}")


def weights_dtype_of(fields: Fields) -> str:
    """fp8, int8, int4, nvfp4, mxfp4 ...; '' where nothing is quantised, `mixed` where parts differ in their precision.

    A method that is not known here stands for itself: two models that name it are alike in that.

    Raises:
        BadInput: the record is not one that a quantiser writes.
    """
    record = fields.record("quantization_config")
    if not record:
        return ""
    if isinstance(record.get("config_groups"), Mapping) and "quant_algo" not in record:
        return _of_groups(record)
    method = record.get("quant_algo") or record.get("quant_method")
    word = named("quantization_config.quant_method", method).lower().replace("-", "_")
    if word in ("gptq", "awq", "auto_round", "autoround", "gptq_marlin", "awq_marlin"):
        bits = record.get("bits") or record.get("w_bit")
        if bits not in (4, 8) or isinstance(bits, bool):
            raise bad("quantization_config.bits", bits, "4 or 8")
        return f"int{bits}"
    found = METHODS.get(word, word)
    if not WORD.fullmatch(found):
        raise bad("quantization_config.quant_method", method, "a method's name")
    experts = fields.get("expert_dtype")
    if experts is None or found == "mixed" or named("expert_dtype", experts) == found:
        return found
    return f"{found}_{experts}" if WORD.fullmatch(f"{found}_{experts}") else "mixed"


def _of_groups(record: Mapping[str, object]) -> str:
    """compressed-tensors: groups of layers, each with the type and bits of its weights."""
    groups = record["config_groups"]
    assert isinstance(groups, Mapping)
    found = set()
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise bad("quantization_config.config_groups", group, "groups with weights")
        found.add(_of_weights(weights, str(group.get("format") or record.get("format") or "")))
    if not found:
        raise bad("quantization_config.config_groups", groups, "a group")
    return found.pop() if len(found) == 1 else "mixed"


def _of_weights(weights: Mapping[str, object], form: str) -> str:
    kind, bits = weights.get("type"), weights.get("num_bits")
    if bits not in (4, 8) or isinstance(bits, bool) or kind not in ("int", "float"):
        raise bad("quantization_config.config_groups.weights", weights, "type int or float, num_bits 4 or 8")
    if kind == "int":
        return f"int{bits}"
    if bits == 8:
        return "fp8"
    return "mxfp4" if form.startswith("mxfp4") or weights.get("group_size") == 32 else "nvfp4"
