"""What crossing costs, as a function of figures handed in, and where a rewrite should run.

A rewrite reads what the producer stores and writes what the consumer stores, at the memory's speed; it does so little
arithmetic on a byte that nothing else bounds it. Where it runs decides which of the two forms is on the wire.
"""

from dataclasses import dataclass

from isthmus.core.errors import Unsupported
from isthmus.portability.runs import plan_runs
from isthmus.state.plan import Cast, Dequantise, Quantise, Rebias, TransformPlan

__all__ = ["Figures", "Price", "price_of"]

_FLOPS = {Cast: 1.0, Dequantise: 1.0, Rebias: 1.0, Quantise: 4.0}
"""Operations on an element: a product; or an absolute value, a maximum, a quotient and a rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the price rests on: a prompt's tokens; the link in Gbit/s; memories in GB/s; a descriptor's cost in us."""

    tokens: int
    link_gbps: float
    producer_memory_gbps: float
    consumer_memory_gbps: float
    descriptor_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Bytes a token (states not counted), times for `figures.tokens` tokens, and where to run the rewrite and why."""

    producer_bytes: float
    wire_bytes: float
    consumer_bytes: float
    run_at: str
    why: str
    transfer_ms: float
    convert_ms: float
    options_ms: dict[str, float]
    arithmetic_intensity: float
    run_bytes: int
    runs_per_token: float


def price_of(plans: tuple[TransformPlan, ...], figures: Figures) -> Price:
    """The price of a verdict's plans."""
    ours, theirs = _bytes_per_token(plans)
    converts = any(plan.converts for plan in plans)
    moves = any(plan.outcome.value.startswith("redistribute") for plan in plans)
    run_bytes, runs = _runs(plans)
    tokens = figures.tokens
    wire = {"producer": theirs, "transport": ours, "consumer": ours}
    send = {where: size * tokens * 8 / figures.link_gbps / 1e6 for where, size in wire.items()}
    rewrite = {
        "producer": (ours + theirs) * tokens / figures.producer_memory_gbps / 1e6,
        "transport": runs * tokens * figures.descriptor_us / 1e3,
        "consumer": (ours + theirs) * tokens / figures.consumer_memory_gbps / 1e6,
    }
    if not converts and not moves:
        rewrite = dict.fromkeys(rewrite, 0.0)
    options = {where: send[where] + rewrite[where] for where in wire}
    if converts or not run_bytes:
        del options["transport"]
    where, why = _choose(options, send, rewrite, rewrites=converts or moves)
    return Price(
        producer_bytes=ours,
        wire_bytes=wire[where],
        consumer_bytes=theirs,
        run_at=where,
        why=why,
        transfer_ms=send[where],
        convert_ms=rewrite[where],
        options_ms=options,
        arithmetic_intensity=_intensity(plans, ours + theirs),
        run_bytes=run_bytes,
        runs_per_token=runs,
    )


def _choose(
    options: dict[str, float], send: dict[str, float], rewrite: dict[str, float], *, rewrites: bool
) -> tuple[str, str]:
    if not rewrites:
        return "transport", "nothing is rewritten: the bytes are sent as they lie"
    order = ["consumer", "transport", "producer"]  # of equals the consumer: the digest of the fill then covers the copy
    where = min((each for each in order if each in options), key=lambda each: round(options[each], 6))
    said = ", ".join(
        f"{each} {options[each]:.2f} ms (wire {send[each]:.2f} + rewrite {rewrite[each]:.2f})"
        for each in sorted(options, key=lambda each: options[each])
    )
    return where, f"least time of: {said}"


def _bytes_per_token(plans: tuple[TransformPlan, ...]) -> tuple[float, float]:
    """What the plans read and write for a token, each head once."""
    ours = theirs = 0.0
    for plan in plans:
        layers = len(plan.layers)
        ours += plan.producer.bytes_per_token * layers / plan.producer.num_layers
        theirs += plan.consumer.bytes_per_token * layers / plan.consumer.num_layers
    return ours, theirs


def _runs(plans: tuple[TransformPlan, ...]) -> tuple[int, float]:
    """The shortest run and the runs a token takes; (0, 0) where interiors have no runs in common."""
    try:
        found = [plan_runs(plan) for plan in plans]
    except Unsupported:
        return 0, 0.0
    return min((size for size, _ in found if size), default=0), sum(count for _, count in found)


def _intensity(plans: tuple[TransformPlan, ...], bytes_moved: float) -> float:
    """Operations for each byte read or written."""
    flops = 0.0
    for plan in plans:
        layers = len(plan.layers)
        for conversion in plan.conversions:
            part = plan.producer.component(conversion.component)
            each = sum(_FLOPS.get(type(op), 0.0) for op in conversion.ops)
            flops += each * part.heads * part.count * layers / plan.producer.tokens_per_state
    return flops / bytes_moved if bytes_moved else 0.0
