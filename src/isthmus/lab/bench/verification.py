"""What verification costs: the digest alone against memcpy, and its share in a conversion and of a transfer.

`execute` digests what it has just scattered, a few megabytes at a time, so that digests read from the cache; their time
is taken by clocks around them in a real execution.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from isthmus.core.clock import SystemClock
from isthmus.kernels import torch_digest, torch_execute
from isthmus.kernels.binding import bind
from isthmus.lab.bench.harness import Row, row, timed
from isthmus.portability.compiler import compile_plans
from isthmus.state.encoding import Encoding, StorageDtype
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["bench_verification"]

TOKENS, LAYERS, HEADS, HEAD_SIZE = 4096, 8, 8, 128
LINK_BYTES_PER_SECOND = 1.5e9


def bench_verification(rounds: int = 5) -> list[Row]:
    """Rows, on one thread of torch."""
    torch.set_num_threads(1)
    return [*_digest_alone(rounds), *(_exposed(consumer, rounds) for consumer in (Layout.LBNHC, Layout.LBHNC))]


def _digest_alone(rounds: int) -> list[Row]:
    raw = torch.randint(0, 256, (LAYERS, TOKENS, HEADS, 2 * HEAD_SIZE), dtype=torch.uint8)
    copy = torch.empty_like(raw)
    place: dict[str, Any] = {"field_index": 0, "layers": range(LAYERS), "token_start": 0, "head_start": 0, "key": 0}
    copied = [2 * raw.numel() / seconds / 1e9 for seconds in timed(lambda: copy.copy_(raw), rounds)]
    found = []
    for name, digest in (("compiled", torch_digest.row_digests), ("tensor operations", torch_digest.tensor_digests)):
        seconds = timed(partial(digest, raw, **place), rounds)
        rates = [raw.numel() / each / 1e9 for each in seconds]
        found.append(row(f"digest, {name}, bytes read", rates, "GB/s"))
        against = [rate / statistics.median(copied) for rate in rates]
        found.append(row(f"digest, {name}, to memcpy (read + written)", against, "ratio"))
    return [row("memcpy, read + written", copied, "GB/s"), *found]


def _exposed(layout: Layout, rounds: int) -> Row:
    """Seconds in digests while a state is rewritten, as a share of what its bytes take on the link."""
    sides = (_side(Layout.LBNHC, 16), _side(layout, 64))
    (plan,) = compile_plans(*sides)
    blocks = [TOKENS // side.groups[0].block_size for side in sides]
    binding = bind(
        plan,
        TokenRange(start=0, stop=TOKENS),
        producer_blocks=range(blocks[0]),
        producer_num_blocks=blocks[0],
        consumer_blocks=range(blocks[1]),
        consumer_num_blocks=blocks[1],
    )
    regions = [
        [[_random(region.size_bytes(count)) for region in shard.regions] for shard in shards]
        for shards, count in zip((plan.producer_shards, plan.consumer_shards), blocks, strict=True)
    ]
    size = sum(region.numel() for shard in regions[0] for region in shard)
    offered = torch_execute.execute(plan, binding, regions[0], regions[1]).producer_digest
    shares = []
    for _ in range(rounds + 1):
        with _digest_time() as spent:
            torch_execute.execute(plan, binding, regions[0], regions[1], offered=offered)
        shares.append(sum(spent) / (size / LINK_BYTES_PER_SECOND) * 100)
    case = f"verification exposed at 1.5 GB/s, {sides[0].groups[0].layout} to {layout}"
    return row(case, shares[1:], "% of transfer", wanted="<= 10")


def _random(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8)


def _side(layout: Layout, block_size: int) -> KVRepresentation:
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=tuple(range(LAYERS)),
        components=attention(
            heads=HEADS, head_size=HEAD_SIZE, head_size_v=HEAD_SIZE, encoding=Encoding(storage_dtype=StorageDtype.BF16)
        ),
        block_size=block_size,
        layout=layout,
        kv_order=KvOrder.KV_OUTER,
    )
    return KVRepresentation(groups=(group,), partition=Partition())


@contextmanager
def _digest_time() -> Iterator[list[float]]:
    """Seconds of each digest that `execute` makes meanwhile."""
    clock, spent, real = SystemClock(), list[float](), torch_digest.row_digests

    def clocked(*args: Any, **fields: Any) -> torch.Tensor:
        start = clock.now()
        found = real(*args, **fields)
        spent.append((clock.now() - start) / 1e9)
        return found

    torch_digest.row_digests = clocked
    try:
        yield spent
    finally:
        torch_digest.row_digests = real
