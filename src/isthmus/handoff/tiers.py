"""Where retained blocks lie once the pool has given them up, and their way back: host memory and files, as configured.

    a tier gives up a block ─► (residency: which tier further out pays?) ─► kept there, or nowhere
    a prompt begins         ─► (residency: which of its blocks are to be in the pool?) ─► blocks of the cache's own are
                               filled from whichever tier has them, nearest first, and retained

A block comes back as if a hand-off had filled it: reserved, filled, settled, retained. So the ledger knows no other way
in, and a load that fails leaves nothing behind. It takes free blocks, and retained ones that are worth less, and none
while anybody waits for some. What is loaded is held against its tier's checksum, its key and its logical digest before
it is retained (I1); what does not hold is computed again. A copy stays where it was, so that the next time this block
leaves the pool costs nothing.

A policy may rank `Tier.REMOTE` too, but nothing here moves to it or from it: what lies in another worker's memory is
fetched by an ordinary hand-off from a producer that has retained it.
"""

from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Digest, HandoffId, TenantId
from isthmus.core.limits import HOST_TO_FILES_MS_MAX
from isthmus.core.units import Duration
from isthmus.handoff.seams import BlockStore
from isthmus.handoff.tier_store import DIGEST_BYTES, Kept, Leaving, TierStore, digests_in, sum_of
from isthmus.ownership.accounts import Assignment
from isthmus.ownership.index_file import FileKey
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import Evicted, PrefixCache, PrefixGone
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.residency import Discard, Item, Residency, Tier, TierState

__all__ = ["Tiers", "host_tier_of", "payload_bytes_of"]

_POOL_BYTES_PER_MS = 1e12  # it is where it is used


def payload_bytes_of(pool: BlockStore, digests_per_block: int) -> int:
    """What one block takes in any tier (`tier_store`)."""
    return digests_per_block * DIGEST_BYTES + pool.block_bytes


def host_tier_of(pool: BlockStore) -> Tier:
    """What host memory is to this pool: `BlockStore.host_memory` pins it for a pool on an accelerator."""
    return Tier.PINNED_HOST if Tier(pool.residency.tier) is Tier.DEVICE else Tier.HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A block that is to be in the pool, and who has it."""

    key: FileKey
    store: TierStore
    recompute_ms: float


class Tiers:
    """One worker's. `stores` are what lies behind its pool, nearest first, each of another tier.

    `digests_per_block`: of how many tokens a block's digests are kept with it: all, or none. `idle` says whether nobody
    waits for blocks.
    """

    def __init__(
        self,
        stores: Sequence[TierStore],
        *,
        residency: Residency,
        pool: BlockStore,
        cache: PrefixCache,
        ledger: Ledger,
        clock: Clock,
        identity: bytes,
        representation: bytes,
        digests_per_block: int,
        idle: Callable[[], bool],
    ) -> None:
        self.discarded = 0
        self._stores = tuple(stores)
        self._by_tier = {store.tier: store for store in stores}
        if len(self._by_tier) != len(self._stores) or Tier.DEVICE in self._by_tier:
            raise Bug(f"tiers behind the pool: {', '.join(store.tier for store in stores)}", field="stores")
        self._residency = residency
        self._pool = pool
        self._cache = cache
        self._ledger = ledger
        self._clock = clock
        self._identity = identity
        self._representation = representation
        self._digests = digests_per_block
        self._payload_bytes = payload_bytes_of(pool, digests_per_block)
        self._idle = idle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For the body, what the cache gives up is kept. At its end, what would end with the process goes further out.

        Raises:
            ConfigInvalid: a tier cannot be had as configured.
        """
        async with AsyncExitStack() as stack:
            for store in self._stores:
                await stack.enter_async_context(store.running())
                store.when_given_up(self._keep)
            self._cache.when_evicted(self.demote)
            try:
                yield
            finally:
                await self._save()

    def row(self) -> dict[str, int]:
        """For people: blocks so far, and bytes now. `pool_discarded` left the pool and went nowhere."""
        found = {"pool_discarded": self.discarded}
        for store in self._stores:
            found |= {f"{store.tier}_{what}": count for what, count in store.counts.row().items()}
            found[f"{store.tier}_bytes"] = store.bytes_held
        return found

    # out

    def demote(self, gone: Evicted) -> None:
        """The pool gives up a block: keep its bytes, if they are worth a place further out."""
        if len(gone.digests) != self._digests:
            raise Bug(f"{len(gone.digests)} digests of a block, wanted {self._digests}", field="digests")

        def write(into: memoryview) -> None:
            head = self._digests * DIGEST_BYTES
            into[:head] = array("Q", gone.digests).tobytes()
            self._pool.take_block(gone.block, into[head:])

        leaving = Leaving(
            key=self._key(gone.label, gone.name),
            logical_digest=sum_of(gone.digests),
            recompute_ms=gone.recompute_ms,
            write=write,
        )
        self.discarded += not self._keep(leaving, Tier.DEVICE)

    def _keep(self, leaving: Leaving, lies_in: Tier) -> bool:
        item = Item(size_bytes=self._payload_bytes, recompute_ms=leaving.recompute_ms)
        decision = self._residency.demote(item, lies_in, self._states(pool_room=0))
        if isinstance(decision, Discard):
            return False
        if decision.tier is lies_in or decision.tier not in self._by_tier:
            raise Bug(f"residency: from {lies_in} to {decision.tier}, which is not further out", field="residency")
        return self._by_tier[decision.tier].keep(leaving)

    async def _save(self) -> None:
        """What is worth most first, for as long as a worker's end may take."""
        until = self._clock.now() + Duration.of_ms(HOST_TO_FILES_MS_MAX).ns
        for store in self._stores[:-1]:
            for _ in store.give_up_all():
                for other in self._stores:
                    await other.settled()
                if self._clock.now() > until:
                    return

    # in

    async def promote(self, names: Sequence[bytes], matched: int, *, label: bytes, tenant: TenantId) -> int:
        """Bring back what follows the `matched` blocks of a prompt that are here; how many blocks were."""
        if self._nearest(label, names[matched]) is None or not self._idle():
            return 0
        loader = HandoffId(self._clock.token())
        try:
            self._cache.pin(loader, names[:matched])
        except PrefixGone:
            return 0
        wanted = self._wanted(label, names[matched:])
        with ExitStack() as held:
            # What is reserved may push other blocks out of the pool, and those must not push out what is to be loaded.
            for store, run in _runs(wanted):
                held.enter_context(store.holding([each.key for each in run]))
            own = self._reserve(loader, tenant, len(wanted))
            if own is None:
                self._cache.unpin(loader)
                return 0
            return await self._fill(loader, own, wanted[: len(own.blocks)], names, matched, label)

    def _nearest(self, label: bytes, name: bytes) -> _Wanted | None:
        key = self._key(label, name)
        for store in self._stores:
            if (recompute_ms := store.recompute_ms(key)) is not None:
                return _Wanted(key=key, store=store, recompute_ms=recompute_ms)
        return None

    def _wanted(self, label: bytes, names: Sequence[bytes]) -> list[_Wanted]:
        """What is to be loaded: from the first on, until one lies nowhere or is to stay where it lies.

        A prompt's blocks are needed in the pool or not at all, so any other answer of the policy lets one stay.
        """
        room = self._ledger.available().blocks + len(self._cache) - self._cache.pinned_blocks
        wanted: list[_Wanted] = []
        for name in names[:room]:
            found = self._nearest(label, name)
            if found is None:
                break
            item = Item(size_bytes=self._payload_bytes, recompute_ms=found.recompute_ms)
            states = self._states(pool_room=room - len(wanted))
            if self._residency.promote(item, found.store.tier, states).tier is not Tier.DEVICE:
                break
            wanted.append(found)
        return wanted

    def _reserve(self, loader: HandoffId, tenant: TenantId, wanted: int) -> Assignment | None:
        """Free blocks; if there are too few, those of prefixes that nobody has asked for as lately."""
        self._cache.reclaim(max(0, wanted - self._ledger.available().blocks))
        blocks = min(wanted, self._ledger.available().blocks)
        return self._ledger.try_reserve(loader, tenant=tenant, blocks=blocks, staging_bytes=0) if blocks else None

    async def _fill(
        self,
        loader: HandoffId,
        own: Assignment,
        wanted: Sequence[_Wanted],
        names: Sequence[bytes],
        matched: int,
        label: bytes,
    ) -> int:
        """Load into blocks of the cache's own, and retain what came whole."""
        self._ledger.fill(own.blocks, own.epoch)
        loaded: list[tuple[Digest, ...]] = []
        try:
            await self._load(wanted, own.blocks, loaded)
        finally:
            self._ledger.settle(own.blocks, own.epoch, in_use=False)
            if loaded:
                self._cache.offer(
                    loader,
                    names[: matched + len(loaded)],
                    own.blocks,
                    label=label,
                    digests=loaded,
                    recompute_ms=wanted[len(loaded) - 1].recompute_ms,
                )
            self._cache.ending(loader, own.blocks, own.epoch)
            self._ledger.free(own.blocks, own.epoch, Evidence.OWN_WORK_ENDED)
        return len(loaded)

    async def _load(
        self, wanted: Sequence[_Wanted], blocks: Sequence[BlockId], loaded: list[tuple[Digest, ...]]
    ) -> None:
        """Add to `loaded` the digests of each block that is in its place, in order, until one is not."""

        def install(kept: Kept) -> bool:
            digests = digests_in(kept.payload, self._digests)
            if sum_of(digests) != kept.logical_digest:
                return False
            self._pool.put_block(blocks[len(loaded)], kept.payload[self._digests * DIGEST_BYTES :])
            loaded.append(digests)
            return True

        for store, run in _runs(wanted):
            if await store.load([each.key for each in run], install) < len(run):
                break

    # inside

    def _key(self, label: bytes, name: bytes) -> FileKey:
        return FileKey(prefix=name, tenant=label, identity=self._identity, representation=self._representation)

    def _states(self, *, pool_room: int) -> list[TierState]:
        """All tiers there are. Of the pool, blocks that are free or would be given up for others are room."""
        blocks = self._ledger.num_blocks
        pool = TierState(
            tier=Tier.DEVICE,
            capacity_bytes=blocks * self._payload_bytes,
            used_bytes=(blocks - pool_room) * self._payload_bytes,
            latency_ms=0.0,
            bytes_per_ms=_POOL_BYTES_PER_MS,
        )
        return [pool, *(store.state() for store in self._stores)]


def _runs(wanted: Sequence[_Wanted]) -> Iterator[tuple[TierStore, list[_Wanted]]]:
    """Blocks that follow one another in the same tier."""
    for _, run in groupby(wanted, key=lambda each: each.store.tier):
        found = list(run)
        yield found[0].store, found
