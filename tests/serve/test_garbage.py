"""Bytes that are no frames, on every port where workers listen for each other: connections end, processes do not."""

import asyncio
import struct

import msgspec
import psutil
import pytest

from isthmus.core.limits import OFFER_BYTES_MAX
from tests.serve.asking import ask, finish

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


def _frame(content: object) -> bytes:
    body = msgspec.msgpack.encode(content)
    return struct.pack(">I", len(body)) + body


HELLO = {"type": "hello", "schema_versions": [1], "member": {"worker": "x"}}
GARBAGE = {
    "noise": bytes(range(255, 0, -1)) * 8,
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a frame too large": struct.pack(">I", OFFER_BYTES_MAX + 1),
    "a frame that is no msgpack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "a frame nested without end": struct.pack(">I", 100_000) + b"\x91" * 100_000,
    "a message of no type": _frame([0, 1, {"type": "unheard_of"}]),
    "a message with a field too many": _frame([0, 1, {"type": "pulse", "blocks": {}, "more": 1}]),
    "half a hello": _frame([0, 1, HELLO]),
    "a post before hello": _frame([2, 0, {"type": "pulse", "blocks": {}}]),
    "a frame of no kind": _frame([9, 0, {"type": "pulse", "blocks": {}}]),
    "nothing": b"",
    "half a frame": struct.pack(">I", 1000) + b"\x00" * 10,
}


def _ports(pair) -> list[int]:
    """The gateway's control port, and whatever the prefill worker listens on: for peers, and for readers by TCP."""
    found = psutil.Process(pair.child("prefill-0").pid).net_connections(kind="tcp")
    return [pair.config.gateway.control_port, *(each.laddr.port for each in found if each.status == psutil.CONN_LISTEN)]


async def _send(port: int, content: bytes) -> None:
    """Send, say that this was all, and wait for the other end to hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        writer.write_eof()
        async with asyncio.timeout(10):
            while await reader.read(4096):
                pass
    except OSError:
        pass  # it hung up with our bytes unread
    finally:
        writer.close()


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_ends_the_connection_and_nothing_else(pair, what):
    ports = _ports(pair)
    assert len(ports) >= 2
    await asyncio.gather(*(_send(port, GARBAGE[what]) for port in ports for _ in range(3)))
    assert set(pair.pids()) == {"gateway", "prefill-0", "decode-0"}


async def test_the_fleet_has_noticed_nothing(pair, reference):
    assert set(await pair.incarnations()) == {"prefill-0", "decode-0"}
    stream = ask(pair.client, await pair.model(), 0, reference[0].prompt, max_tokens=4)
    await finish([stream])
    assert stream.token_ids == list(reference[0].answer[:4])
    assert await pair.held_blocks() == 0
    assert "Traceback" not in pair.tails(1000)


async def test_a_call_before_hello_is_refused_by_name(pair):
    """Control and peer ports speak frames of calls and answers; the port for readers has frames of its own."""
    order = {"type": "abort_handoff", "handoff": "0" * 32, "holder": "x", "holder_incarnation": "0" * 32}
    answered = 0
    for port in _ports(pair):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_frame([0, 7, order]))
        async with asyncio.timeout(10):
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            answer = msgspec.msgpack.decode(await reader.readexactly(length))
        writer.close()
        if isinstance(answer, list):
            kind, id_, failure = answer
            assert (kind, id_, failure["type"], failure["field"]) == (1, 7, "failure", "call")
            answered += 1
        else:
            failure = answer
        assert failure["code"] == "FrameInvalid"
    assert answered == 2
