"""Choosing a token: a pure function of logits, parameters and the token's number in the answer.

No generator has state, so a request that moves to another worker in mid-stream goes on as if it had not.
"""

import hashlib

import torch
from torch import Tensor

from isthmus.handoff.request import Sampling

__all__ = ["sample", "uniform"]


def uniform(seed: int, counter: int) -> float:
    """A number in [0, 1) from a seed and the token's number, 53 bits of it."""
    digest = hashlib.blake2b(f"{seed}:{counter}".encode(), digest_size=8, person=b"isthmus.sampler").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(logits: Tensor, sampling: Sampling, counter: int) -> int:
    """Choose a token.

    Args:
        logits: f32 [vocabulary], finite, on any device.
        sampling: greedy where `temperature` is 0, and then the lowest id of the largest.
        counter: number of the token in the answer, from 0.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax().item())
    # In f64 on the CPU, in one order: the same logits give the same token on every device.
    scaled = logits.cpu().to(torch.float64)
    scaled = (scaled - scaled.max()) / sampling.temperature  # the largest is 0, so that no temperature overflows
    probabilities = torch.softmax(scaled, dim=-1)
    order = None
    if sampling.top_p < 1.0:
        probabilities, order = torch.sort(probabilities, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    kept = len(cumulative)
    if order is not None:
        # The smallest set whose probability reaches top_p: up to and with the first that reaches it.
        reached = int(torch.searchsorted(cumulative, sampling.top_p).item())
        kept = min(reached + 1, kept)
    point = uniform(sampling.seed, counter) * float(cumulative[kept - 1])
    index = min(int(torch.searchsorted(cumulative[:kept], point, right=True).item()), kept - 1)
    return index if order is None else int(order[index].item())
