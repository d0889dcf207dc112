"""Errors that were measured, by pair of encodings (`data/measured_loss.json`, written by `isthmus bench loss`)."""

from functools import cache
from importlib import resources
from typing import Any

import msgspec

from isthmus.state.encoding import Encoding

__all__ = ["encoding_key", "measured_loss"]


def encoding_key(encoding: Encoding) -> str:
    """An encoding in one word, as far as what it loses: its element type and what shares a scale."""
    quant = encoding.quant
    if quant is None:
        return encoding.storage_dtype.value
    shared = f"block{quant.block}" if quant.block else quant.granularity.value
    return f"{encoding.storage_dtype.value}/{shared}/{quant.scale_dtype.value}"


@cache
def _measured() -> dict[str, Any]:
    data = resources.files("isthmus.catalogue").joinpath("data", "measured_loss.json").read_bytes()
    found: dict[str, Any] = msgspec.json.decode(data)
    return found


def measured_loss(source: Encoding, target: Encoding) -> dict[str, Any] | None:
    """Relative errors measured on random and on real KV, or None where this pair was not measured.

    Each is {"rms", "max"}: of the error against the root mean square of the values.
    """
    pair: dict[str, Any] | None = _measured()["pairs"].get(f"{encoding_key(source)} -> {encoding_key(target)}")
    return pair
