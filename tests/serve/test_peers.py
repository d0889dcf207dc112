"""A consumer's channels to its producers: who accepts a connection and then says nothing is not waited for."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from isthmus.core.clock import SystemClock
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.serve.messages import Member, Members
from isthmus.serve.processes import this_process
from isthmus.serve.worker import peers
from isthmus.serve.worker.membership import Membership
from isthmus.serve.worker.peers import Peers
from isthmus.state.partition import Partition
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.state.states import GROUP, IDENTITY

CLOCK = SystemClock()
PRODUCER, LIFE = WorkerId("prefill-0"), Incarnation("a" * 32)


@pytest_asyncio.fixture
async def silent() -> AsyncIterator[int]:
    """The port of somebody who takes every byte and answers none, as a partition does once a connection stands."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def peers_of(port: int) -> Peers:
    membership = Membership()
    member = Member(
        worker=PRODUCER,
        incarnation=LIFE,
        role="prefill",
        process=this_process(),
        identity=IDENTITY,
        representation=KVRepresentation(groups=(GROUP,), partition=Partition(tp_size=2)),
        num_blocks=8,
        context_length=512,
        host="127.0.0.1",
        port=port,
        transports=("tcp",),
        endpoints=(),
    )
    membership.update(Members(members=(member,)))
    return Peers(membership, CLOCK, worker=WorkerId("decode-0"), incarnation=Incarnation("b" * 32))


async def test_a_producer_that_does_not_answer_the_hello_is_given_up_and_dialled_anew_next_time(silent, monkeypatch):
    monkeypatch.setattr(peers, "CONNECT_DEADLINE", Duration.of_ms(100))
    dialling = peers_of(silent)
    for _ in range(2):
        async with asyncio.timeout(5):
            with pytest.raises(DeadlineExceeded, match="hello to prefill-0"):
                await dialling.producer(PRODUCER, LIFE)
