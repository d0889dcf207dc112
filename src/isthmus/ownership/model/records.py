"""What the world around the protocol is made of, as small immutable values: blocks, workers, requests, their parts.

A request names nothing but itself: its protocol states speak of "own" grant and epoch, what it has copied is "mine" or
"other". Only a worker's slots name requests (by *claim*: request × parts + part), so that exchanging two requests is
exchanging two records and renaming claims in slots. Refuses to know what the protocol does.
"""

from typing import Final, NamedTuple

from isthmus.ownership.accounts import BlockState

__all__ = [
    "ABSENT",
    "CONFIRM",
    "EMPTY",
    "FLIPPED",
    "FREE_SLOT",
    "IDLE",
    "MINE",
    "NO",
    "NOBODY",
    "OFFER",
    "OTHER",
    "PREFIX",
    "PREFIX_STAMP",
    "SPOILED",
    "WRITTEN",
    "YES",
    "Engine",
    "Image",
    "Part",
    "Request",
    "Slot",
    "Stage",
    "Worker",
    "Writing",
]

NOBODY: Final = -1
PREFIX: Final = -2
"""Who owns a block that is retained for every request that begins as it does."""

ABSENT: Final = 0
"""The id of "no protocol state"."""

EMPTY, MINE, OTHER, FLIPPED = 0, 1, 2, 3
"""What a chunk was seen to hold, as its reader sees it. FLIPPED: the network has changed it on the way."""

PREFIX_STAMP: Final = -2000
"""The stamp of the retained block's bytes."""

SPOILED: Final = -1000
"""The stamp of bytes that the network has changed."""

OFFER, CONFIRM, YES, NO, WRITTEN = 1, 2, 4, 8, 16
"""Messages of a part that have been sent. A message stays on the wire: it may come never, once, or again and again."""


class Stage:
    """What the consumer's own code does for a part, whatever the protocol thinks."""

    NOTHING, READ, CONVERT, VERIFY, DECODE = range(5)


class Engine:
    """What the producer's engine does for a part: not running, or running with 0 or 1 chunks filled."""

    OFF, STARTED, HALF = range(3)


class Image:
    """What a consumer has for a producer to write into: nothing, memory that is open, or memory it has withdrawn."""

    NONE, OPEN, WITHDRAWN = range(3)


class Writing:
    """What a producer's transfer does for a part: nothing, or it has 0 or 1 chunks written; or it waits in vain for an
    engine that has stopped.
    """

    OFF, STARTED, HALF, STALLED = range(4)


class Slot(NamedTuple):
    """One block of a pool: its account, and what is physically true of it.

    `pointers` is the set (a bit mask of claims) of those who may still touch it without asking anybody; `staged` is the
    claim that holds a unit of staging with it.
    """

    account: int
    owner: int
    grants: int
    active: int
    stamps: tuple[int, int]
    pointers: int
    staged: int


class Worker(NamedTuple):
    """One worker. `lives` counts its restarts, `naps` its pauses."""

    lives: int
    naps: int
    paused: bool
    fenced: bool
    slots: tuple[Slot, ...]


class Part(NamedTuple):
    """One part of a request. `source` is the producer's protocol state, by id.

    `over` says that the lease's time is over; `barred` that the producer will not reserve for it (again); `deaf` that
    it has been told of the consumer's death and will not be told again (only where that guard is off); `prefix` that
    its first chunk is read from the retained block, which it keeps from being evicted while it lives; `copied` what
    the copy has seen so far; `committed` (a ghost) that the owner has said yes. Under push and send: `image` is what
    the consumer has for the producer to write into, `writes` what the producer's transfer is about.
    """

    source: int
    engine: int
    over: bool
    barred: bool
    deaf: bool
    prefix: bool
    stage: int
    copied: tuple[int, ...]
    image: int
    writes: int
    sent: int
    committed: bool


class Request(NamedTuple):
    """One request, and its hand-off. `destination` is the consumer's protocol state, by id.

    `begun` is false until the consumer has reserved; `ended` once nothing of it can matter any more.
    """

    begun: bool
    ended: bool
    producer: int
    consumer: int
    destination: int
    abandoned: bool
    over: bool
    producer_died: bool
    consumer_died: bool
    parts: tuple[Part, ...]


FREE_SLOT: Final = Slot(
    account=int(BlockState.FREE), owner=NOBODY, grants=0, active=0, stamps=(EMPTY, EMPTY), pointers=0, staged=NOBODY
)
IDLE: Final = Part(
    source=ABSENT,
    engine=Engine.OFF,
    over=False,
    barred=False,
    deaf=False,
    prefix=False,
    stage=Stage.NOTHING,
    copied=(),
    image=Image.NONE,
    writes=Writing.OFF,
    sent=0,
    committed=False,
)
