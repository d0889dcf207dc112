"""Partitions by network namespaces: what each loses, in silence, and that nothing of them is left behind."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import DeadlineExceeded, Unsupported
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.lab.chaos import partitions
from isthmus.lab.chaos.disk import TinyDisk
from isthmus.lab.chaos.namespaces import here
from isthmus.lab.chaos.partitions import HUB, Network, Partition

CLOCK = SystemClock()
BRIEF, LONG = Duration.of_ms(150), Duration.of_seconds(5)
APART, OTHER = "decode-apart-0", "prefill-apart-0"
GATEWAY_PORT, PEERS_PORT = 7001, 7002


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network([OTHER, APART]).__enter__()
    except Unsupported as error:
        pytest.skip(str(error))
    yield made
    made.__exit__()


@asynccontextmanager
async def line(network: Network, port: int = PEERS_PORT, *, name: str = APART) -> AsyncIterator["Line"]:
    """A connection from where the member is to a server at the hub that gives back what it gets."""
    received = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            received.extend(data)
            writer.write(data)

    server = await asyncio.start_server(echo, HUB, port)
    with network.beside(name):
        dialling = socket.socket()
    dialling.setblocking(False)
    await asyncio.get_running_loop().sock_connect(dialling, (HUB, port))
    reader, writer = await asyncio.open_connection(sock=dialling)
    yield Line(reader, writer, received)
    writer.transport.abort()
    server.close()


class Line:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: bytearray) -> None:
        self.reader, self.writer, self.received = reader, writer, received

    async def round_trip(self, data: bytes) -> None:
        self.writer.write(data)
        assert await self.reader.readexactly(len(data)) == data


@pytest.mark.parametrize(
    ("partition", "arrives"), [(Partition.WHOLE, b""), (Partition.MUTE, b""), (Partition.DEAF, b"lost?")]
)
async def test_a_partitioned_connection_stalls_and_resumes_when_healed(network, partition, arrives):
    async with line(network) as made:
        await made.round_trip(b"hello")
        made.received.clear()
        network.part(APART, partition, GATEWAY_PORT)
        with pytest.raises(DeadlineExceeded):
            await within(CLOCK, BRIEF, made.round_trip(b"lost?"), "round trip")
        assert made.received == arrives
        network.heal(APART)
        assert await within(CLOCK, LONG, made.reader.readexactly(5), "resumption") == b"lost?"
        assert network.packets_lost[APART] > 0


@pytest.mark.parametrize(
    ("partition", "silent", "open_"),
    [(Partition.GATEWAY, GATEWAY_PORT, PEERS_PORT), (Partition.PEERS, PEERS_PORT, GATEWAY_PORT)],
)
async def test_a_partition_from_the_gateway_or_from_the_peers_leaves_the_other_connected(
    network, partition, silent, open_
):
    async with line(network, silent) as cut, line(network, open_) as spared:
        network.part(APART, partition, GATEWAY_PORT)
        await within(CLOCK, LONG, spared.round_trip(b"hello"), "round trip")
        with pytest.raises(DeadlineExceeded):
            await within(CLOCK, BRIEF, cut.round_trip(b"hello"), "round trip")
        network.heal(APART)


async def test_another_members_partition_is_not_ours(network):
    async with line(network) as made:
        network.part(OTHER, Partition.WHOLE, GATEWAY_PORT)
        await within(CLOCK, LONG, made.round_trip(b"hello"), "round trip")
        network.heal(OTHER)


async def test_who_dials_into_a_partition_gets_no_answer_and_no_refusal(network):
    """Nobody listens there: without the partition it is refused at once."""
    where = (network.address(APART), PEERS_PORT)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*where)
    network.part(APART, Partition.WHOLE, GATEWAY_PORT)
    with pytest.raises(DeadlineExceeded):
        await within(CLOCK, BRIEF, asyncio.open_connection(*where), "connect")
    network.heal(APART)


def test_nothing_is_ordered_of_a_network_that_was_left(network):
    network.part(APART, Partition.WHOLE, GATEWAY_PORT)
    network.__exit__()
    with pytest.raises(OSError, match="Bad file descriptor"):
        network.heal(APART)


async def test_two_members_that_are_apart_reach_each_other(network):
    with network.beside(OTHER):
        listening = socket.create_server((network.address(OTHER), PEERS_PORT))
    with network.beside(APART), socket.create_connection((network.address(OTHER), PEERS_PORT), timeout=5):
        _, (host, _) = listening.accept()
    listening.close()
    assert host == network.address(APART)


def test_the_hosts_network_is_not_touched_and_this_thread_comes_back_to_it():
    before, links = here(), sorted(os.listdir("/sys/class/net"))
    handles = len(os.listdir("/proc/self/fd"))
    try:
        with Network([APART]):
            assert here() != before
    except Unsupported as error:
        pytest.skip(str(error))
    assert here() == before
    assert sorted(os.listdir("/sys/class/net")) == links
    assert len(os.listdir("/proc/self/fd")) == handles


def test_what_is_missing_is_said_and_nothing_is_left(monkeypatch):
    before, handles = here(), len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(partitions, "LOSE", "no number")
    with pytest.raises(Unsupported, match="network namespaces: "):
        Network([APART]).__enter__()
    assert here() == before
    assert len(os.listdir("/proc/self/fd")) == handles


# disk


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


async def test_a_tiny_disk_is_soon_full_is_nobody_elses_and_its_files_are_kept(tmp_path):
    async with TinyDisk(tmp_path / "full", tmp_path / "kept") as disk:
        if not disk.mounted:
            pytest.skip("no rights to mount a disk")
        (disk.at / "journal").write_bytes(b"x")
        with pytest.raises(OSError, match="No space left"):
            (disk.at / "log").write_bytes(bytes(1 << 20))
        assert os.listdir(tmp_path / "full") == []
        assert str(tmp_path) not in mounts()
    assert (tmp_path / "kept" / "journal").read_bytes() == b"x"


# a driver that is killed

DRIVER = """
import asyncio, pathlib, subprocess, sys
from isthmus.lab.chaos.disk import TinyDisk
from isthmus.lab.chaos.namespaces import here
from isthmus.lab.chaos.partitions import Network

async def main():
    folder = pathlib.Path(sys.argv[1])
    with Network(["apart"]) as network:
        async with TinyDisk(folder / "full", folder / "kept") as disk:
            with network.beside("apart"):
                inside = here()
            print(here(), inside, disk.at if disk.mounted else "", disk._holder.pid, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


def namespaces_in_use() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(path.readlink()))
        except OSError:
            continue  # it has ended meanwhile
    return found


async def test_a_killed_driver_leaves_no_namespace_and_no_mount(tmp_path, network):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    hub, inside, at, holder = (await process.stdout.readline()).decode().split()
    assert {hub, inside} & namespaces_in_use() == {hub}  # the member's has nobody in it; only its descriptor holds it
    watched = os.pidfd_open(int(holder))
    process.kill()
    await process.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    await within(CLOCK, LONG, ended.wait(), "the holder's end")
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)
    assert not {hub, inside} & namespaces_in_use()
    assert str(tmp_path) not in mounts()
    with pytest.raises(FileNotFoundError):
        os.listdir(at)
