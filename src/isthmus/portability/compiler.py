"""The compiler: two representations of one layer group to the plan that rewrites the first as the second."""

import hashlib

import msgspec

from isthmus.core.errors import Unsupported
from isthmus.portability.loss import loss_bound
from isthmus.state.addressing import ShardAddressing, address_shards
from isthmus.state.encoding import StorageDtype
from isthmus.state.plan import (
    Cast,
    Dequantise,
    ElementOp,
    Outcome,
    PlanPart,
    Quantise,
    RunAt,
    Runs,
    TransformPlan,
)
from isthmus.state.representation import GroupRepresentation, Partition

__all__ = ["compile_plan"]


def compile_plan(
    producer: GroupRepresentation,
    producer_partition: Partition,
    consumer: GroupRepresentation,
    consumer_partition: Partition,
) -> TransformPlan:
    """Compile. The plan does not grow with tokens, layers or blocks, only with the shards that meet.

    Raises:
        Unsupported: the groups hold different layers or heads, which no plan resolves.
    """
    for field in ("kind", "layer_start", "layer_stop", "num_kv_heads", "head_size", "head_size_v", "interior"):
        ours, theirs = getattr(producer, field), getattr(consumer, field)
        if ours != theirs:
            raise Unsupported(f"{field}: producer {ours!r}, consumer {theirs!r}; they must be equal", field=field)
    sources = address_shards(producer, producer_partition)
    targets = address_shards(consumer, consumer_partition)
    ops = _element_ops(producer, consumer)
    redistributes = (
        producer_partition != consumer_partition
        or any(getattr(producer, f) != getattr(consumer, f) for f in ("layout", "kv_order", "block_size"))
        or (not ops and producer.quant != consumer.quant)
    )
    plan = TransformPlan(
        outcome=_outcome(redistributes, converts=bool(ops)),
        producer=producer,
        consumer=consumer,
        producer_partition=producer_partition,
        consumer_partition=consumer_partition,
        producer_shards=sources,
        consumer_shards=targets,
        parts=_parts(sources, targets),
        ops=ops,
        loss=loss_bound(producer, consumer),
        run_at=RunAt.CONSUMER,
        run_at_reason=(
            "the producer's blocks cross as they lie, so that its digest of the fill holds over what arrived, "
            "and prefill spends no time on it"
        ),
    )
    return msgspec.structs.replace(plan, fingerprint=hashlib.sha256(msgspec.msgpack.encode(plan)).hexdigest()[:32])


def _outcome(redistributes: bool, *, converts: bool) -> Outcome:
    if redistributes:
        return Outcome.REDISTRIBUTE_CONVERT if converts else Outcome.REDISTRIBUTE
    return Outcome.CONVERT if converts else Outcome.DIRECT


def _element_ops(producer: GroupRepresentation, consumer: GroupRepresentation) -> tuple[ElementOp, ...]:
    """What happens to each element between gather and scatter; nothing, where it is already right."""
    source, target = producer.storage_dtype, consumer.storage_dtype
    if source is target and (producer.quant is None) == (consumer.quant is None):
        return ()
    ops: list[ElementOp] = []
    if producer.quant is not None:
        ops.append(Dequantise(source=source, granularity=producer.quant.granularity))
        source = StorageDtype.F32
    if consumer.quant is not None:
        ops.append(Quantise(target=target, granularity=consumer.quant.granularity))
    elif source is not target:
        ops.append(Cast(source=source, target=target))
    return tuple(ops)


def _parts(sources: tuple[ShardAddressing, ...], targets: tuple[ShardAddressing, ...]) -> tuple[PlanPart, ...]:
    """One part for each pair of shards that share heads."""
    parts = []
    for source in sources:
        for target in targets:
            start = max(source.head_start, target.head_start)
            stop = min(source.head_stop, target.head_stop)
            if start < stop:
                parts.append(
                    PlanPart(
                        producer_rank=source.rank,
                        consumer_rank=target.rank,
                        head_start=start,
                        head_stop=stop,
                        gather=_runs(source, start, stop),
                        scatter=_runs(target, start, stop),
                    )
                )
    return tuple(parts)


def _runs(shard: ShardAddressing, start: int, stop: int) -> tuple[Runs, ...]:
    return tuple(Runs(field=field, head=start - shard.head_start, num_heads=stop - start) for field in shard.fields)
