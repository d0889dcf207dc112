"""`isthmus bench check`: how fast pairs are judged, plans compiled and bound, on one core."""

import itertools
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np

from isthmus.engines.launch.describe import describe
from isthmus.kernels.binding import bind
from isthmus.kernels.descriptors import descriptors
from isthmus.lab.bench.harness import Row, progress, result, row, timed
from isthmus.portability.check import check, report
from isthmus.portability.compiler import compile_plans
from isthmus.portability.verdict import decide
from isthmus.state.description import Description
from isthmus.state.encoding import Encoding, StorageDtype
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["bench_check"]

PAIRS = 10_000
TOKENS = 131_072
LINES = ("vllm serve Qwen/Qwen3-32B -tp 4 @h100", "sglang serve --model-path Qwen/Qwen3-32B --tp 2 @mi300x")


def bench_check(rounds: int = 5) -> dict[str, Any]:
    """All rows, with what is wanted of each."""
    progress("describing the sides")
    base = describe(LINES[0])
    sides = [_parsed(side) for side in _sides(base)]
    pairs = list(itertools.islice(((a, b) for a in sides for b in sides if a is not b), PAIRS))
    rows = [_decide(pairs, rounds), _check(pairs[:: max(1, len(pairs) // 500)], rounds)]
    rows += [_compile(rounds), _bind(rounds), _cold(rounds)]
    return result("check", rows, ("msgspec", "numpy"))


def _parsed(side: Description) -> Description:
    """A side as it arrives: decoded from its bytes, nothing shared with another."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(side), type=Description)


def _sides(base: Description) -> list[Description]:
    """Distinct descriptions: layouts, orders, block sizes, encodings and ranks of one model."""
    group = base.representation.groups[0]
    found = []
    grid = itertools.product(
        (Layout.LBNHC, Layout.LBHNC, Layout.BLHNC),
        (KvOrder.PACKED_C, KvOrder.KV_OUTER, KvOrder.TWO_TENSORS),
        (16, 64),
        (StorageDtype.BF16, StorageDtype.F8_E4M3FN, StorageDtype.F8_E4M3FNUZ),
        (1, 4),
    )
    for layout, order, block_size, dtype, tp_size in grid:
        encoding = Encoding(storage_dtype=dtype)
        parts = tuple(msgspec.structs.replace(part, encoding=encoding) for part in group.components)
        changed = msgspec.structs.replace(group, layout=layout, kv_order=order, block_size=block_size, components=parts)
        representation = KVRepresentation(groups=(changed,), partition=Partition(tp_size=tp_size))
        found.append(msgspec.structs.replace(base, representation=representation))
    return found


def _decide(pairs: list[tuple[Description, Description]], rounds: int) -> Row:
    progress(f"deciding {len(pairs)} distinct pairs")

    def work() -> None:
        for ours, theirs in pairs:
            decide((ours.identity, ours.representation), (theirs.identity, theirs.representation))

    seconds = timed(work, rounds, warm=0)
    return row("gate + differences + outcome", [len(pairs) / s for s in seconds], "pairs/s", wanted=">= 10000")


def _check(pairs: list[tuple[Description, Description]], rounds: int) -> Row:
    progress(f"the whole check object of {len(pairs)} pairs")

    def work() -> None:
        for ours, theirs in pairs:
            report(check(ours, theirs))

    seconds = timed(work, rounds, warm=0)
    return row("the whole check object", [len(pairs) / s for s in seconds], "pairs/s", wanted=">= 500")


def _long(layout: Layout, order: KvOrder, block_size: int, tp_size: int) -> KVRepresentation:
    encoding = Encoding(storage_dtype=StorageDtype.BF16)
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=tuple(range(80)),
        components=attention(heads=8, head_size=128, head_size_v=128, encoding=encoding),
        block_size=block_size,
        layout=layout,
        kv_order=order,
    )
    return KVRepresentation(groups=(group,), partition=Partition(tp_size=tp_size))


def _compile(rounds: int) -> Row:
    progress("compiling an 80-layer plan, tp 8 to tp 2")
    ours, theirs = _long(Layout.LBNHC, KvOrder.KV_OUTER, 16, 8), _long(Layout.LBHNC, KvOrder.PACKED_C, 64, 2)
    seconds = timed(lambda: compile_plans(ours, theirs), 5 * rounds)
    return row("compile an 80-layer plan", [1e3 * s for s in seconds], "ms", wanted="<= 10")


def _bind(rounds: int) -> Row:
    progress(f"binding it to block tables of {TOKENS} tokens")
    ours, theirs = _long(Layout.LBNHC, KvOrder.KV_OUTER, 16, 1), _long(Layout.LBNHC, KvOrder.TWO_TENSORS, 16, 1)
    (plan,) = compile_plans(ours, theirs)
    blocks = TOKENS // 16
    rng = np.random.default_rng(0)
    tables = [[int(block) for block in rng.permutation(blocks)] for _ in range(2)]
    count = 0

    def work() -> None:
        nonlocal count
        bound = bind(
            plan,
            TokenRange(start=0, stop=TOKENS),
            producer_blocks=tables[0],
            producer_num_blocks=blocks,
            consumer_blocks=tables[1],
            consumer_num_blocks=blocks,
        )
        count = sum(len(found.sources) for found in descriptors(plan, bound))

    seconds = timed(work, 3 * rounds)
    return row(f"bind to {count:,} descriptors", [1e3 * s for s in seconds], "ms", wanted="<= 60")


def _cold(rounds: int) -> Row:
    progress("isthmus check from a cold shell")
    command = [sys.executable, "-m", "isthmus", "check", *LINES, "--json"]

    def work() -> None:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())

    seconds = timed(work, 2 * rounds)
    return row("isthmus check, a new process", seconds, "s", wanted="<= 0.5")
