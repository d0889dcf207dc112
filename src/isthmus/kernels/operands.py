"""Static scales: those that lie on an engine's layers and not in its pool, given when a plan runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isthmus.core.errors import BadInput
from isthmus.kernels.lowered import Move, Scales, Step

__all__ = ["Floats", "Operands"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """By component: f32 [L] for one scale a layer (or a tensor scale), [L, H] for heads, [L, H, count] for channels; of
    the model's heads, and of the plan's layers in order.
    """

    producer: Mapping[str, Floats] = field(default_factory=dict)
    consumer: Mapping[str, Floats] = field(default_factory=dict)

    def of(self, move: Move, side: str) -> Floats | None:
        """The scales of a move's layers and heads on one side ("producer" or "consumer"): f32 [L, H, 1 or count].

        None where it needs none.

        Raises:
            BadInput: they are needed, and not given.
        """
        codec = move.decode if side == "producer" else move.encode
        if move.step is not Step.RECODE or not (codec.scales is Scales.STATIC or codec.tensor_scale):
            return None
        shape = (len(move.positions), move.num_heads)
        if codec.ones:
            return np.ones((*shape, 1), np.float32)
        given = getattr(self, side).get(move.component)
        if given is None:
            raise BadInput(
                f"scales: the {side}'s {move.component} has static scales; give their values",
                field="quant.scale_values",
            )
        scales = np.asarray(given, np.float32)[list(move.positions)]
        heads = slice(move.head_start, move.head_start + move.num_heads)
        if scales.ndim == 1:
            scales = np.broadcast_to(scales[:, None, None], (*shape, 1))
        elif scales.ndim == 2:
            scales = scales[:, heads, None]
        else:
            scales = scales[:, heads, :]
        return np.ascontiguousarray(scales)
