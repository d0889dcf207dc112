"""Journals: what is written of real owners, what survives `kill -9` and a full disk, what tampering is found."""

import itertools
import resource
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from msgspec.structs import replace

from isthmus.core.errors import BadInput
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.ownership.journal import FRAME, FRAMES_START, LOST, MAGIC, Entry, Header, JournalWriter, framed
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.side import Side
from isthmus.ownership.trace import Trace, validate
from isthmus.ownership.trace_files import journals_in
from tests.ownership.worlds import (
    DECODE,
    DECODE_LIFE,
    LEASE,
    OTHER_TENANT,
    PREFILL,
    PREFILL_LIFE,
    TENANT,
    World,
    grant_of,
)

CLOCK = "c" * 32


def header_of(side: Side, worker: WorkerId, life: Incarnation, *, blocks: int = 8) -> Header:
    return Header(
        side=side,
        worker=worker,
        incarnation=life,
        sole_tenant=TENANT if side is Side.PRODUCER else None,
        num_blocks=blocks,
        block_bytes=10,
        staging_bytes=1000,
        lease_ms=LEASE.ms,
        clock=CLOCK,
        began=0,
        began_unix_seconds=0,
    )


class JournalledWorld(World):
    """Two workers whose owners write journals to `folder`."""

    def __init__(self, folder: Path, **sizes: int) -> None:
        super().__init__(source_blocks=8, destination_blocks=8)
        self.folder = folder
        self.producer_journal = JournalWriter(folder, header_of(Side.PRODUCER, PREFILL, PREFILL_LIFE), **sizes)
        self.consumer_journal = JournalWriter(folder, header_of(Side.CONSUMER, DECODE, DECODE_LIFE), **sizes)
        self.source._journal = self.producer_journal
        self.destination._journal = self.consumer_journal

    async def hand_off(self) -> None:
        """One hand-off, from nothing to nothing."""
        handoff = self.handoff()
        await self.reserve_destination(handoff)
        offer = await self.publish(handoff)
        grant = grant_of(offer)
        self.destination.submit(handoff, grant=grant, epoch=offer.epoch, tenant=TENANT)
        self.source.check_read(grant, offer.epoch, DECODE, offer.blocks)
        self.clock.advance(LEASE / 4)
        self.source.renew(grant, offer.epoch, DECODE, DECODE_LIFE)
        self.destination.arrived(handoff)
        self.destination.converted(handoff)
        self.destination.verified(handoff, ok=True)
        self.clock.advance(LEASE / 4)
        self.destination.install(handoff, self.confirm(offer))
        self.destination.finish(handoff)

    async def abandoned(self) -> None:
        """One that its consumer gives up in the middle of its read."""
        handoff = self.handoff()
        await self.reserve_destination(handoff)
        offer = await self.publish(handoff)
        self.destination.submit(handoff, grant=grant_of(offer), epoch=offer.epoch, tenant=TENANT)
        self.destination.abort(handoff, "no reason")
        self.destination.drained(handoff)
        self.source.abandon(handoff, DECODE, DECODE_LIFE)

    async def orphaned(self) -> None:
        """One whose consumer dies: its producer gets the blocks back."""
        offer = await self.publish(self.handoff())
        self.source.peer_lost(DECODE, Incarnation("0" * 32), Evidence.PROCESS_EXITED)
        self.clock.advance(LEASE * 2)
        self.source.reap()
        assert self.source.state(offer.handoff).ended

    def close(self) -> None:
        now = self.clock.now()
        self.producer_journal.close(at=now, blocks_held=self.source_ledger.held().blocks)
        self.consumer_journal.close(at=now, blocks_held=self.destination_ledger.held().blocks)


@pytest.fixture
async def world(tmp_path: Path) -> JournalledWorld:
    """Several hand-offs, ended in all ways, with a clean end."""
    made = JournalledWorld(tmp_path)
    for _ in range(3):
        await made.hand_off()
    await made.abandoned()
    await made.orphaned()
    await made.hand_off()
    made.close()
    return made


def producers_file(folder: Path) -> Path:
    return next(folder.glob(f"{PREFILL}.*"))


def consumers_file(folder: Path) -> Path:
    return next(folder.glob(f"{DECODE}.*"))


def bodies(file: Path) -> list[bytes]:
    data, at, found = file.read_bytes(), FRAMES_START, []
    while at < len(data):
        length, _, _ = FRAME.unpack_from(data, at)
        at += FRAME.size
        found.append(data[at : at + length])
        at += length
    return found


def write(file: Path, frames: list[bytes]) -> None:
    """A file whose chain is right, whatever its frames say: a forger's, who knows the format."""
    data, chain = MAGIC + LOST.pack(0), 0
    for body in frames:
        frame, chain = framed(body, chain)
        data += frame
    file.write_bytes(data)


def entries(file: Path) -> list[tuple[int, Entry]]:
    """Events by the number of their frame."""
    found = []
    for number, body in enumerate(bodies(file)[1:], start=1):
        if msgspec.msgpack.decode(body)[0] == "event":
            found.append((number, msgspec.msgpack.decode(body, type=Entry)))
    return found


def alter(file: Path, event: str, change: Callable[[dict], dict], *, which: int = 0) -> None:
    """Rewrite one event's fields, and the chain after it."""
    number, entry = [found for found in entries(file) if found[1].event == event][which]
    fields = change(msgspec.msgpack.decode(entry.body))
    frames = bodies(file)
    frames[number] = msgspec.msgpack.encode(replace(entry, body=msgspec.Raw(msgspec.msgpack.encode(fields))))
    write(file, frames)


def drop(file: Path, event: str, *, which: int = 0) -> None:
    """Remove one event, and mend the chain."""
    number, _ = [found for found in entries(file) if found[1].event == event][which]
    frames = bodies(file)
    del frames[number]
    write(file, frames)


def test_journals_of_real_owners_are_valid_and_counted(world):
    found = validate([world.folder])
    assert found.verdict == "valid", found.faults + found.gaps
    summary = found.summary()
    assert (summary["files"], summary["lives_ended_cleanly"]) == (2, 2)
    assert (summary["installs"], summary["installs_compared"]) == (4, 4)
    assert (summary["handoffs_produced"], summary["handoffs_consumed"]) == (6, 5)
    assert summary["handoffs_open_at_the_end"] == summary["torn_bytes"] == summary["events_lost"] == 0


def test_no_usable_grant_is_written(world):
    secrets = [record.state.grant for record in world.source._records.logged() if record.state.grant]
    written = b"".join(file.read_bytes() for file in world.folder.iterdir())
    assert len(secrets) == 6
    assert not any(secret.encode() in written for secret in secrets)


def test_a_journal_is_nobody_elses_to_read(world):
    assert {file.stat().st_mode & 0o777 for file in world.folder.iterdir()} == {0o600}


# what kill -9 leaves


def test_a_file_cut_off_anywhere_is_a_shorter_history_and_never_a_fault(world):
    file = producers_file(world.folder)
    consumers_file(world.folder).unlink()
    whole = file.read_bytes()
    for length in range(FRAMES_START, len(whole), 7):
        file.write_bytes(whole[:length])
        found = validate([world.folder])
        assert not found.faults, (length, found.faults)


def test_a_torn_last_frame_is_told_from_a_whole_one(world):
    file = producers_file(world.folder)
    file.write_bytes(file.read_bytes()[:-3])
    found = validate([world.folder])
    assert found.verdict == "valid"
    assert found.summary()["torn_bytes"] > 0
    assert found.summary()["lives_ended_cleanly"] == 1


async def test_blocks_held_by_a_life_that_was_killed_are_no_fault(tmp_path):
    world = JournalledWorld(tmp_path)
    await world.publish(world.handoff())
    found = validate([tmp_path])
    assert found.verdict == "valid"
    assert found.summary()["handoffs_open_at_the_end"] == 1


# tampering that does not know the chain


@pytest.mark.parametrize("side", [producers_file, consumers_file])
def test_any_frame_removed_breaks_the_chain(world, side):
    file = side(world.folder)
    data = file.read_bytes()
    starts = [FRAMES_START]
    for body in bodies(file):
        starts.append(starts[-1] + FRAME.size + len(body))
    for start, stop in itertools.pairwise(starts[1:-1]):
        file.write_bytes(data[:start] + data[stop:])
        assert validate([world.folder]).verdict == "invalid", start


def test_any_byte_altered_breaks_the_chain(world):
    file = consumers_file(world.folder)
    data = file.read_bytes()
    first = FRAMES_START + FRAME.size
    for at in range(first, len(data) - 40, 11):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert validate([world.folder]).verdict != "valid", at


# tampering that mends the chain: the protocol itself must miss it


@pytest.mark.parametrize("event", ["ReserveSource", "Complete", "Publish", "Confirm", "Abandon", "Expire"])
def test_an_event_missing_from_the_producers_history_is_missed(world, event):
    drop(producers_file(world.folder), event)
    assert validate([world.folder]).verdict == "invalid"


@pytest.mark.parametrize(
    "event", ["ReserveDestination", "Submit", "Arrived", "ConvertDone", "VerifyOk", "Confirmed", "Finish"]
)
def test_an_event_missing_from_the_consumers_history_is_missed(world, event):
    drop(consumers_file(world.folder), event)
    assert validate([world.folder]).verdict == "invalid"


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("ReserveSource", lambda fields: fields | {"blocks": [0, 0]}),
        ("ReserveSource", lambda fields: fields | {"blocks": list(range(9))}),
        ("ReserveSource", lambda fields: fields | {"tenant": OTHER_TENANT}),
        ("ReserveSource", lambda fields: fields | {"holder": "decode-9"}),
        ("Confirm", lambda fields: fields | {"epoch": 77}),
        ("Confirm", lambda fields: fields | {"grant": "0" * 32}),
        ("Confirm", lambda fields: fields | {"now": fields["now"] + 10 * LEASE.ns}),
        ("Renew", lambda fields: fields | {"lease": {"ns": -1}}),
    ],
)
def test_an_event_altered_in_the_producers_history_is_missed(world, event, change):
    alter(producers_file(world.folder), event, change)
    assert validate([world.folder]).verdict == "invalid"


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("ReserveDestination", lambda fields: fields | {"tenant": OTHER_TENANT}),
        ("ReserveDestination", lambda fields: fields | {"staging_bytes": 1001}),
        ("Submit", lambda fields: fields | {"epoch": 77}),
        ("Confirmed", lambda fields: fields | {"epoch": 77}),
    ],
)
def test_an_event_altered_in_the_consumers_history_is_missed(world, event, change):
    alter(consumers_file(world.folder), event, change)
    assert validate([world.folder]).verdict == "invalid"


async def test_a_block_given_to_two_hand_offs_at_a_time_is_found(tmp_path):
    world = JournalledWorld(tmp_path)
    first, second = world.handoff(), world.handoff()
    held = await world.reserve_source(first)
    await world.reserve_source(second)
    alter(producers_file(tmp_path), "ReserveSource", lambda fields: fields | {"blocks": list(held.blocks)}, which=1)
    assert "assigned already" in validate([tmp_path]).faults[0]


async def test_an_install_that_the_owner_never_confirmed_is_found(tmp_path):
    """What a consumer that does not ask would leave behind: every journal is valid by itself."""
    world = JournalledWorld(tmp_path)
    handoff = world.handoff()
    offer = await world.publish(handoff)
    await world.verified(handoff, grant=grant_of(offer), epoch=offer.epoch)
    world.destination.install(handoff, offer.epoch)
    found = validate([tmp_path])
    assert not [fault for each in found.lives for fault in each.faults]
    assert "never confirmed" in found.across.faults[0]


async def test_a_confirmation_asked_for_before_the_last_byte_is_found(tmp_path):
    world = JournalledWorld(tmp_path)
    handoff = world.handoff()
    offer = await world.publish(handoff)
    epoch = world.confirm(offer)
    world.clock.advance(LEASE / 4)
    await world.verified(handoff, grant=grant_of(offer), epoch=offer.epoch)
    world.destination.install(handoff, epoch)
    assert "before the last byte" in validate([tmp_path]).across.faults[0]


async def test_a_worker_that_says_it_holds_nothing_and_does_is_found(tmp_path):
    world = JournalledWorld(tmp_path)
    await world.publish(world.handoff())
    world.producer_journal.close(at=world.clock.now(), blocks_held=0)
    assert "held at the clean end" in validate([tmp_path]).faults[0]


# what is missing is said to be missing


def test_an_install_whose_owners_journal_is_not_there_leaves_the_history_incomplete(world):
    producers_file(world.folder).unlink()
    found = validate([world.folder])
    assert found.verdict == "incomplete"
    assert len(found.gaps) == 4


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[list[MutableMapping[str, Any]]]:
    """As on a full disk: the kernel takes no byte beyond. Yields what is logged meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        with structlog.testing.capture_logs() as logged:
            yield logged
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [0, 8, 100, 400, 1500])
async def test_a_full_disk_ends_the_journal_and_not_the_service(tmp_path, size_bytes):
    with files_of_at_most(size_bytes) as logged:
        world = JournalledWorld(tmp_path)
        for _ in range(3):
            await world.hand_off()
        assert world.holds_nothing()
        world.close()
    assert [line["event"] for line in logged] == ["journal_dropped"] * 2  # once by each worker
    assert world.producer_journal.lost > 0
    found = validate([tmp_path])
    assert found.verdict == "incomplete", found.summary()
    assert not found.faults


async def test_a_journal_that_lost_events_never_goes_on_with_a_gap_in_it(tmp_path):
    world = JournalledWorld(tmp_path)
    await world.hand_off()
    with files_of_at_most(0):
        await world.hand_off()
    size = producers_file(tmp_path).stat().st_size
    await world.hand_off()
    world.close()
    assert producers_file(tmp_path).stat().st_size == size
    assert validate([tmp_path]).summary()["events_lost"] > 0
    assert validate([tmp_path]).verdict == "incomplete"


async def test_a_folder_that_cannot_be_written_costs_the_journal_only(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    journal = JournalWriter(tmp_path / "file", header_of(Side.PRODUCER, PREFILL, PREFILL_LIFE))
    assert journal.lost == 1
    journal.close(at=0, blocks_held=0)


# rotation


async def rotated(folder: Path, *, files_max: int) -> Trace:
    world = JournalledWorld(folder, file_bytes_max=1200, files_max=files_max)
    for _ in range(6):
        await world.hand_off()
    world.close()
    return validate([folder])


async def test_a_life_goes_on_over_several_files(tmp_path):
    found = await rotated(tmp_path, files_max=100)
    assert max(file.stat().st_size for file in journals_in([tmp_path])) <= 1200
    assert found.verdict == "valid", found.faults + found.gaps
    assert found.summary()["files"] > 6
    assert (found.summary()["lives"], found.summary()["installs_compared"]) == (2, 6)


async def test_the_oldest_files_of_a_life_go_first_and_are_missed(tmp_path):
    found = await rotated(tmp_path, files_max=2)
    assert found.summary()["files"] == 4
    assert found.verdict == "incomplete"
    assert not found.faults


async def test_a_file_missing_from_the_middle_is_missed(tmp_path):
    await rotated(tmp_path, files_max=100)
    next(tmp_path.glob(f"{PREFILL}.*.0001.journal")).unlink()
    assert validate([tmp_path]).verdict != "valid"


# what is not a journal


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        validate([tmp_path / "nowhere"])


def test_a_folder_without_journals_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no \*\.journal"):
        validate([tmp_path])


@pytest.mark.parametrize("content", [b"", b"ISJOURN1", b"something else altogether", MAGIC + LOST.pack(3)])
def test_a_file_that_is_no_journal_is_a_gap(tmp_path, content):
    (tmp_path / "x.journal").write_bytes(content)
    assert validate([tmp_path]).verdict == "incomplete"
