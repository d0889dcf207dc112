"""Where rows lie: a lowered move, bound to block tables, as four tables of bytes for each field and side.

An axis never shares a digit with another, so the byte of (layer, token, head, unit) is the sum of one entry of each
table. That is proven to lie in the region once, from the tables' ends: no kernel checks an address. Knows numbers
only, as `lowered` does.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isthmus.core.errors import BadInput
from isthmus.kernels.lowered import Field, Index, Lowered, Move, Shard

__all__ = ["BoundMove", "Places", "Side", "bind_moves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where rows lie on one side: int64 [T] block ids, slots within the block, and the rank that rows are dealt to
    (`Partition.dcp_size`), in a pool of `num_blocks`.
    """

    blocks: Index
    slots: Index
    dcp_rank: Index
    num_blocks: int

    def of(self, chosen: Index) -> "Side":
        return Side(
            blocks=self.blocks[chosen],
            slots=self.slots[chosen],
            dcp_rank=self.dcp_rank[chosen],
            num_blocks=self.num_blocks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """One field of a move on one side. The region is number `region` of the rank that is `shard`-th of its side.

    `contiguous`: units follow each other, so that a row is one run of bytes.
    """

    shard: int
    region: int
    layer: Index
    token: Index
    head: Index
    unit: Index
    unit_bytes: int
    row_bytes: int
    contiguous: bool

    def part(self, layers: slice, tokens: slice) -> "Places":
        """The same for some layers and tokens: what is proven of all holds for them."""
        return replace(self, layer=self.layer[layers], token=self.token[tokens])

    @property
    def first(self) -> int:
        """The lowest byte that is touched."""
        return sum(int(table.min()) for table in (self.layer, self.token, self.head, self.unit))

    @property
    def last(self) -> int:
        """The byte behind the highest that is touched."""
        return sum(int(table.max()) for table in (self.layer, self.token, self.head, self.unit)) + self.unit_bytes

    @property
    def alignment(self) -> int:
        """The largest power of two, up to 64, that divides where every run of bytes begins."""
        ends = np.concatenate([self.layer, self.token, self.head, self.unit[: 1 if self.contiguous else None]])
        low = int(np.bitwise_or.reduce(ends)) | 64
        return low & -low


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundMove:
    """A move with its tables. `tokens`: the model's number of each row, which with layer and head is what digests are
    keyed by.
    """

    move: Move
    tokens: Index
    source: Places
    target: Places
    source_scales: Places | None
    target_scales: Places | None

    def part(self, layers: slice, tokens: slice) -> "BoundMove":
        """The same for some of its layers (by their position in the move) and some of its tokens."""
        move = self.move
        return BoundMove(
            move=replace(
                move,
                layers=move.layers[layers],
                positions=move.positions[layers],
                producer_layers=move.producer_layers[layers],
                consumer_layers=move.consumer_layers[layers],
            ),
            tokens=self.tokens[tokens],
            source=self.source.part(layers, tokens),
            target=self.target.part(layers, tokens),
            source_scales=self.source_scales and self.source_scales.part(layers, tokens),
            target_scales=self.target_scales and self.target_scales.part(layers, tokens),
        )


def bind_moves(lowered: Lowered, start: int, producer: Side, consumer: Side) -> tuple[BoundMove, ...]:
    """The tables of every move that has tokens. `start` is the number of the first row. Equal tables are one object.

    Raises:
        BadInput: a row would lie outside its region.
    """
    binder = _Binder(lowered, start, producer, consumer)
    found = (binder.bind(move) for move in lowered.moves)
    return tuple(bound for bound in found if bound is not None)


class _Binder:
    """Remembers what moves have in common."""

    def __init__(self, lowered: Lowered, start: int, producer: Side, consumer: Side) -> None:
        self._lowered = lowered
        self._start = start
        self._sides = (producer, consumer)
        self._dealt: dict[tuple[int, int], tuple[Index, Side, Side]] = {}
        self._tables: dict[Hashable, Index] = {}

    def bind(self, move: Move) -> BoundMove | None:
        """None where so few tokens are bound that none is dealt to both ranks."""
        ranks = (move.producer_dcp_rank, move.consumer_dcp_rank)
        tokens, ours, theirs = self._deal(ranks)
        if not len(tokens):
            return None
        sources, targets = self._lowered.producer_shards, self._lowered.consumer_shards
        mine = (move.producer_layers, move.num_heads, ours, sources, (ranks, "producer"))
        other = (move.consumer_layers, move.num_heads, theirs, targets, (ranks, "consumer"))
        return BoundMove(
            move=move,
            tokens=tokens,
            source=self._places(move.source, *mine),
            target=self._places(move.target, *other),
            source_scales=None if move.source_scales is None else self._places(move.source_scales, *mine),
            target_scales=None if move.target_scales is None else self._places(move.target_scales, *other),
        )

    def _deal(self, ranks: tuple[int, int]) -> tuple[Index, Side, Side]:
        """The numbers of the rows that both ranks have, and where they lie."""
        if ranks not in self._dealt:
            producer, consumer = self._sides
            chosen = np.nonzero((producer.dcp_rank == ranks[0]) & (consumer.dcp_rank == ranks[1]))[0]
            self._dealt[ranks] = self._start + chosen, producer.of(chosen), consumer.of(chosen)
        return self._dealt[ranks]

    def _places(
        self, field: Field, layers: Sequence[int], num_heads: int, side: Side, shards: Sequence[Shard], of: Hashable
    ) -> Places:
        def table(axis: str, index: Index) -> Index:
            total = np.zeros_like(index)
            for digit in field.digits:
                if digit.axis == axis:
                    total += digit.of(index, side.num_blocks)
            return total

        key = of, tuple(digit for digit in field.digits if digit.axis in ("block", "token"))
        if key not in self._tables:
            self._tables[key] = table("block", side.blocks) + table("token", side.slots)
        offset = field.offset[0] + field.offset[1] * side.num_blocks
        unit = table("unit", np.arange(field.units, dtype=np.int64))
        shard = next(at for at, each in enumerate(shards) if each.rank == field.rank)
        places = Places(
            shard=shard,
            region=field.region,
            layer=table("layer", np.asarray(layers, dtype=np.int64)) + offset,
            token=self._tables[key],
            head=table("head", field.head + np.arange(num_heads, dtype=np.int64)),
            unit=unit,
            unit_bytes=field.unit_bytes,
            row_bytes=field.row_bytes,
            contiguous=bool((unit == np.arange(field.units) * field.unit_bytes).all()),
        )
        size = shards[shard].regions[field.region].size_bytes(side.num_blocks)
        if places.first < 0 or places.last > size:
            raise BadInput(
                f"{field.name}: rows at bytes {places.first} to {places.last} of a region of {size}", field=field.name
            )
        return places
