"""A plan, executed in torch: gather, digest, convert, check, scatter, read back. On any device.

What arrives is verified as it is rewritten, part by part and a few layers at a time, so that working memory is bounded:

    producer's rows ─ digest (1) ─ element ops ─ bound check (2) ─ digest (3) ─ scatter ─ gather back ─ digest (4)

(1) must equal the digest that the producer made at fill; (4) must equal (3). Nothing here is trusted to have worked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch
from isthmus.core.ids import Digest
from isthmus.kernels.binding import Binding, Side
from isthmus.kernels.report import Verified
from isthmus.kernels.torch_codec import decode_rows, encode_rows
from isthmus.kernels.torch_digest import fold, row_digests
from isthmus.kernels.torch_views import field_view
from isthmus.state.addressing import FIELD_NAMES
from isthmus.state.plan import PlanPart, Runs, TransformPlan
from isthmus.state.representation import GroupRepresentation

__all__ = ["execute", "gather_rows", "runs_view", "scatter_rows", "state_digest"]

Regions = Sequence[Sequence[Tensor]]
"""Flat uint8 regions, by [rank][region]."""

WORK_BYTES = 4 << 20
"""Working memory of one pass, in bytes of f32 rows."""

_WORD = 1 << 64


def runs_view(region: Tensor, runs: Runs, group: GroupRepresentation, num_blocks: int) -> Tensor:
    """The view on one side of a part: [L, B, N, H, units]."""
    return field_view(
        region,
        runs.field,
        layers=group.num_layers,
        num_blocks=num_blocks,
        block_size=group.block_size,
        head=runs.head,
        num_heads=runs.num_heads,
    )


def gather_rows(view: Tensor, blocks: Tensor, slots: Tensor) -> Tensor:
    """Rows of a view at (block, slot): uint8 [L, T, H, row_bytes]."""
    return view[:, blocks, slots].contiguous().view(torch.uint8)


def scatter_rows(view: Tensor, blocks: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write uint8 [L, T, H, row_bytes] into a view at (block, slot)."""
    view[:, blocks, slots] = rows.contiguous().view(view.dtype)


def execute(
    plan: TransformPlan,
    binding: Binding,
    producer: Regions,
    consumer: Regions,
    *,
    key: int = 0,
    offered: Digest | None = None,
) -> Verified:
    """Rewrite the bound tokens from the producer's regions into the consumer's, and verify.

    Args:
        offered: the producer's digest; None where there is none to hold against.

    Raises:
        DigestMismatch: what arrived is not what was filled, or what was written is not what was converted.
        ConversionOutOfBounds: an element lies further from its source than the plan's bound.
    """
    device = consumer[0][0].device
    source, target = _Place.on(binding.producer, device), _Place.on(binding.consumer, device)
    start = binding.token_range.start
    before = after = written = 0
    error_max, row_count = 0.0, 0
    for part in plan.parts:
        for layers, tokens in _passes(plan, part, tokens=len(binding.token_range)):
            here, there, first = source.of(tokens), target.of(tokens), start + tokens.start
            rows = _gather(plan, part, producer, here, layers, gather_side=True)
            converted, error = _convert(plan, rows)
            _scatter(plan, part, consumer, there, layers, converted)
            back = _gather(plan, part, consumer, there, layers, gather_side=False)
            arrived = _digest(rows, plan, part, layers, first, key)
            before += arrived
            after += _digest(converted, plan, part, layers, first, key) if plan.ops else arrived
            written += _digest(back, plan, part, layers, first, key)
            error_max = max(error_max, error)
            row_count += sum(rows[name].shape[:3].numel() for name in ("key", "value"))
    _hold(before, after, written, offered)
    return Verified(
        producer_digest=Digest(before % _WORD),
        consumer_digest=Digest(after % _WORD),
        error_max=error_max,
        rows=row_count,
    )


def _hold(before: int, after: int, written: int, offered: Digest | None) -> None:
    if offered is not None and before % _WORD != offered:
        raise DigestMismatch(
            f"logical_digest: the producer filled {offered:016x}, {before % _WORD:016x} arrived",
            field="logical_digest",
        )
    if written % _WORD != after % _WORD:
        raise DigestMismatch(
            f"logical_digest: converted {after % _WORD:016x}, the pool holds {written % _WORD:016x}",
            field="logical_digest",
        )


def state_digest(plan: TransformPlan, binding: Binding, producer: Regions, *, key: int = 0) -> Digest:
    """The logical digest of the producer's side of a binding, read from its regions."""
    place = _Place.on(binding.producer, producer[0][0].device)
    total = 0
    for part in plan.parts:
        for layers, tokens in _passes(plan, part, tokens=len(binding.token_range)):
            rows = _gather(plan, part, producer, place.of(tokens), layers, gather_side=True)
            total += _digest(rows, plan, part, layers, binding.token_range.start + tokens.start, key)
    return Digest(total % _WORD)


@dataclass(frozen=True, slots=True)
class _Place:
    blocks: Tensor
    slots: Tensor
    num_blocks: int

    @classmethod
    def on(cls, side: Side, device: torch.device) -> "_Place":
        return cls(torch.from_numpy(side.blocks).to(device), torch.from_numpy(side.slots).to(device), side.num_blocks)

    def of(self, tokens: slice) -> "_Place":
        return _Place(self.blocks[tokens], self.slots[tokens], self.num_blocks)


def _passes(plan: TransformPlan, part: PlanPart, *, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Slices of layers and of tokens, each small enough for the working memory: many layers, or part of one."""
    heads = part.head_stop - part.head_start
    token_bytes = heads * (plan.producer.head_size + plan.producer.head_size_v) * 4
    token_step = min(tokens, max(1, WORK_BYTES // token_bytes))
    layer_step = max(1, WORK_BYTES // (token_step * token_bytes))
    for layer in range(0, plan.producer.num_layers, layer_step):
        for token in range(0, tokens, token_step):
            yield (
                slice(layer, min(layer + layer_step, plan.producer.num_layers)),
                slice(token, min(token + token_step, tokens)),
            )


def _gather(
    plan: TransformPlan, part: PlanPart, regions: Regions, place: _Place, layers: slice, *, gather_side: bool
) -> dict[str, Tensor]:
    side, group, rank = (
        (part.gather, plan.producer, part.producer_rank)
        if gather_side
        else (part.scatter, plan.consumer, part.consumer_rank)
    )
    found = {}
    for runs in side:
        view = runs_view(regions[rank][runs.field.region], runs, group, place.num_blocks)
        found[runs.field.name] = gather_rows(view[layers], place.blocks, place.slots)
    return found


def _scatter(
    plan: TransformPlan,
    part: PlanPart,
    regions: Regions,
    place: _Place,
    layers: slice,
    rows: Mapping[str, Tensor],
) -> None:
    group = plan.consumer
    for runs in part.scatter:
        view = runs_view(regions[part.consumer_rank][runs.field.region], runs, group, place.num_blocks)
        scatter_rows(view[layers], place.blocks, place.slots, rows[runs.field.name])


def _convert(plan: TransformPlan, rows: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], float]:
    """The element operations, and the largest absolute error they made."""
    if not plan.ops:
        return rows, 0.0
    source, target, bound = plan.producer, plan.consumer, plan.loss
    converted: dict[str, Tensor] = {}
    error_max = 0.0
    for name in ("key", "value"):
        values = decode_rows(rows[name], source.storage_dtype, _scale(rows, name))
        raw, scale = encode_rows(values, target.storage_dtype, target.quant)
        converted[name] = raw
        if scale is not None:
            converted[f"{name}_scale"] = scale.unsqueeze(-1).view(torch.uint8)
        error = (decode_rows(raw, target.storage_dtype, scale) - values).abs()
        magnitude = values.abs()
        allowed = magnitude * bound.relative + magnitude.amax(dim=-1, keepdim=True) * bound.per_row_max
        outside = ~(error <= allowed + bound.absolute)  # also where a NaN makes the comparison false
        if bool(outside.any()):
            raise ConversionOutOfBounds(
                f"{name}: {int(outside.sum())} elements of {outside.numel()} are further from their source than the "
                f"bound for {source.storage_dtype.value} -> {target.storage_dtype.value} allows (overflow or NaN)",
                field=name,
            )
        error_max = max(error_max, float(error.max()))
    return converted, error_max


def _scale(rows: Mapping[str, Tensor], name: str) -> Tensor | None:
    raw = rows.get(f"{name}_scale")
    return None if raw is None else raw.contiguous().view(torch.float32).squeeze(-1)


def _digest(
    rows: Mapping[str, Tensor], plan: TransformPlan, part: PlanPart, layers: slice, token_start: int, key: int
) -> int:
    return sum(
        fold(
            row_digests(
                raw,
                field_index=FIELD_NAMES.index(name),
                layer_start=plan.producer.layer_start + layers.start,
                token_start=token_start,
                head_start=part.head_start,
                key=key,
            )
        )
        for name, raw in rows.items()
    )
