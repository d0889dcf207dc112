"""The seams of transport: what an engine lends, who guards it, who moves it, and where it is. Two ways:

    pull  engine ── Lender ──► Exporter ── Endpoint (in the worker's registration) ──► Reader ──► staging image
                                  │                                                       │
                                Guard: may this reader read these?                        └─ BlockRead: under a grant

    push  engine ── Lender ──► Writer ──── Endpoint (in the consumer's registration) ──► Importer ──► staging image
                                  │                                                         │
                                  └─ BlockWrite: a part of a target    WriteGuard: may this writer write here?

Either way the image is a pool of just the blocks that cross: per region [outer, blocks, block_bytes], dense.

Pull: a server (memory, tcp) asks the guard before the first byte. A one-sided reader (shm) is seen by nobody, and
neither kind sees a grant that ends while bytes are on their way; so whoever reads asks the owner to confirm the epoch
*after the last byte*, and installs nothing before that (I1). Transport gives one promise in return: when `Reader.read`
has returned or raised, nothing writes into the staging buffer any more. That is the consumer's drain evidence.

Push: a grant names the image, regions are named by id, offsets follow from the shapes; no address crosses. Who writes
is another process, so the evidence is the importer's: `Importer.withdraw` ends the target and says whether anything can
still write into its image (I2). An image whose end is not proven is nobody else's.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol

from msgspec import Meta

from isthmus.core.ids import BlockId, Epoch, GrantId, Incarnation, RegionId, WorkerId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, NAME_CHARS_MAX, REGIONS_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.core.units import ByteCount, Duration
from isthmus.state.fields import RegionShape
from isthmus.state.structs import Name, Token, WireStruct, refuse, require

__all__ = [
    "BlockRead",
    "BlockWrite",
    "Endpoint",
    "Exporter",
    "Guard",
    "Importer",
    "Lender",
    "MemoryEndpoint",
    "PeerId",
    "Reader",
    "ShmEndpoint",
    "Target",
    "TcpEndpoint",
    "Token",
    "WriteGuard",
    "Writer",
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

    grant: Annotated[GrantId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    epoch: Annotated[Epoch, Meta(ge=1)]
    reader: Annotated[WorkerId, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    regions: Annotated[tuple[RegionShape, ...], Meta(min_length=1, max_length=REGIONS_MAX)]
    blocks: Annotated[tuple[BlockId, ...], Meta(min_length=1, max_length=TOKENS_PER_REQUEST_MAX)]
    num_blocks: Annotated[int, Meta(ge=1, le=BLOCKS_PER_POOL_MAX)]

    def __post_init__(self) -> None:
        blocks = self.blocks
        if not blocks:
            refuse("blocks", 0, "at least one block")
        if len(set(blocks)) != len(blocks):
            refuse("blocks", "an id twice", "unique ids")
        if min(blocks) < 0 or max(blocks) >= self.num_blocks:
            refuse("blocks", (min(blocks), max(blocks)), f"0 <= id < num_blocks = {self.num_blocks}")
        _check_regions(self.regions)

    @property
    def size_bytes(self) -> ByteCount:
        """What arrives: the sum over regions of outer * len(blocks) * block_bytes."""
        return ByteCount(sum(region.size_bytes(len(self.blocks)) for region in self.regions))


class Target(WireStruct, frozen=True, kw_only=True):
    """An image of `num_blocks` blocks of each of `regions`, which `writer` may fill under a grant of its owner's.

    Invariants: region ids are unique, and no region is empty. Both sides must agree on all of it.

    Raises:
        ValueError: an invariant does not hold.
    """

    grant: Annotated[GrantId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    epoch: Annotated[Epoch, Meta(ge=1)]
    writer: Annotated[WorkerId, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    regions: Annotated[tuple[RegionShape, ...], Meta(min_length=1, max_length=REGIONS_MAX)]
    num_blocks: Annotated[int, Meta(ge=1, le=TOKENS_PER_REQUEST_MAX)]

    def __post_init__(self) -> None:
        require(self.num_blocks >= 1, "num_blocks", self.num_blocks, "at least one block")
        _check_regions(self.regions)

    @property
    def size_bytes(self) -> ByteCount:
        """The whole image: the sum over regions of outer * num_blocks * block_bytes."""
        return ByteCount(sum(region.size_bytes(self.num_blocks) for region in self.regions))


class BlockWrite(WireStruct, frozen=True, kw_only=True):
    """Write blocks [start, stop) of every region of a target: all of it, or what has been computed so far.

    Raises:
        ValueError: the range is empty or does not lie within the target.
    """

    target: Target
    start: Annotated[int, Meta(ge=0, le=TOKENS_PER_REQUEST_MAX)]
    stop: Annotated[int, Meta(ge=1, le=TOKENS_PER_REQUEST_MAX)]

    def __post_init__(self) -> None:
        require(
            0 <= self.start < self.stop <= self.target.num_blocks,
            "start, stop",
            (self.start, self.stop),
            f"0 <= start < stop <= num_blocks = {self.target.num_blocks}",
        )

    @property
    def num_blocks(self) -> int:
        """How many blocks are written."""
        return self.stop - self.start

    @property
    def size_bytes(self) -> ByteCount:
        """What crosses: the sum over regions of outer * (stop - start) * block_bytes."""
        return ByteCount(sum(region.size_bytes(self.num_blocks) for region in self.target.regions))


def _check_regions(regions: tuple[RegionShape, ...]) -> None:
    names = {region.id for region in regions}
    if len(names) != len(regions):
        refuse("regions", "a name twice", "unique names")
    for region in regions:
        if region.outer < 1 or region.block_bytes < 1:
            at, got = f"regions.{region.id}", (region.outer, region.block_bytes)
            refuse(at, got, "outer and block_bytes of at least 1")


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


class WriteGuard(Protocol):
    """The consumer's ledger, as a receiver of bytes sees it."""

    def check_write(self, grant: GrantId, epoch: Epoch, writer: WorkerId) -> None:
        """Return if `writer` may write now into the image that `grant` names.

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised: it may not; the writer gets the error by name.
        """
        ...


class Importer(Protocol):
    """Makes images that peers may write by one transport, and ends their access."""

    async def start(self) -> Endpoint:
        """Begin, and say where."""
        ...

    def expose(self, target: Target) -> Mapping[RegionId, memoryview]:
        """A new image, in memory that no other target has or had. Its writer may write from now on.

        Raises:
            CapacityExceeded: the system gives no memory or descriptor.
            Bug: the grant has a target already.
        """
        ...

    async def withdraw(self, grant: GrantId) -> bool:
        """End a target: later writes are refused, those under way are ended and waited for. Idempotent.

        True: nothing can write into its image any more, which stays readable for whoever holds it: drain evidence.
        False: its writer can and may (one-sided), whatever we do; ask again once it has said that it has stopped, or
        is dead.
        """
        ...

    async def close(self) -> None:
        """Withdraw everything and end."""
        ...


class Writer(Protocol):
    """Writes into peers' images by one transport."""

    def can_reach(self, endpoint: Endpoint) -> bool:
        """Whether this endpoint is one that this writer could write to, judged without asking the peer."""
        ...

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        """Copy `blocks` of the lender's regions to positions [start, stop) of the image; return the bytes written.

        Whether it returns, raises or is cancelled: once it is over, it writes no more and no thread of ours touches
        the lender. What it had handed to a network before may still be on its way, and ends with the consumer's
        `withdraw`; when it has returned, nothing is.

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised, BadInput: the consumer refuses.
            CapacityExceeded: the consumer takes as many as it may.
            PeerLost: the consumer is gone, or is another life of the same name.
            TransferFailed: bytes did not arrive, or not all.
            DeadlineExceeded: not done within `deadline`.
            Bug: lender and blocks do not fit `request`.
        """
        ...

    def forget(self, endpoint: Endpoint) -> None:
        """Drop every connection and mapping to `endpoint`: its peer is lost. Writes in flight fail with `PeerLost`."""
        ...

    async def close(self) -> None:
        """Drop everything. No write may be in flight."""
        ...
