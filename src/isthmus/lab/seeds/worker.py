"""Workers of the simulation: one life of one process each, made of the real owners, sides, ledgers and reapers.

What both roles share. They do what `serve/worker` does around these: answer calls, keep their view of who is a member,
and act on a fence.
"""

from dataclasses import dataclass

from isthmus.core.clock import Chance
from isthmus.core.errors import PeerLost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.handoff.producer import ProducerSide
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.engine import PaperEngine, image_bytes
from isthmus.lab.seeds.forms import Form
from isthmus.lab.seeds.loop import VirtualLoop
from isthmus.lab.seeds.mix import Mix
from isthmus.lab.seeds.network import Life, Network, Station
from isthmus.lab.seeds.reads import Export
from isthmus.lab.seeds.transcript import Transcript
from isthmus.lab.seeds.watch import Watch, WatchedConsumer, WatchedSource
from isthmus.lab.seeds.writes import Imports, OneSidedImporter
from isthmus.ownership import Capacity, DestinationOwner, Ledger, SourceOwner, TransportKind
from isthmus.ownership.protocol.drain import Evidence
from isthmus.transport.base import Endpoint, MemoryEndpoint, PeerId, ShmEndpoint, TcpEndpoint
from isthmus.transport.memory import MemoryHub

__all__ = ["Common", "Kinds", "Member", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The classes that a world is made of. A canary puts one in that leaves a check out."""

    source: type[WatchedSource] = WatchedSource
    destination: type[DestinationOwner] = DestinationOwner
    consumer: type[WatchedConsumer] = WatchedConsumer
    producer: type[ProducerSide] = ProducerSide
    engine: type[PaperEngine] = PaperEngine
    ledger: type[Ledger] = Ledger
    importer: type[OneSidedImporter] = OneSidedImporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all workers of a world share."""

    loop: VirtualLoop
    mix: Mix
    network: Network
    transcript: Transcript
    watch: Watch
    hub: MemoryHub
    exports: dict[Endpoint, Export]
    imports: dict[Endpoint, Imports]
    kinds: Kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker as the registry knows it: a producer's endpoint is to be read from, a consumer's to be written to.

    `number`: how many had joined before it.
    """

    number: int
    life: Life
    form: Form
    endpoint: Endpoint


class Worker(Station):
    """What both roles share."""

    owner: SourceOwner | DestinationOwner

    def __init__(
        self, common: Common, chance: Chance, name: WorkerId, form: Form, num_blocks: int, staging_bytes: int
    ) -> None:
        super().__init__(common.network, name, Incarnation(chance.token()))
        mix = common.mix
        self.common = common
        self.form = form
        self.chance = chance
        self.fenced = False
        self.number = 0
        self.view: dict[WorkerId, Member] = {}
        self.key = chance.token()
        self.endpoint = self._endpoint()
        self.clock = SkewedClock(
            common.loop,
            chance,
            rate=chance.between(0.8, 1.2) if mix.skewed else 1.0,
            ahead=chance.below(10**12) if mix.skewed else 0,
        )
        block_bytes = image_bytes(form, form.block_size)
        self.ledger = common.kinds.ledger(num_blocks=num_blocks, block_bytes=block_bytes, staging_bytes=staging_bytes)
        self.capacity = Capacity(ledger=self.ledger, clock=self.clock)
        self.engine = common.kinds.engine(form, num_blocks, self.clock, mix.pace, common.watch.touches(self.ledger))

    @property
    def name(self) -> WorkerId:
        return self.life[0]

    def _endpoint(self) -> Endpoint:
        """Where this life is reached: of another life of the name it is another."""
        match self.common.mix.transport:
            case TransportKind.SHM:
                return ShmEndpoint(host=self.common.hub.id, pid=1, fd=0, stamp=self.key)
            case TransportKind.TCP:
                peer = PeerId(worker=self.life[0], incarnation=self.life[1])
                return TcpEndpoint(host=self.life[0], port=1, peer=peer)
            case _:
                return MemoryEndpoint(hub=self.common.hub.id, key=self.key)

    def member(self) -> Member:
        return Member(number=self.number, life=self.life, form=self.form, endpoint=self.endpoint)

    def seen(self, member: Member) -> None:
        """The registry's word that a life has come. Of one name the last to join counts, in whatever order we hear."""
        known = self.view.get(member.life[0])
        if member.life not in self.shut_out and (known is None or known.number < member.number):
            self.view[member.life[0]] = member

    def find(self, worker: WorkerId, incarnation: Incarnation) -> Member:
        """A member. Raises PeerLost where this life is not, or is no more."""
        member = self.view.get(worker)
        if member is None or member.life[1] != incarnation:
            raise PeerLost(f"{worker}: this incarnation is not a member", field="worker")
        return member

    def peer_over(self, peer: Life, evidence: Evidence) -> None:
        """The registry's word that a life is over, and on what evidence."""
        member = self.view.get(peer[0])
        if member is not None and member.life == peer:
            del self.view[peer[0]]
        self.shut_out.add(peer)
        self.lose(peer, "its incarnation was fenced")
        self.act_on(peer, evidence)

    def act_on(self, peer: Life, evidence: Evidence) -> None:
        """What this role does about it."""
        raise NotImplementedError

    def fence(self) -> None:
        """Our own life is over: the registry says so."""
        raise NotImplementedError

    def leftovers(self) -> str:
        """What is still held; empty in a drained worker (I8)."""
        held = self.ledger.held()
        found = {
            "blocks": held.blocks,
            "staging": held.staging_bytes,
            "grants": held.grants,
            "active": held.active,
            "retention": held.retention,
            "waiting": self.capacity.waiting,
            "handoffs": self.handoffs(),
            "work": int(self.engine.busy),
        }
        return ", ".join(f"{name} {count}" for name, count in found.items() if count)

    def handoffs(self) -> int:
        raise NotImplementedError

    def live(self) -> str:
        """The hand-offs that hold something."""
        return "; ".join(
            f"{str(row['handoff'])[:8]} with {row['peer']}: {row['phase']} ({row['outcome']})"
            for row in self.owner.snapshot()
        )
