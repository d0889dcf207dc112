"""Prefixes that are kept for reuse: names of token blocks, and the resident blocks of this worker that hold their KV.

    match ─► pin ─► (the hand-off fills what is missing) ─► offer ─► ending ─► retained, and unpinned
                                                                              reclaim · drop ─► free

A block comes in when the hand-off that filled it ends, and not before: until then a grant may be on it. The ledger
then gives it an epoch of its own, so no old grant reaches it. Only whole blocks are kept, and nobody writes to one
again: who uses a prefix fills blocks of its own behind it. Names are chained, so what is kept is a forest; what has
children, or is pinned, is never given up, and of the rest the retention policy says what goes first.

Retained blocks give way to admission: `reclaim` is what capacity asks before it lets anybody wait. Nobody who waits has
pinned anything, or two who wait could keep the room from each other.

Owns which blocks are retained. Refuses to know what names are made of (`prefix_hash`; the tenant is in them, I7), where
else KV might lie (`residency`), and what a block is worth (`retention`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, Lost
from isthmus.core.ids import BlockId, Digest, Epoch, HandoffId
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment, BlockState, Count
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.retention import HALF_LIFE, Entry, EvictionOrder, Retention

__all__ = ["Evicted", "OnEvicted", "Pinned", "PrefixCache", "PrefixCounts", "PrefixGone"]


class PrefixGone(Lost):
    """The prefix that was counted on has been given up meanwhile: reserve for all of it."""


@dataclass(slots=True, kw_only=True)
class PrefixCounts:
    """What has happened so far. Blocks, but for `hits` and `misses`, which are hand-offs."""

    hits: int = 0
    misses: int = 0
    reused: int = 0
    retained: int = 0
    evicted_room: int = 0
    evicted_bound: int = 0
    evicted_drop: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A prefix that a hand-off uses. `digests` are of its tokens in order; empty where they were not kept."""

    names: tuple[bytes, ...] = ()
    blocks: tuple[BlockId, ...] = ()
    digests: tuple[Digest, ...] = ()
    lent: frozenset[BlockId] = frozenset()


_NOTHING = Pinned()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """A block that is given up: its bytes are there until whoever is told of it returns. `label` is its tenant's."""

    name: bytes
    label: bytes
    block: BlockId
    digests: tuple[Digest, ...]
    recompute_ms: float


OnEvicted = Callable[[Evicted], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What a hand-off's own blocks hold: block i is the prompt's whole block `first` + i."""

    names: tuple[bytes, ...]
    label: bytes
    first: int
    blocks: tuple[BlockId, ...]
    digests: tuple[tuple[Digest, ...], ...]
    recompute_ms: float


@dataclass(slots=True, kw_only=True)
class _Kept:
    """One retained block."""

    entry: Entry
    label: bytes
    block: BlockId
    epoch: Epoch
    parent: bytes | None
    digests: tuple[Digest, ...]
    children: int = 0
    pins: int = 0


class PrefixCache:
    """One worker's, at most `blocks_max` blocks. On one event loop; nothing here awaits."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        retention: Retention,
        blocks_max: int,
        half_life: Duration = HALF_LIFE,
    ) -> None:
        self.counts = PrefixCounts()
        self._ledger = ledger
        self._clock = clock
        self._blocks_max = min(blocks_max, ledger.num_blocks)
        self._half_life = half_life
        self._order = EvictionOrder(retention, entries_max=ledger.num_blocks)
        self._kept: dict[bytes, _Kept] = {}
        self._pinned: dict[HandoffId, Pinned] = {}
        self._blocks_pinned = 0
        self._offers: dict[HandoffId, _Offer] = {}
        self._coming: dict[HandoffId, tuple[_Offer, dict[BlockId, int]]] = {}
        self._evicting = False
        self._on_evicted: list[OnEvicted] = []
        ledger.when_retained(self._retained)

    def __len__(self) -> int:
        """Blocks retained."""
        return len(self._kept)

    @property
    def pinned_blocks(self) -> int:
        """Retained blocks that some hand-off uses now."""
        return self._blocks_pinned

    def row(self) -> dict[str, int]:
        """For people: what is here now, and what has happened so far."""
        return {"blocks": len(self), "pinned": self._blocks_pinned, **asdict(self.counts)}

    def when_evicted(self, callback: OnEvicted) -> None:
        """Call `callback` for each block that is given up, before anybody else can have it."""
        self._on_evicted.append(callback)

    # a hand-off's beginning

    def match(self, names: Sequence[bytes]) -> int:
        """How many blocks of a prompt are here, from its first on. A use, so that they are not the next to go."""
        now, found = self._clock.now(), 0
        for name in names:
            kept = self._kept.get(name)
            if kept is None:
                break
            kept.entry = kept.entry.used(now, self._half_life)
            if name in self._order:
                self._order.put(kept.entry)
            found += 1
        return found

    def pin(self, handoff: HandoffId, names: Sequence[bytes]) -> None:
        """Keep these blocks, all of them, until `handoff` ends.

        Raises:
            PrefixGone: one of them is not here any more; nothing is pinned.
        """
        if handoff in self._pinned:
            raise Bug(f"hand-off {handoff} pins a second prefix", field="handoff")
        kept = [self._kept[name] for name in names if name in self._kept]
        if len(kept) < len(names):
            raise PrefixGone(f"{len(names) - len(kept)} of {len(names)} blocks have been given up", field="prefix")
        for each in kept:
            self._ledger.hold((each.block,), each.epoch, Count.ACTIVE)
            each.pins += 1
            self._blocks_pinned += each.pins == 1
            self._order.remove(each.entry.key)
        self._pinned[handoff] = Pinned(
            names=tuple(names),
            blocks=tuple(each.block for each in kept),
            digests=tuple(digest for each in kept for digest in each.digests),
            lent=frozenset(each.block for each in kept),
        )

    def seen(self, blocks: int) -> None:
        """A hand-off has begun, and reuses so many blocks."""
        self.counts.hits += blocks > 0
        self.counts.misses += blocks == 0
        self.counts.reused += blocks

    def pinned(self, handoff: HandoffId) -> Pinned:
        """What a hand-off uses."""
        return self._pinned.get(handoff, _NOTHING)

    def lends(self, handoff: HandoffId, block: BlockId) -> bool:
        """Whether `block` is of the prefix that a live hand-off uses: then its reader may read it."""
        return block in self._pinned.get(handoff, _NOTHING).lent

    # and its end

    def offer(
        self,
        handoff: HandoffId,
        names: Sequence[bytes],
        blocks: Sequence[BlockId],
        *,
        label: bytes = b"",
        digests: Sequence[tuple[Digest, ...]] = (),
        recompute_ms: float,
    ) -> None:
        """The hand-off's KV is whole and verified. `names` are of all whole blocks of its prompt; `blocks`, its own
        ones, come after those it has pinned. `recompute_ms` is for each block.
        """
        first = len(self.pinned(handoff).blocks)
        own = tuple(blocks[: len(names) - first])
        if len(own) != len(names) - first or (digests and len(digests) != len(own)):
            raise Bug(f"{len(names)} names for {first} and {len(own)} blocks", field="blocks")
        self._offers[handoff] = _Offer(
            names=tuple(names),
            label=label,
            first=first,
            blocks=own,
            digests=tuple(digests) or ((),) * len(own),
            recompute_ms=recompute_ms,
        )

    def ending(self, handoff: HandoffId, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """Call before the hand-off's own blocks are freed: nobody touches them, or its prefix, any more.

        What it has offered is retained, if its blocks are resident (they may come out of quarantine) and its place in
        the forest is still there.
        """
        offer = self._offers.pop(handoff, None)
        if offer is not None and offer.blocks and self._ledger.state(blocks[0]) is BlockState.RESIDENT:
            self._claim(handoff, offer, epoch)
        self.unpin(handoff)

    def unpin(self, handoff: HandoffId) -> None:
        """The hand-off uses its prefix no more. Idempotent."""
        for name in self._pinned.pop(handoff, _NOTHING).names:
            kept = self._kept[name]
            self._ledger.unhold((kept.block,), kept.epoch, Count.ACTIVE)
            kept.pins -= 1
            self._blocks_pinned -= kept.pins == 0
            self._may_go(kept)

    # room

    def reclaim(self, blocks_wanted: int) -> int:
        """Give up retained blocks so that `blocks_wanted` more are free; how many were. All of them, or none."""
        if self._evicting or blocks_wanted > len(self._kept) - self._blocks_pinned:
            return 0  # what does not suffice is not worth losing: whoever asks waits either way
        given_up = self._evict(blocks_wanted)
        self.counts.evicted_room += given_up
        return given_up

    def drop(self) -> int:
        """Give up everything that no hand-off uses; how many blocks."""
        given_up = self._evict(len(self._kept))
        self.counts.evicted_drop += given_up
        return given_up

    # inside

    def _claim(self, handoff: HandoffId, offer: _Offer, epoch: Epoch) -> None:
        over = len(self._kept) + len(offer.blocks) - self._blocks_max
        if over > 0:
            self.counts.evicted_bound += self._evict(over)
        room = self._blocks_max - len(self._kept)
        # Another hand-off may have filled the same meanwhile, and ended first. Whatever block precedes one of these is
        # here, or comes with it: what is before the first is pinned.
        names = offer.names[offer.first :]
        missing = [place for place, name in enumerate(names) if name not in self._kept][: max(0, room)]
        if missing:
            places = {offer.blocks[place]: place for place in missing}
            self._ledger.hold(tuple(places), epoch, Count.RETENTION)
            self._coming[handoff] = offer, places

    def _retained(self, handoff: HandoffId, assignments: tuple[Assignment, ...]) -> None:
        """The ledger has freed a hand-off's blocks but for those that were claimed."""
        if handoff not in self._coming or len(assignments) != len(self._coming[handoff][1]):
            raise Bug(f"hand-off {handoff}: {len(assignments)} blocks retained that were not claimed", field="handoff")
        (offer, places), now = self._coming.pop(handoff), self._clock.now()
        for assignment in sorted(assignments, key=lambda each: places[each.blocks[0]]):
            place = places[assignment.blocks[0]]
            name = offer.names[offer.first + place]
            parent = offer.names[offer.first + place - 1] if offer.first + place else None
            entry = Entry.made(
                name,
                size_bytes=self._ledger.block_bytes,
                recompute_ms=offer.recompute_ms,
                now=now,
                half_life=self._half_life,
            )
            kept = _Kept(
                entry=entry,
                label=offer.label,
                block=assignment.blocks[0],
                epoch=assignment.epoch,
                parent=parent,
                digests=offer.digests[place],
            )
            self._kept[name] = kept
            self._order.put(entry)
            if parent is not None:
                self._kept[parent].children += 1
                self._order.remove(parent)
            self.counts.retained += 1

    def _evict(self, blocks_wanted: int) -> int:
        """Give up at most `blocks_wanted`, least worth first, children before parents."""
        given_up, self._evicting = 0, True
        while given_up < blocks_wanted and (victim := self._order.pop()) is not None:
            kept = self._kept.pop(victim.key)
            if kept.parent is not None:
                parent = self._kept[kept.parent]
                parent.children -= 1
                self._may_go(parent)
            given_up += 1
            self._say(kept)
            self._ledger.unhold((kept.block,), kept.epoch, Count.RETENTION)
            self._ledger.free((kept.block,), kept.epoch, Evidence.OWN_WORK_ENDED)
        self._evicting = False
        return given_up

    def _say(self, kept: _Kept) -> None:
        if self._on_evicted:
            entry = kept.entry
            evicted = Evicted(
                name=entry.key,
                label=kept.label,
                block=kept.block,
                digests=kept.digests,
                recompute_ms=entry.recompute_ms,
            )
            for callback in self._on_evicted:
                callback(evicted)

    def _may_go(self, kept: _Kept) -> None:
        if not kept.pins and not kept.children:
            self._order.put(kept.entry)
