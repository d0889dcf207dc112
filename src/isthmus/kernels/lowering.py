"""A transformation plan, lowered: moves of rows with everything that a compiled kernel needs to know, and no more."""

from dataclasses import replace
from functools import lru_cache

from isthmus.core.errors import BadInput
from isthmus.kernels.lowered import Bound, Codec, Digit, Field, Lowered, Move, Order, Region, Scales, Shard, Step
from isthmus.portability.compiler import fingerprint_of
from isthmus.state.encoding import IN_POOL, Encoding, NibbleOrder
from isthmus.state.fields import ShardAddressing
from isthmus.state.plan import Conversion, PlanPart, Rebias, Reorder, Runs, TransformPlan
from isthmus.state.representation import FIELD_NAMES

__all__ = ["lower"]


@lru_cache(maxsize=256)
def lower(plan: TransformPlan) -> Lowered:
    """The moves of a plan. Remembered: it depends on nothing else.

    Raises:
        BadInput: the plan's fingerprint is not its own: it was changed after it was compiled.
    """
    wanted = fingerprint_of(plan)
    if plan.fingerprint != wanted:
        raise BadInput(f"fingerprint: got {plan.fingerprint or 'none'}, this plan's is {wanted}", field="fingerprint")
    layers = plan.layers
    return Lowered(
        fingerprint=plan.fingerprint,
        producer_shards=tuple(_shard(shard) for shard in plan.producer_shards),
        consumer_shards=tuple(_shard(shard) for shard in plan.consumer_shards),
        producer_block_size=plan.producer.block_size,
        consumer_block_size=plan.consumer.block_size,
        moves=tuple(
            _move(part, conversion, layers)
            for part in plan.parts
            for conversion in plan.conversions
            if any(runs.field.name == conversion.component for runs in part.gather)
        ),
    )


def _shard(shard: ShardAddressing) -> Shard:
    regions = tuple(Region(outer=region.outer, block_bytes=region.block_bytes) for region in shard.regions)
    return Shard(rank=shard.rank, regions=regions)


def _move(part: PlanPart, conversion: Conversion, layers: tuple[int, ...]) -> Move:
    gather = {runs.field.name: runs for runs in part.gather}
    scatter = {runs.field.name: runs for runs in part.scatter}
    name, scales = conversion.component, f"{conversion.component}_scale"
    ours, theirs = gather[name], scatter[name]
    step, exponent, reorder = _step(conversion)
    loss = conversion.loss
    return Move(
        component=name,
        step=step,
        exponent=exponent,
        reorder=reorder,
        layers=part.layers,
        positions=tuple(layers.index(layer) for layer in part.layers),
        producer_layers=part.producer_layers,
        consumer_layers=part.consumer_layers,
        producer_dcp_rank=part.producer_dcp_rank,
        consumer_dcp_rank=part.consumer_dcp_rank,
        head_start=ours.head_start,
        num_heads=ours.num_heads,
        source=_field(ours, part.producer_rank),
        target=_field(theirs, part.consumer_rank),
        source_scales=_field(gather[scales], part.producer_rank) if scales in gather else None,
        target_scales=_field(scatter[scales], part.consumer_rank) if scales in scatter else None,
        decode=_codec(conversion.source, ours.field.count),
        encode=_codec(conversion.target, theirs.field.count),
        bound=Bound(
            relative=loss.relative, absolute=loss.absolute, per_row_max=loss.per_row_max, per_scale=loss.per_scale
        ),
    )


def _step(conversion: Conversion) -> tuple[Step, int, Order]:
    """The step, the exponent of a rebias, and the order of elements that the source has where they are reordered."""
    ops = conversion.ops
    turned = [op.source for op in ops if isinstance(op, Reorder)]
    if not ops:
        return Step.COPY, 0, ""
    if turned and turned[0] in tuple(NibbleOrder):
        return Step.SWAP_NIBBLES, 0, ""
    reorder: Order = "" if not turned else "model" if turned[0] == "model" else "rope_pairs"
    if len(ops) == len(turned):
        return Step.COPY, 0, reorder
    if isinstance(ops[0], Rebias):
        return Step.REBIAS, ops[0].exponent, reorder
    return Step.RECODE, 0, reorder


def _field(runs: Runs, rank: int) -> Field:
    address = runs.field
    return Field(
        name=address.name,
        number=FIELD_NAMES.index(address.name),
        rank=rank,
        region=address.region,
        head=runs.head,
        units=address.units,
        unit_bytes=address.unit_bytes,
        offset=(address.offset.fixed, address.offset.per_block),
        digits=tuple(
            Digit(
                axis=digit.axis.value,
                divisor=digit.divisor,
                extent=digit.extent,
                fixed=digit.stride.fixed,
                per_block=digit.stride.per_block,
            )
            for digit in address.digits
        ),
    )


def _codec(encoding: Encoding, count: int) -> Codec:
    quant = encoding.quant
    plain = Codec(
        dtype=encoding.storage_dtype.value,
        bits=encoding.traits.bits,
        count=count,
        scales=Scales.NONE,
        high_first=encoding.nibble_order is NibbleOrder.HIGH_FIRST,
    )
    if quant is None:
        return plain
    return replace(
        plain,
        scales=Scales.STORED if quant.granularity in IN_POOL else Scales.STATIC,
        scale_dtype=quant.scale_dtype.value,
        block=quant.block,
        tensor_scale=quant.tensor_scale,
        ones=quant.static and quant.scale_values == "ones",
    )
