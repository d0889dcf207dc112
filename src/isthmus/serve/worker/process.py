"""What a worker's process is made of, whichever its role: a life, a ledger, the members, the link to the gateway."""

import json
from collections.abc import Callable, Sequence

import msgspec

from isthmus.core.clock import SystemClock
from isthmus.core.errors import FrameInvalid
from isthmus.core.ids import HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.journal import Header, JournalWriter, clock_identity
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.rows import Row
from isthmus.ownership.side import Side
from isthmus.serve.admission_config import blocks_of
from isthmus.serve.channel import Handler
from isthmus.serve.config import PoolConfig, ServeConfig
from isthmus.serve.messages import CancelRequest, Member, Message, Pulse, Snapshot, SnapshotOrder
from isthmus.serve.processes import this_process
from isthmus.serve.tls import load_tls
from isthmus.serve.worker.gateway_link import GatewayLink
from isthmus.serve.worker.membership import Membership
from isthmus.serve.worker.prefixes import Prefixes
from isthmus.transport.base import Endpoint, PeerId
from isthmus.transport.shm import SharedMemory
from isthmus.transport.table import Worker as TransportWorker

__all__ = ["Process"]

NAME_WAIT_TIMEOUTS = 4
"""Heartbeat timeouts after which a name that is still taken is taken by somebody who lives."""


class Process:
    """One life of one worker."""

    def __init__(
        self, config: ServeConfig, pool: PoolConfig, worker: WorkerId, engine: EmbeddedKV, memory: SharedMemory | None
    ) -> None:
        self.config = config
        self.pool = pool
        self.worker = worker
        self.engine = engine
        self.clock = SystemClock()
        self.incarnation = Incarnation(self.clock.token())
        self.tls = load_tls(config.tls, worker)
        self.membership = Membership()
        self.ledger = Ledger(
            num_blocks=pool.num_blocks, block_bytes=engine.block_bytes, staging_bytes=pool.staging_bytes
        )
        self.prefixes = Prefixes(pool, worker, engine, self.ledger, self.clock, idle=lambda: not self.capacity.waiting)
        self.capacity = Capacity(
            ledger=self.ledger,
            clock=self.clock,
            reclaim=None if self.prefixes.cache is None else self.prefixes.cache.reclaim,
            quotas=pool.admission.quotas_for(pool.num_blocks),
            quarantine_blocks_max=blocks_of(pool.admission.quarantine_max, pool.num_blocks),
            waiting_max=pool.admission.waiting_max,
            waiting_per_tenant_max=pool.admission.waiting_per_tenant_max,
        )
        self.transport = TransportWorker(
            identity=PeerId(worker=worker, incarnation=self.incarnation),
            clock=self.clock,
            memory=memory,
            tcp_host=pool.host,
            tcp_port=self._numbered(pool.tcp_port),
            tcp_advertised_host=pool.advertised_host,
            tcp_advertised_port=self._numbered(pool.advertised_tcp_port) or None,
            tls=self.tls,
        )

    @property
    def transports(self) -> list[str]:
        """What this worker can lend by, preferred first: a pool on a GPU does not lie in shared memory."""
        return [name for name in self.pool.transports if name != "shm" or self.transport.memory is not None]

    def link(
        self,
        handler: Handler,
        *,
        port: int = 0,
        endpoints: Sequence[Endpoint] = (),
        imports: Sequence[Endpoint] = (),
        on_cancel: Callable[[CancelRequest], None] = lambda _: None,
    ) -> GatewayLink:
        """The connection to the gateway, not opened yet."""
        engine = self.engine
        member = Member(
            worker=self.worker,
            incarnation=self.incarnation,
            role=self.pool.role,
            process=this_process(),
            identity=engine.identity,
            representation=engine.representation,
            num_blocks=self.pool.num_blocks,
            context_length=engine.context_length,
            host=self.pool.advertised_host or self.pool.host,
            port=self._numbered(self.pool.advertised_port) or port,
            endpoints=tuple(endpoints),
            imports=tuple(imports),
            transports=self.pool.transports,
        )
        return GatewayLink(
            member,
            self.membership,
            self.clock,
            host=self.config.control_host,
            port=self.config.gateway.control_port,
            handler=handler,
            on_cancel=on_cancel,
            pulse=self._pulse,
            tls=self.tls,
            name_wait=Duration.of_ms(NAME_WAIT_TIMEOUTS * self.config.gateway.heartbeat_timeout_ms),
        )

    @property
    def port(self) -> int:
        """Where to listen for peers; 0 is any free port."""
        return self._numbered(self.pool.port)

    def journal(self, side: Side, sole_tenant: TenantId | None = None) -> JournalWriter | None:
        """A journal for this life's events, where the deployment keeps any."""
        if self.config.journal is None:
            return None
        header = Header(
            side=side,
            worker=self.worker,
            incarnation=self.incarnation,
            sole_tenant=sole_tenant,
            num_blocks=self.ledger.num_blocks,
            block_bytes=self.ledger.block_bytes,
            staging_bytes=self.ledger.staging_bytes,
            lease_ms=self.config.lease_ms,
            clock=clock_identity(),
            began=self.clock.now(),
            began_unix_seconds=self.clock.unix_seconds(),
        )
        return JournalWriter(self.config.journal, header)

    def end(self, journal: JournalWriter | None) -> None:
        """This life has come to its end by itself. Nothing is retained any more (I8)."""
        self.prefixes.end()
        if journal is not None:
            journal.close(at=self.clock.now(), blocks_held=self.ledger.held().blocks_of_handoffs)

    def _numbered(self, first: int | None) -> int:
        """This worker's port, where its pool's first one has `first`; 0 where it has none."""
        return 0 if first is None else first + self.config.index(self.worker)

    def snapshot(self, owner: SourceOwner | DestinationOwner, message: Message) -> Snapshot:
        """The ledger and the hand-offs, live and lately ended, as JSON. Recounts a ledger that holds nothing (I8)."""
        if not isinstance(message, SnapshotOrder):
            raise FrameInvalid(f"call: a gateway does not call {type(message).__name__} here", field="call")
        if not len(owner):
            self.ledger.check_in_full()
        live, ended = owner.snapshot(), owner.finished()
        if message.handoff:
            live, ended = ([row for row in rows if _id_of(row).startswith(message.handoff)] for rows in (live, ended))
            live = [row | {"timeline": msgspec.to_builtins(owner.timeline(_id_of(row)))} for row in live]
        shown = {
            "role": self.pool.role,
            "unhealthy": self.capacity.unhealthy,
            "blocks": self._blocks(),
            "prefix_cache": self.prefixes.row(),
            "live": live[: message.limit],
            "ended": ended[: message.limit],
        }
        return Snapshot(json=json.dumps(shown, separators=(",", ":")).encode())

    def _pulse(self) -> Pulse:
        """What the gateway hears regularly. Whoever waits for a worker that takes nothing new is told so here."""
        self.capacity.look_again()
        return Pulse(blocks=self._blocks(), unhealthy=self.capacity.unhealthy)

    def _blocks(self) -> dict[str, int]:
        held, available = self.ledger.held(), self.ledger.available()
        return {
            "total": self.ledger.num_blocks,
            "free": available.blocks,
            "held": held.blocks_of_handoffs,
            "reserved": held.reserved,
            "filling": held.filling,
            "resident": held.resident - held.retention,
            "retained": held.retention,
            "quarantined": held.quarantined,
            "quarantined_max": held.quarantined_max,
            "waiting": self.capacity.waiting,
            "grants": held.grants,
            "staging_bytes": held.staging_bytes,
        }


def _id_of(row: Row) -> HandoffId:
    return HandoffId(str(row["handoff"]))
