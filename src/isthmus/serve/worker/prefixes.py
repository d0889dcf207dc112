"""What a worker keeps of prompts, as its pool's `prefix_caching` says: in its pool, and in files behind that."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import msgspec

from isthmus.core.clock import Clock
from isthmus.core.ids import WorkerId
from isthmus.core.units import Duration
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.handoff.file_tier import FileTier, kept_secret
from isthmus.handoff.reuse import Reuse
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.residency import NearestThatPays
from isthmus.ownership.retention import retention_named
from isthmus.serve.config import PoolConfig

__all__ = ["Prefixes"]


class Prefixes:
    """One life's. `idle` says whether nobody waits for blocks; it is asked later.

    Raises:
        ConfigInvalid: the folder for files cannot be used.
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
        self.files: FileTier | None = None
        if config.enabled:
            self.cache = PrefixCache(
                ledger=ledger,
                clock=clock,
                retention=retention_named(config.retention),
                blocks_max=config.blocks_max or ledger.num_blocks,
                half_life=Duration.of_ms(config.half_life_ms),
            )
            if folder is not None:
                self.files = _file_tier(pool, folder, engine, self.cache, ledger, clock, idle)
        self.reuse = Reuse(engine.representation, self.cache, secret=secret, files=self.files)

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """For the body, what is given up goes to files, where it is to."""
        if self.files is None:
            yield
            return
        async with self.files.running():
            yield

    def end(self) -> None:
        """Nothing is retained any more, but for what goes to files (I8)."""
        if self.cache is not None:
            self.cache.drop()

    def row(self) -> dict[str, int] | None:
        """For people; None where nothing is kept."""
        if self.cache is None:
            return None
        files = (
            {} if self.files is None else {f"files_{what}": count for what, count in asdict(self.files.counts).items()}
        )
        return self.cache.row() | files


def _file_tier(
    pool: PoolConfig,
    folder: Path,
    engine: EmbeddedKV,
    cache: PrefixCache,
    ledger: Ledger,
    clock: Clock,
    idle: Callable[[], bool],
) -> FileTier:
    config, bytes_max = pool.prefix_caching, pool.prefix_caching.files_bytes_max
    return FileTier(
        DurableIndex(folder, bytes_max=bytes_max, clock=clock, retention=retention_named(config.retention)),
        bytes_max=bytes_max,
        residency=NearestThatPays(),
        store=engine,
        cache=cache,
        ledger=ledger,
        clock=clock,
        identity=_digest(engine.identity),
        representation=_digest(engine.representation),
        digests_per_block=pool.block_size if pool.role == "prefill" else 0,
        idle=idle,
    )


def _digest(described: msgspec.Struct) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(described), digest_size=16).digest()
