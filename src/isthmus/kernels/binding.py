"""Binding a plan to two block tables: for each row, the block and the slot in it, on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.core.errors import BadInput
from isthmus.kernels.lowered import Index
from isthmus.kernels.places import Side
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.plan import PlanPart, TransformPlan
from isthmus.state.representation import GroupRepresentation

__all__ = ["Binding", "Side", "bind", "bind_side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Both sides of `rows`: tokens, or what stands for them (`GroupRepresentation.held`)."""

    rows: TokenRange
    producer: Side
    consumer: Side

    def tokens_of(self, part: PlanPart) -> Index:
        """The rows that a part moves, as indexes into the binding."""
        ours = self.producer.dcp_rank == part.producer_dcp_rank
        theirs = self.consumer.dcp_rank == part.consumer_dcp_rank
        return np.nonzero(ours & theirs)[0]


def bind_side(
    group: GroupRepresentation,
    partition: Partition,
    token_range: TokenRange,
    rows: TokenRange,
    block_ids: Sequence[int],
    num_blocks: int,
) -> Side:
    """Locate `rows`, where `block_ids[0]` is the block of the first row that the group holds of `token_range`.

    Raises:
        BadInput: the table is too short, names a block twice or outside the pool.
    """
    deal, size = partition.dcp_interleave, partition.dcp_size
    span = group.block_size * size
    index = np.arange(rows.start, rows.stop, dtype=np.int64)
    entry = index // span - group.held(token_range).start // span
    table = np.asarray(block_ids, dtype=np.int64)
    if len(table) <= entry[-1]:
        raise BadInput(
            f"block_ids: got {len(table)}, wanted at least {entry[-1] + 1} of {span} tokens", field="block_ids"
        )
    if table.min() < 0 or table.max() >= num_blocks:
        raise BadInput(f"block_ids: got one outside the pool of {num_blocks} blocks", field="block_ids")
    if len(np.unique(table)) != len(table):
        raise BadInput("block_ids: got one twice", field="block_ids")
    if size == 1:
        slots, ranks = index % group.block_size, np.zeros_like(index)
    else:
        slots = (index // (deal * size) * deal + index % deal) % group.block_size
        ranks = index // deal % size
    return Side(blocks=table[entry], slots=slots, dcp_rank=ranks, num_blocks=num_blocks)


def bind(
    plan: TransformPlan,
    token_range: TokenRange,
    *,
    producer_blocks: Sequence[int],
    producer_num_blocks: int,
    consumer_blocks: Sequence[int],
    consumer_num_blocks: int,
) -> Binding:
    """Bind the rows that both sides hold of a token range to both block tables. Raises BadInput as `bind_side`."""
    ours, theirs = plan.producer.held(token_range), plan.consumer.held(token_range)
    rows = TokenRange(start=max(ours.start, theirs.start), stop=ours.stop)
    return Binding(
        rows=rows,
        producer=bind_side(
            plan.producer, plan.producer_partition, token_range, rows, producer_blocks, producer_num_blocks
        ),
        consumer=bind_side(
            plan.consumer, plan.consumer_partition, token_range, rows, consumer_blocks, consumer_num_blocks
        ),
    )
