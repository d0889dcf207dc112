"""Whatever comes from the network, the server lives on: after each attack an honest read succeeds."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.clock import SystemClock
from isthmus.core.errors import FrameInvalid, Lost, PeerLost
from isthmus.core.limits import CONTROL_FRAME_BYTES_MAX, OFFER_BYTES_MAX
from isthmus.transport.base import TcpEndpoint
from isthmus.transport.tcp import TcpExporter, TcpReader
from isthmus.transport.tcp._frames import (
    Hello,
    ReadBlocks,
    decode_answer,
    decode_greeting,
    decode_hello,
    decode_read,
    encode_frame,
)
from tests.transport.test_tcp import GRID, lender, read_one
from tests.transport.worlds import CONSUMER, OWNER, FakeGuard, request

HELLO = encode_frame(Hello(version=1, reader=CONSUMER, server=OWNER))
READ = encode_frame(ReadBlocks(read=request(GRID, [1, 2], 9), deadline_ms=1000))
DECODERS = (decode_hello, decode_read, decode_greeting, decode_answer)

json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@st.composite
def attacks(draw) -> bytes:
    """Random bytes; a good frame changed or cut; good msgpack of the wrong thing; false lengths."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return (draw(st.sampled_from([b"", HELLO]))) + framed(msgspec.msgpack.encode(draw(json_like)))
    good = bytearray(HELLO + READ)
    if kind == 2:
        for _ in range(draw(st.integers(1, 4))):
            good[draw(st.integers(0, len(good) - 1))] = draw(st.integers(0, 255))
        return bytes(good)
    if kind == 3:
        return bytes(good[: draw(st.integers(0, len(good)))])
    return HELLO + draw(st.integers(0, 2**32 - 1)).to_bytes(4, "big") + draw(st.binary(max_size=50))


async def attack(endpoint, data: bytes) -> bytes:
    """Send, close our side, and return all that comes back."""
    reading, writing = await asyncio.open_connection(endpoint.host, endpoint.port)
    writing.write(data)
    writing.write_eof()
    try:
        async with asyncio.timeout(10):
            return await reading.read()
    except ConnectionResetError:
        return b""
    finally:
        writing.close()


@settings(max_examples=100)
@given(data=st.lists(attacks(), min_size=1, max_size=4))
async def test_garbage_never_ends_the_server(data):
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    endpoint = await exporter.start()
    await asyncio.gather(*(attack(endpoint, one) for one in data))
    reader = TcpReader(CONSUMER, SystemClock())
    await read_one(reader, endpoint)
    await reader.close()
    await exporter.close()
    assert reported == []


@settings(max_examples=300)
@given(body=st.binary(max_size=300) | json_like.map(msgspec.msgpack.encode))
def test_a_frame_that_does_not_parse_is_refused_by_name(body):
    for decode in DECODERS:
        try:
            decode(body)
        except FrameInvalid:
            continue


@pytest.mark.parametrize(
    ("prefix", "limit"), [(b"", CONTROL_FRAME_BYTES_MAX), (HELLO, OFFER_BYTES_MAX)], ids=["before hello", "after hello"]
)
async def test_a_frame_over_the_limit_is_refused_before_it_is_allocated(prefix, limit):
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    answer = await attack(await exporter.start(), prefix + (limit + 1).to_bytes(4, "big"))
    assert b"FrameInvalid" in answer
    assert str(limit).encode() in answer
    await exporter.close()


@pytest.mark.parametrize("change", [{"extra": 1}, {"deadline_ms": 0}, {"deadline_ms": 1 << 40}, {"type": "hello"}])
async def test_unknown_and_outlying_fields_are_refused(change):
    fields = msgspec.msgpack.decode(READ[4:]) | change
    with pytest.raises(FrameInvalid):
        decode_read(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("blocks", [[1, 1], [-1], [9], [], [1 << 40], ["1"], [True]])
async def test_a_peers_bad_block_ids_are_refused_by_the_server(blocks):
    fields = msgspec.msgpack.decode(READ[4:])
    fields["read"]["blocks"] = blocks
    guard = FakeGuard()
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), guard, SystemClock())
    answer = await attack(await exporter.start(), HELLO + framed(msgspec.msgpack.encode(fields)))
    assert b"FrameInvalid" in answer
    assert guard.asked == 0
    await exporter.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        framed(b"\xc1"),
        b"\xff\xff\xff\xff",
        framed(msgspec.msgpack.encode({"type": "granted", "size_bytes": 1})) + bytes(3072),
        framed(msgspec.msgpack.encode({"type": "granted", "size_bytes": 3072})) + b"short",
        framed(msgspec.msgpack.encode({"type": "refusal", "code": "Bug", "message": "x"})),
    ],
    ids=["nothing", "not msgpack", "too long", "other size", "short", "a bug of the owner's"],
)
async def test_an_owner_that_answers_nonsense_is_a_loss(answer):
    welcome = framed(msgspec.msgpack.encode({"type": "welcome", "version": 1, "server": OWNER}))

    async def serve(reading, writing):
        await reading.readexactly(len(HELLO))
        writing.write(welcome)
        await reading.read(1)
        writing.write(answer)
        await writing.drain()
        writing.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader = TcpReader(CONSUMER, SystemClock())
    endpoint = TcpEndpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1], peer=OWNER)
    with pytest.raises(Lost):
        await read_one(reader, endpoint)
    await reader.close()
    server.close()


async def test_nobody_listening_is_a_lost_peer():
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    endpoint = await exporter.start()
    await exporter.close()
    with pytest.raises(PeerLost):
        await read_one(TcpReader(CONSUMER, SystemClock()), endpoint)
