"""A world whose sides keep what their pools give up: in host memory, in files, or in both."""

from pathlib import Path

from isthmus.handoff.consumer import ConsumerSide, Deadlines
from isthmus.handoff.file_tier import FileTier
from isthmus.handoff.host_tier import HostTier
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.reuse import Reuse
from isthmus.handoff.tier_store import TierStore
from isthmus.handoff.tiers import Tiers, host_tier_of, payload_bytes_of
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.residency import NearestWithRoom, Residency
from isthmus.ownership.retention import LeastRecent
from tests.handoff.hooks import HookedProducer
from tests.handoff.test_prefix_reuse import Served, serve
from tests.handoff.worlds import (
    DECODE,
    DECODE_LIFE,
    LEASE,
    PATIENCE,
    PREFILL,
    PREFILL_LIFE,
    SECRET,
    World,
    ask,
    until,
)


class TieredWorld(World):
    """`folder`: files, each side's in a folder of its own there, at most `file_blocks`; `host_blocks`: so many of each
    side in host memory.

    The tests' clock stands still, so that nothing takes any time: by default whatever has room pays.
    """

    def __init__(
        self,
        model: Path,
        producer: dict,
        consumer: dict,
        *,
        folder: Path | None = None,
        host_blocks: int | None = None,
        file_blocks: int = 10_000,
        residency: Residency | None = None,
        **more,
    ) -> None:
        super().__init__(model, producer, consumer, keeps=("producer", "consumer"), **more)
        self._residency = residency or NearestWithRoom()
        self._file_blocks = file_blocks
        self.source_host, self.source_files, self.source_tiers = self._tiers(folder, host_blocks, producer=True)
        self.destination_host, self.destination_files, self.destination_tiers = self._tiers(
            folder, host_blocks, producer=False
        )
        source, destination = self.source_kv, self.destination_kv
        self.side = ProducerSide(
            source,
            self.source,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            wait=PATIENCE,
            resuming=source,
            reuse=Reuse(source.representation, self.source_prefixes, secret=SECRET, tiers=self.source_tiers),
        )
        self.producer = HookedProducer(self.side, self.hooks, self.clock)
        self.consumer = ConsumerSide(
            destination,
            self.destination,
            self._peer_of,
            self.clock,
            worker=DECODE,
            incarnation=DECODE_LIFE,
            deadlines=Deadlines(reserve=PATIENCE, prefill=PATIENCE, transfer=PATIENCE, confirm=LEASE / 4),
            reuse=Reuse(
                destination.representation, self.destination_prefixes, secret=SECRET, tiers=self.destination_tiers
            ),
        )

    def _tiers(
        self, folder: Path | None, host_blocks: int | None, *, producer: bool
    ) -> tuple[HostTier | None, FileTier | None, Tiers]:
        kv = self.source_kv if producer else self.destination_kv
        digests = kv.representation.groups[0].block_size if producer else 0
        payload_bytes = payload_bytes_of(kv, digests)
        host = files = None
        if host_blocks is not None:
            host = HostTier(
                host_tier_of(kv),
                bytes_max=host_blocks * payload_bytes + payload_bytes // 2,
                payload_bytes=payload_bytes,
                memory=kv.host_memory,
                retention=LeastRecent(),
                clock=self.clock,
            )
        if folder is not None:
            place = folder / ("producer" if producer else "consumer")
            bytes_max = self._file_blocks * payload_bytes
            index = DurableIndex(place, bytes_max=bytes_max, clock=self.clock, retention=LeastRecent())
            files = FileTier(index, bytes_max=bytes_max, payload_bytes=payload_bytes, clock=self.clock)
        stores: list[TierStore] = [store for store in (host, files) if store is not None]
        tiers = Tiers(
            stores,
            residency=self._residency,
            pool=kv,
            cache=self.source_prefixes if producer else self.destination_prefixes,
            ledger=self.source_ledger if producer else self.destination_ledger,
            clock=self.clock,
            identity=b"model",
            representation=repr(kv.representation).encode()[:60],
            digests_per_block=digests,
            idle=lambda: True,
        )
        return host, files, tiers

    async def __aenter__(self) -> "TieredWorld":
        await super().__aenter__()
        await self._stack.enter_async_context(self.source_tiers.running())
        await self._stack.enter_async_context(self.destination_tiers.running())
        return self

    def give_up(self) -> None:
        """Both pools are empty from now on."""
        self.source_prefixes.drop()
        self.destination_prefixes.drop()

    async def written(self, producer: int, consumer: int) -> None:
        """Return once so many blocks lie in files."""
        await until(
            lambda: (self.source_files.counts.written, self.destination_files.counts.written) == (producer, consumer)
        )


async def wanted(model: Path, prompt: tuple[int, ...], producer: dict, consumer: dict) -> Served:
    """What workers that keep nothing come to."""
    async with World(model, producer, consumer) as fresh:
        return await serve(fresh, ask(prompt, name="wanted"))
