"""A plan, executed in torch: gather, digest, convert, check, scatter, read back. On any device.

What arrives is verified as it is rewritten, part by part and a few layers at a time, so that working memory is bounded:

    producer's rows ─ digest (1) ─ element ops ─ bound check (2) ─ digest (3) ─ scatter ─ gather back ─ digest (4)

(1) must equal the digest that the producer made at fill; (4) must equal (3). Nothing here is trusted to have worked.
Where no element changes, all four are of the same bytes: (4) alone is held against the producer's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch, Unsupported
from isthmus.core.ids import Digest
from isthmus.kernels import torch_digest
from isthmus.kernels.binding import Binding, Side
from isthmus.kernels.report import Verified
from isthmus.kernels.torch_codec import check_encoding, decode_rows, encode_rows
from isthmus.kernels.torch_views import field_view
from isthmus.state.fields import ShardAddressing
from isthmus.state.plan import Conversion, PlanPart, Reorder, Runs, TransformPlan
from isthmus.state.representation import FIELD_NAMES, GroupRepresentation

__all__ = ["check_plan", "execute", "gather_rows", "runs_view", "scatter_rows"]

Regions = Sequence[Sequence[Tensor]]
"""Flat uint8 regions, by [shard][region]."""

WORK_BYTES = 4 << 20
"""Working memory of one pass, in bytes of f32 rows."""

_WORD = 1 << 64


def runs_view(region: Tensor, runs: Runs, group: GroupRepresentation, layers: int, num_blocks: int) -> Tensor:
    """The view on one side of a part: [layers of the shard, B, N, H, units]."""
    return field_view(
        region,
        runs.field,
        layers=layers,
        num_blocks=num_blocks,
        block_size=group.block_size,
        head=runs.head,
        num_heads=runs.num_heads,
    )


def gather_rows(view: Tensor, layers: Tensor, blocks: Tensor, slots: Tensor) -> Tensor:
    """Rows of a view at (layer, block, slot): uint8 [L, T, H, row_bytes]."""
    return view[layers[:, None], blocks, slots].contiguous().view(torch.uint8)


def scatter_rows(view: Tensor, layers: Tensor, blocks: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write uint8 [L, T, H, row_bytes] into a view at (layer, block, slot)."""
    view[layers[:, None], blocks, slots] = rows.contiguous().view(view.dtype)


def check_plan(plan: TransformPlan) -> None:
    """Raise Unsupported unless this executor does all of a plan: before anything is read."""
    for shard in (*plan.producer_shards, *plan.consumer_shards):
        for field in shard.fields:
            if not field.contiguous:
                raise Unsupported(f"interior: rows of {field.name} are not runs of bytes", field="interior")
    for partition in (plan.producer_partition, plan.consumer_partition):
        if partition.dcp_size != 1:
            raise Unsupported(f"dcp_size: got {partition.dcp_size}, wanted 1", field="dcp_size")
    for conversion in plan.conversions:
        if conversion.ops:
            check_encoding(conversion.source)
            check_encoding(conversion.target)


def execute(
    plan: TransformPlan,
    binding: Binding,
    producer: Regions,
    consumer: Regions,
    *,
    key: int = 0,
    offered: Digest | None = None,
) -> Verified:
    """Rewrite the bound rows from the producer's regions into the consumer's, and verify.

    Args:
        offered: the producer's digest; None where there is none to hold against.

    Raises:
        Unsupported: as `check_plan`.
        DigestMismatch: what arrived is not what was filled, or what was written is not what was converted.
        ConversionOutOfBounds: an element lies further from its source than the plan's bound.
    """
    check_plan(plan)
    device = consumer[0][0].device
    sides = (
        _Side.of(plan.producer, plan.producer_shards, producer, binding.producer, device),
        _Side.of(plan.consumer, plan.consumer_shards, consumer, binding.consumer, device),
    )
    start = binding.rows.start
    before = after = written = 0
    on_the_way = plan.converts or offered is None  # else what the pool holds tells all
    error_max, row_count = 0.0, 0
    for part in plan.parts:
        for layers, tokens in _passes(part, tokens=len(binding.rows)):
            mine, theirs = part.producer_layers[layers], part.consumer_layers[layers]
            rows = sides[0].gather(part.gather, part.producer_rank, mine, tokens)
            converted, error = _convert(plan, rows)
            sides[1].scatter(part.scatter, part.consumer_rank, theirs, tokens, converted)
            back = sides[1].gather(part.scatter, part.consumer_rank, theirs, tokens)
            where = _Where(part.layers[layers], start + tokens.start, key)
            written += where.digest(back, part.scatter)
            if on_the_way:
                before += where.digest(rows, part.gather)
                after += where.digest(converted, part.scatter)
            error_max = max(error_max, error)
            row_count += sum(raw.shape[:3].numel() for name, raw in rows.items() if not name.endswith("_scale"))
    if not on_the_way:
        before = after = written
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


@dataclass(frozen=True, slots=True)
class _Side:
    """One side's regions by rank, and where its rows lie."""

    group: GroupRepresentation
    regions: Mapping[int, Sequence[Tensor]]
    layers: Mapping[int, int]
    blocks: Tensor
    slots: Tensor
    num_blocks: int
    device: torch.device

    @classmethod
    def of(
        cls,
        group: GroupRepresentation,
        shards: Sequence[ShardAddressing],
        regions: Regions,
        side: Side,
        device: torch.device,
    ) -> "_Side":
        ranks = [shard.rank for shard in shards]
        return cls(
            group,
            dict(zip(ranks, regions, strict=True)),
            {shard.rank: shard.layer_stop - shard.layer_start for shard in shards},
            torch.from_numpy(side.blocks).to(device),
            torch.from_numpy(side.slots).to(device),
            side.num_blocks,
            device,
        )

    def gather(self, side: tuple[Runs, ...], rank: int, layers: Sequence[int], tokens: slice) -> dict[str, Tensor]:
        index = torch.tensor(layers, device=self.device)
        return {
            runs.field.name: gather_rows(self._view(runs, rank), index, self.blocks[tokens], self.slots[tokens])
            for runs in side
        }

    def scatter(
        self, side: tuple[Runs, ...], rank: int, layers: Sequence[int], tokens: slice, rows: Mapping[str, Tensor]
    ) -> None:
        index = torch.tensor(layers, device=self.device)
        for runs in side:
            view = self._view(runs, rank)
            scatter_rows(view, index, self.blocks[tokens], self.slots[tokens], rows[runs.field.name])

    def _view(self, runs: Runs, rank: int) -> Tensor:
        return runs_view(self.regions[rank][runs.field.region], runs, self.group, self.layers[rank], self.num_blocks)


def _passes(part: PlanPart, *, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Slices of layers and of tokens, each small enough for the working memory: many layers, or part of one."""
    token_bytes = 4 * sum(runs.num_heads * runs.field.count for runs in part.gather)
    token_step = min(tokens, max(1, WORK_BYTES // token_bytes))
    layer_step = max(1, WORK_BYTES // (token_step * token_bytes))
    for layer in range(0, len(part.layers), layer_step):
        for token in range(0, tokens, token_step):
            yield slice(layer, min(layer + layer_step, len(part.layers))), slice(token, min(token + token_step, tokens))


def _convert(plan: TransformPlan, rows: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], float]:
    """The element operations, and the largest absolute error they made."""
    if not plan.converts:
        return rows, 0.0
    converted: dict[str, Tensor] = {}
    error_max = 0.0
    for conversion in plan.conversions:
        if conversion.component in rows:
            error_max = max(error_max, _component(conversion, rows, converted))
    return converted, error_max


def _component(conversion: Conversion, rows: Mapping[str, Tensor], converted: dict[str, Tensor]) -> float:
    name, scale_name = conversion.component, f"{conversion.component}_scale"
    if not any(not isinstance(op, Reorder) for op in conversion.ops):
        converted.update({field: raw for field, raw in rows.items() if field in (name, scale_name)})
        for op in conversion.ops:
            assert isinstance(op, Reorder)
            converted[name] = _reorder(rows[name], op, conversion.source.traits.itemsize)
        return 0.0
    values = decode_rows(rows[name], conversion.source, _scale(rows, name))
    for op in conversion.ops:
        if isinstance(op, Reorder):
            values = _reorder(values, op, 1)
    raw, scale = encode_rows(values, conversion.target)
    converted[name] = raw
    if scale is not None:
        converted[scale_name] = scale.unsqueeze(-1).view(torch.uint8)
    return _error(conversion, values, decode_rows(raw, conversion.target, scale), scale)


def _error(conversion: Conversion, values: Tensor, found: Tensor, scale: Tensor | None) -> float:
    """The largest error. Raises ConversionOutOfBounds where one is beyond the conversion's bound."""
    bound, magnitude = conversion.loss, values.abs()
    error = (found - values).abs()
    allowed = magnitude * bound.relative + magnitude.amax(dim=-1, keepdim=True) * bound.per_row_max + bound.absolute
    if bound.per_scale:
        allowed = allowed + bound.per_scale * (1.0 if scale is None else scale.unsqueeze(-1))
    outside = ~(error <= allowed)  # also where a NaN makes the comparison false
    if bool(outside.any()):
        source, target = conversion.source.storage_dtype.value, conversion.target.storage_dtype.value
        raise ConversionOutOfBounds(
            f"{conversion.component}: {int(outside.sum())} elements of {outside.numel()} are further from their "
            f"source than the bound for {source} -> {target} allows (overflow or NaN)",
            field=conversion.component,
        )
    return float(error.max())


def _reorder(rows: Tensor, op: Reorder, width: int) -> Tensor:
    """Elements of `width` bytes from halves to neighbouring pairs, or back."""
    half = rows.shape[-1] // width // 2
    inner = (2, half, width) if op.source == "model" else (half, 2, width)
    return rows.reshape(*rows.shape[:-1], *inner).transpose(-2, -3).reshape(rows.shape)


def _scale(rows: Mapping[str, Tensor], name: str) -> Tensor | None:
    raw = rows.get(f"{name}_scale")
    return None if raw is None else raw.contiguous().view(torch.float32).squeeze(-1)


@dataclass(frozen=True, slots=True)
class _Where:
    """The logical position of a pass."""

    layers: tuple[int, ...]
    token_start: int
    key: int

    def digest(self, rows: Mapping[str, Tensor], side: tuple[Runs, ...]) -> int:
        return sum(
            torch_digest.fold(
                torch_digest.row_digests(
                    rows[runs.field.name],
                    field_index=FIELD_NAMES.index(runs.field.name),
                    layers=self.layers,
                    token_start=self.token_start,
                    head_start=runs.head_start,
                    key=self.key,
                )
            )
            for runs in side
        )
