"""The seams of transport: what an engine lends, who guards it, who exports it, who reads it, and where it is.

    engine ── Lender ──► Exporter ── Endpoint (in the worker's registration) ──► Reader ──► staging buffer
                            │                                                       │
                          Guard: may this reader read these?                         └─ BlockRead: ids under a grant

A server (memory, tcp) asks the guard before the first byte. A one-sided reader (shm) is seen by nobody, and neither
kind sees a grant that ends while bytes are on their way; so whoever reads asks the owner to confirm the epoch *after
the last byte*, and installs nothing before that (I1). Transport gives one promise in return: when `Reader.read` has
returned or raised, nothing writes into the staging buffer any more. That is the consumer's drain evidence.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol

from msgspec import Meta

from isthmus.core.ids import BlockId, Epoch, GrantId, Incarnation, RegionId, WorkerId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, NAME_CHARS_MAX, REGIONS_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.core.units import ByteCount, Duration
from isthmus.state.fields import RegionShape
from isthmus.state.structs import Name, Token, WireStruct, require

__all__ = [
    "BlockRead",
    "Endpoint",
    "Exporter",
    "Guard",
    "Lender",
    "MemoryEndpoint",
    "PeerId",
    "Reader",
    "ShmEndpoint",
    "TcpEndpoint",
    "Token",
    "transport_name",
]


class PeerId(WireStruct, frozen=True, kw_only=True):
    """One life of one worker. A worker that restarts is another peer."""

    worker: Annotated[WorkerId, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    incarnation: Annotated[Incarnation, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class MemoryEndpoint(WireStruct, frozen=True, kw_only=True, tag="memory"):
    """A key into one process's `MemoryHub`. In any other hub it means nothing."""

    hub: Token
    key: Token


class ShmEndpoint(WireStruct, frozen=True, kw_only=True, tag="shm"):
    """An anonymous shared memory: descriptor `fd` of process `pid`, on the host that `host` is a digest of.

    `stamp` is random and is also in the memory itself: a pid or descriptor that was used again does not carry it.
    """

    host: Token
    pid: Annotated[int, Meta(ge=1, le=1 << 22)]
    fd: Annotated[int, Meta(ge=0, le=1 << 20)]
    stamp: Token


class TcpEndpoint(WireStruct, frozen=True, kw_only=True, tag="tcp"):
    """A listening socket and the worker's life behind it. Comes from a registry, never from a request."""

    host: Name
    port: Annotated[int, Meta(ge=1, le=65535)]
    peer: PeerId


Endpoint = MemoryEndpoint | ShmEndpoint | TcpEndpoint


def transport_name(endpoint: Endpoint) -> str:
    """The name of the transport an endpoint belongs to: its tag on the wire."""
    return str(endpoint.__struct_config__.tag)


class BlockRead(WireStruct, frozen=True, kw_only=True):
    """Read `blocks` of each of `regions`, under a grant. `num_blocks` is the extent of the producer's pool.

    Invariants: region ids are unique; block ids are unique and in [0, num_blocks). Both sides must agree on every
    region's shape; a producer whose shapes are others refuses.

    Raises:
        ValueError: an invariant does not hold.
    """

    grant: Annotated[GrantId, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    epoch: Annotated[Epoch, Meta(ge=1)]
    reader: Annotated[WorkerId, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    regions: Annotated[tuple[RegionShape, ...], Meta(min_length=1, max_length=REGIONS_MAX)]
    blocks: Annotated[tuple[BlockId, ...], Meta(min_length=1, max_length=TOKENS_PER_REQUEST_MAX)]
    num_blocks: Annotated[int, Meta(ge=1, le=BLOCKS_PER_POOL_MAX)]

    def __post_init__(self) -> None:
        require(len(self.blocks) > 0, "blocks", 0, "at least one block")
        require(len(set(self.blocks)) == len(self.blocks), "blocks", "an id twice", "unique ids")
        require(
            min(self.blocks) >= 0 and max(self.blocks) < self.num_blocks,
            "blocks",
            (min(self.blocks), max(self.blocks)),
            f"0 <= id < num_blocks = {self.num_blocks}",
        )
        names = {region.id for region in self.regions}
        require(len(names) == len(self.regions), "regions", "a name twice", "unique names")
        for region in self.regions:
            require(
                region.outer >= 1 and region.block_bytes >= 1,
                f"regions.{region.id}",
                (region.outer, region.block_bytes),
                "outer and block_bytes of at least 1",
            )

    @property
    def size_bytes(self) -> ByteCount:
        """What arrives: the sum over regions of outer * len(blocks) * block_bytes."""
        return ByteCount(sum(region.size_bytes(len(self.blocks)) for region in self.regions))


class Lender(Protocol):
    """What an engine lends: dense regions [outer, num_blocks, block_bytes], all of the same blocks."""

    @property
    def regions(self) -> tuple[RegionShape, ...]: ...

    @property
    def num_blocks(self) -> int: ...

    def copy_out(self, region: RegionId, outer: range, blocks: Sequence[int], into: memoryview) -> None:
        """Fill `into` as [len(outer), len(blocks), block_bytes] from slices `outer` of `region`, blocks in that order.

        May be called from a thread, and from several. `outer` is there so that a bounded chunk of a large read is a
        contiguous piece of what arrives.

        Raises:
            NotAuthorised: a block or slice lies outside the region.
        """
        ...


class Guard(Protocol):
    """The owner's ledger, as a server of bytes sees it."""

    def check_read(self, grant: GrantId, epoch: Epoch, reader: WorkerId, blocks: Sequence[int]) -> None:
        """Return if `reader` may read `blocks` now.

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised: it may not; the reader gets the error by name.
        """
        ...


class Exporter(Protocol):
    """Makes one engine's regions readable by one transport."""

    async def start(self) -> Endpoint:
        """Begin, and say where."""
        ...

    async def close(self) -> None:
        """End: reads in flight fail, and no thread of ours touches the lender afterwards."""
        ...


class Reader(Protocol):
    """Reads from peers by one transport."""

    def can_reach(self, endpoint: Endpoint) -> bool:
        """Whether this endpoint is one that this reader could read, judged without asking the peer."""
        ...

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        """Fill `into[region.id]` as [outer, len(blocks), block_bytes] for each region, and return the bytes filled.

        Whether it returns, raises or is cancelled: once it is over, nothing writes into `into` any more. After an
        error the content is undefined. What it returns is not yet to be believed: the owner confirms the epoch next.

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised, BadInput: the owner refuses.
            CapacityExceeded: the owner serves as many as it may.
            PeerLost: the owner is gone, or is another life of the same name.
            TransferFailed: bytes did not arrive, or not all.
            DeadlineExceeded: not done within `deadline`.
            Bug: `into` does not fit `request`.
        """
        ...

    def forget(self, endpoint: Endpoint) -> None:
        """Drop every connection and mapping to `endpoint`: its peer is lost. Reads in flight fail with `PeerLost`."""
        ...

    async def close(self) -> None:
        """Drop everything. No read may be in flight."""
        ...
