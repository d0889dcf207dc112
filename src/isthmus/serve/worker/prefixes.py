"""What a worker keeps of prompts, as its pool's `prefix_caching` says: in its pool, and in the tiers behind that."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from isthmus.core.clock import Clock
from isthmus.core.ids import WorkerId
from isthmus.core.units import Duration
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.handoff.file_tier import FileTier, kept_secret
from isthmus.handoff.host_tier import HostTier
from isthmus.handoff.reuse import Reuse
from isthmus.handoff.tier_store import TierStore
from isthmus.handoff.tiers import Tiers, host_tier_of, payload_bytes_of
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.residency import residency_named
from isthmus.ownership.retention import retention_named
from isthmus.serve.config import PoolConfig

__all__ = ["Prefixes"]


class Prefixes:
    """One life's. `idle` says whether nobody waits for blocks; it is asked later.

    Raises:
        ConfigInvalid: the folder for files cannot be used, or host memory is to hold less than a block.
        Unsupported: prefixes of this engine's KV cannot be reused.
    """

    def __init__(
        self,
        pool: PoolConfig,
        worker: WorkerId,
        engine: EmbeddedKV,
        ledger: Ledger,
        clock: Clock,
        *,
        idle: Callable[[], bool],
    ) -> None:
        config = pool.prefix_caching
        folder = None if config.files_folder is None else config.files_folder / worker
        # Drawn anew for each life, unless the next one is to find what this one has named.
        secret = clock.token().encode() if folder is None or not config.enabled else kept_secret(folder, clock)
        self.cache: PrefixCache | None = None
        self.tiers: Tiers | None = None
        if config.enabled:
            self.cache = PrefixCache(
                ledger=ledger,
                clock=clock,
                retention=retention_named(config.retention),
                blocks_max=config.blocks_max or ledger.num_blocks,
                half_life=Duration.of_ms(config.half_life_ms),
            )
            self.tiers = _tiers(pool, folder, engine, self.cache, ledger, clock, idle)
        self.reuse = Reuse(engine.representation, self.cache, secret=secret, tiers=self.tiers)

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """For the body, what the pool gives up goes to tiers behind it, where there are any."""
        if self.tiers is None:
            yield
            return
        async with self.tiers.running():
            yield

    def end(self) -> None:
        """Nothing is retained in the pool any more (I8)."""
        if self.cache is not None:
            self.cache.drop()

    def row(self) -> dict[str, int] | None:
        """For people; None where nothing is kept."""
        if self.cache is None:
            return None
        return self.cache.row() | ({} if self.tiers is None else self.tiers.row())


def _tiers(
    pool: PoolConfig,
    folder: Path | None,
    engine: EmbeddedKV,
    cache: PrefixCache,
    ledger: Ledger,
    clock: Clock,
    idle: Callable[[], bool],
) -> Tiers | None:
    """What is configured to lie behind the pool, nearest first; None where nothing is."""
    digests_per_block = pool.block_size if pool.role == "prefill" else 0
    stores = _stores(pool, folder, engine, payload_bytes_of(engine, digests_per_block), clock)
    if not stores:
        return None
    return Tiers(
        stores,
        residency=residency_named(pool.prefix_caching.residency),
        pool=engine,
        cache=cache,
        ledger=ledger,
        clock=clock,
        identity=_digest(engine.identity),
        representation=_digest(engine.representation),
        digests_per_block=digests_per_block,
        idle=idle,
    )


def _stores(
    pool: PoolConfig, folder: Path | None, engine: EmbeddedKV, payload_bytes: int, clock: Clock
) -> list[TierStore]:
    config = pool.prefix_caching
    half_life = Duration.of_ms(config.half_life_ms)
    stores: list[TierStore] = []
    if config.host_bytes_max is not None:
        stores.append(
            HostTier(
                host_tier_of(engine),
                bytes_max=config.host_bytes_max,
                payload_bytes=payload_bytes,
                memory=engine.host_memory,
                retention=retention_named(config.retention),
                clock=clock,
                half_life=half_life,
            )
        )
    if folder is not None:
        bytes_max = config.files_bytes_max
        index = DurableIndex(folder, bytes_max=bytes_max, clock=clock, retention=retention_named(config.retention))
        stores.append(FileTier(index, bytes_max=bytes_max, payload_bytes=payload_bytes, clock=clock))
    return stores


def _digest(described: msgspec.Struct) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(described), digest_size=16).digest()
