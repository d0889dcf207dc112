"""The compiler: two representations to the plans that rewrite the first as the second, one for each pair of groups."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from isthmus.core.errors import Unsupported
from isthmus.portability.alignment import Meeting, meetings
from isthmus.portability.conversion import conversion_of
from isthmus.portability.differences import places
from isthmus.state.addressing import address_shards
from isthmus.state.encoding import StorageDtype
from isthmus.state.fields import ShardAddressing
from isthmus.state.partition import Partition
from isthmus.state.plan import Conversion, Outcome, PlanPart, Reorder, Runs, TransformPlan
from isthmus.state.representation import GroupRepresentation
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.sameness import same_placement

__all__ = ["compile_plan", "compile_plans"]

_Share = tuple[str, int, int]
"""A component, and the model's heads [start, stop)."""


def compile_plans(producer: KVRepresentation, consumer: KVRepresentation) -> tuple[TransformPlan, ...]:
    """Compile all pairs of groups that meet. A plan grows with the shards that meet, not with tokens or blocks.

    Raises:
        Unsupported: what one side holds the other does not, or a form that nobody has described.
    """
    met, missing = meetings(producer, consumer)
    if missing:
        raise Unsupported(f"layers: {missing}; both sides must hold the same", field="layers")
    return tuple(compile_plan(producer, consumer, meeting) for meeting in met)


def compile_plan(producer: KVRepresentation, consumer: KVRepresentation, meeting: Meeting) -> TransformPlan:
    """Compile one pair of groups over the layers that both hold. Raises Unsupported."""
    ours, theirs = producer.groups[meeting.producer], consumer.groups[meeting.consumer]
    _check(ours, theirs)
    sources = address_shards(ours, producer.partition, f"g{meeting.producer}.")
    targets = address_shards(theirs, consumer.partition, f"g{meeting.consumer}.")
    conversions = tuple(conversion_of(part, theirs.component(part.name)) for part in ours.components)
    for conversion in conversions:
        dtypes = conversion.source.storage_dtype, conversion.target.storage_dtype
        if conversion.ops and StorageDtype.U8 in dtypes:
            raise Unsupported(
                f"{conversion.component}.storage_dtype: producer {dtypes[0].value}, consumer {dtypes[1].value}; "
                "bytes without a known meaning cannot be converted",
                field="storage_dtype",
            )
    plan = TransformPlan(
        outcome=_outcome(ours, producer.partition, theirs, consumer.partition, conversions),
        producer_group=meeting.producer,
        consumer_group=meeting.consumer,
        producer=ours,
        consumer=theirs,
        producer_partition=producer.partition,
        consumer_partition=consumer.partition,
        producer_shards=sources,
        consumer_shards=targets,
        parts=tuple(_parts(ours, theirs, (producer.partition, consumer.partition), sources, targets, meeting.layers)),
        conversions=conversions,
    )
    return msgspec.structs.replace(plan, fingerprint=fingerprint_of(plan))


def fingerprint_of(plan: TransformPlan) -> str:
    """A digest of everything in a plan but its own fingerprint."""
    bare = msgspec.structs.replace(plan, fingerprint="")
    return hashlib.sha256(msgspec.msgpack.encode(bare)).hexdigest()[:32]


def _check(ours: GroupRepresentation, theirs: GroupRepresentation) -> None:
    for side, group in (("producer", ours), ("consumer", theirs)):
        if group.opaque:
            raise Unsupported(f"interior: the {side}'s {group.interior} is not described", field="interior")
    for field in ("kind", "tokens_per_state"):
        a, b = getattr(ours, field), getattr(theirs, field)
        if a != b:
            raise Unsupported(f"{field}: producer {a!r}, consumer {b!r}; they must be equal", field=field)
    for part in ours.components:
        other = theirs.component(part.name)
        for field, a, b in (
            ("num_kv_heads", part.heads, other.heads),
            ("head_size", part.count, other.count),
            ("transform", part.encoding.transform, other.encoding.transform),
        ):
            if a != b:
                raise Unsupported(f"{part.name}.{field}: producer {a!r}, consumer {b!r}; must be equal", field=field)


def _outcome(
    ours: GroupRepresentation,
    our_partition: Partition,
    theirs: GroupRepresentation,
    their_partition: Partition,
    conversions: tuple[Conversion, ...],
) -> Outcome:
    ops = [op for conversion in conversions for op in conversion.ops]
    converts = any(not isinstance(op, Reorder) for op in ops)
    moves = (
        ours.layers != theirs.layers
        or ours.block_size != theirs.block_size
        or ours.sliding_window != theirs.sliding_window
        or our_partition != their_partition
        or any(isinstance(op, Reorder) for op in ops)
        or _moves(ours, our_partition, theirs, their_partition, converts=converts)
    )
    if moves:
        return Outcome.REDISTRIBUTE_CONVERT if converts else Outcome.REDISTRIBUTE
    return Outcome.CONVERT if converts else Outcome.DIRECT


def _moves(
    ours: GroupRepresentation,
    our_partition: Partition,
    theirs: GroupRepresentation,
    their_partition: Partition,
    *,
    converts: bool,
) -> bool:
    """Whether rows lie elsewhere. Under a conversion sizes differ anyway, so there names of the arrangement count."""
    if same_placement(ours, our_partition, theirs, their_partition):
        return False
    return not converts or bool(places(ours, theirs))


def _parts(
    ours: GroupRepresentation,
    theirs: GroupRepresentation,
    partitions: tuple[Partition, Partition],
    sources: tuple[ShardAddressing, ...],
    targets: tuple[ShardAddressing, ...],
    layers: tuple[int, ...],
) -> Iterator[PlanPart]:
    """For each pair of shards that meet, what the one hands to the other."""
    met = set(layers)
    stages: dict[int, dict[int, ShardAddressing]] = defaultdict(dict)
    for source in sources:
        stage, rank = divmod(source.rank, partitions[0].tp_size)
        stages[stage][rank] = source
    held_by = [(ranks, _layers(ours, ranks[0], met)) for _, ranks in sorted(stages.items())]
    for target in targets:
        wanted = _layers(theirs, target, met)
        for ranks, held in held_by:
            common = [layer for layer in wanted if layer in held]
            if not common:
                continue
            for source, shares in _sources(ours, partitions, ranks, target):
                yield PlanPart(
                    producer_rank=source.rank,
                    consumer_rank=target.rank,
                    producer_dcp_rank=source.dcp_rank,
                    consumer_dcp_rank=target.dcp_rank,
                    layers=tuple(common),
                    producer_layers=tuple(held[layer] for layer in common),
                    consumer_layers=tuple(wanted[layer] for layer in common),
                    gather=_runs(source, shares),
                    scatter=_runs(target, shares),
                )


def _layers(group: GroupRepresentation, shard: ShardAddressing, met: set[int]) -> dict[int, int]:
    """The model's layers that a shard holds, to their positions in it."""
    held = enumerate(group.layers[shard.layer_start : shard.layer_stop])
    return {layer: at for at, layer in held if layer in met}


def _sources(
    ours: GroupRepresentation,
    partitions: tuple[Partition, Partition],
    ranks: dict[int, ShardAddressing],
    target: ShardAddressing,
) -> list[tuple[ShardAddressing, list[_Share]]]:
    """Who hands the target its heads: of ranks that hold the same, one, and neighbouring targets ask different ones."""
    found: dict[int, list[_Share]] = defaultdict(list)
    for part in ours.components:
        wanted = target.field(part.name)
        holders: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for rank, shard in ranks.items():
            held = shard.field(part.name)
            start = max(wanted.head_start, held.head_start)
            stop = min(wanted.head_start + wanted.heads, held.head_start + held.heads)
            if start < stop and _tokens_meet(partitions, shard, target):
                holders[start, stop, shard.dcp_rank].append(rank)
        for (start, stop, _), candidates in holders.items():
            found[candidates[target.rank % len(candidates)]].append((part.name, start, stop))
    return [(ranks[rank], shares) for rank, shares in sorted(found.items())]


def _tokens_meet(partitions: tuple[Partition, Partition], source: ShardAddressing, target: ShardAddressing) -> bool:
    """Whether some token is dealt to both (`Partition.dcp_size`)."""
    ours, theirs = partitions
    if ours.dcp_interleave != theirs.dcp_interleave:
        return True
    common = math.gcd(ours.dcp_size, theirs.dcp_size)
    return source.dcp_rank % common == target.dcp_rank % common


def _runs(shard: ShardAddressing, shares: list[_Share]) -> tuple[Runs, ...]:
    """The fields of a shard that hold the shares: components, and their scales where they lie in the pool."""
    return tuple(
        Runs(field=field, head=start - field.head_start, num_heads=stop - start, head_start=start)
        for field in shard.fields
        for component, start, stop in shares
        if field.name in (component, f"{component}_scale")
    )
