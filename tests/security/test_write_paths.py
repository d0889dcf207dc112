"""Every way to write into a consumer asks its real owner: a grant to write is good for its writer, epoch and image."""

from dataclasses import dataclass

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import BadInput, GrantUnknown, NotAuthorised, Rejected, StaleEpoch
from isthmus.core.ids import Epoch, GrantId, WorkerId
from isthmus.ownership import DestinationOwner
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.transport.base import Endpoint, Importer, PeerId, Target, Writer
from isthmus.transport.memory import MemoryHub, MemoryImporter, MemoryWriter
from isthmus.transport.tcp import TcpImporter, TcpWriter
from tests.ownership.worlds import DECODE, DECODE_LIFE, LEASE, PREFILL, PREFILL_LIFE, TENANT, World
from tests.transport.worlds import SOON, lender, pool, shape, write

GRID = (shape("g0.tp0.kv", 3, 384),)
BLOCKS, WANTED = 8, 2


@dataclass(frozen=True)
class Guard:
    """The owner, as a transport sees it."""

    owner: DestinationOwner

    def check_write(self, grant: GrantId, epoch: Epoch, writer: WorkerId) -> None:
        self.owner.check_write(grant, epoch, writer, LEASE)


@dataclass(slots=True, kw_only=True)
class Path:
    """One transport's way from a writer to an owner."""

    world: World
    importer: Importer
    writer: Writer
    endpoint: Endpoint

    async def exposed(self) -> Target:
        handoff = self.world.handoff()
        await self.world.destination.reserve(
            handoff,
            producer=PREFILL,
            producer_incarnation=PREFILL_LIFE,
            tenant=TENANT,
            blocks=WANTED,
            staging_bytes=100,
            deadline=self.world.far(),
            mode=TriggerMode.PUSH,
        )
        state = self.world.destination.expose(handoff, LEASE)
        grant = state.parts[0].grant
        assert grant is not None
        target = Target(grant=grant, epoch=state.epoch, writer=PREFILL, regions=GRID, num_blocks=WANTED)
        self.image = self.importer.expose(target)
        return target

    async def write(self, target: Target) -> None:
        lent = lender(pool(5, GRID, BLOCKS), GRID, BLOCKS)
        await self.writer.write(write(target), self.endpoint, lent, [6, 1], SOON)

    image: object = None


@pytest.fixture(params=["memory", "tcp"])
async def path(request):
    clock, world = SystemClock(), World()
    guard, hub = Guard(world.destination), MemoryHub(clock)
    if request.param == "memory":
        importer, writer = MemoryImporter(hub, guard, clock), MemoryWriter(hub, clock)
    else:
        importer = TcpImporter(PeerId(worker=DECODE, incarnation=DECODE_LIFE), guard, clock)
        writer = TcpWriter(PeerId(worker=PREFILL, incarnation=PREFILL_LIFE), clock)
    yield Path(world=world, importer=importer, writer=writer, endpoint=await importer.start())
    await writer.close()
    await importer.close()


def changed(target: Target, **fields: object) -> Target:
    return Target(**{name: getattr(target, name) for name in Target.__struct_fields__} | fields)


def touched(path: Path) -> bool:
    return any(any(bytes(view)) for view in path.image.values())


async def test_a_grant_writes_its_own_image(path):
    target = await path.exposed()
    await path.write(target)
    assert bytes(path.image[GRID[0].id]) == pool(5, GRID, BLOCKS)[GRID[0].id][:, [6, 1]].tobytes()


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({"grant": GrantId("0" * 64)}, GrantUnknown),
        ({"epoch": Epoch(99)}, StaleEpoch),
        ({"writer": WorkerId("prefill-9")}, NotAuthorised),
        ({"num_blocks": WANTED + 1}, (BadInput, Rejected)),
        ({"regions": (shape("g0.tp0.kv", 4, 384),)}, (BadInput, Rejected)),
    ],
    ids=["grant", "epoch", "writer", "blocks", "shape"],
)
async def test_a_write_under_any_other_claim_is_refused_and_changes_nothing(path, fields, errors):
    wrong = changed(await path.exposed(), **fields)
    lent = lender(pool(5, wrong.regions, BLOCKS), wrong.regions, BLOCKS)
    with pytest.raises(errors):
        await path.writer.write(write(wrong), path.endpoint, lent, [6, 1, 2][: wrong.num_blocks], SOON)
    assert not touched(path)


async def test_a_grant_to_write_one_image_writes_no_other(path):
    first = await path.exposed()
    second = await path.exposed()
    crossed = changed(second, grant=GrantId(first.grant[:32] + second.grant[32:]))
    with pytest.raises(GrantUnknown):
        await path.write(crossed)
    assert not touched(path)


async def test_a_grant_that_was_given_up_writes_nothing(path):
    target = await path.exposed()
    (row,) = path.world.destination.snapshot()
    path.world.destination.abort(row["handoff"], "nobody wants it")
    with pytest.raises(Rejected):
        await path.write(target)
    assert not touched(path)
