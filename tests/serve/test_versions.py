"""A peer of version N-1 and one of version N understand each other, or say by name what they cannot say.

`tests/golden/messages_of_version_2.json` has frames as the release before wrote them, in hexadecimal.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import FrameInvalid, GrantUnknown, ManifestInvalid
from isthmus.core.ids import GrantId
from isthmus.core.units import Duration
from isthmus.handoff.orders import (
    AbortOrder,
    Ack,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    Registration,
    RenewOrder,
    WrittenOrder,
)
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.serve.channel import Channel, connect, decode_frame
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Hello, Members, Message, PeerHello, Pulse, SnapshotOrder, Welcome
from isthmus.serve.processes import has_exited, this_process
from isthmus.serve.versions import PROTOCOL_VERSION, Conversation
from isthmus.state.manifest import SCHEMA_VERSIONS_SPOKEN, decode_manifest, encode_manifest
from tests.state.states import a_state

RECORDED = {
    name: bytes.fromhex(text)
    for name, text in json.loads(
        (Path(__file__).parents[1] / "golden" / "messages_of_version_2.json").read_text()
    ).items()
}
CLOCK = SystemClock()
HOLDER: dict[str, Any] = {"holder": "decode-0", "holder_incarnation": "2" * 32}
GRANT = "7" * 32 + "8" * 32


def recorded(name: str) -> dict[str, Any]:
    """What the older release wrote, without its frame."""
    message: dict[str, Any] = msgspec.msgpack.decode(RECORDED[name])[2]
    return message


def understood(name: str, conversation: Conversation | None = None) -> Message:
    return decode_frame(RECORDED[name], conversation or Conversation(2)).message


def said(message: Message, conversation: Conversation | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.msgpack.decode((conversation or Conversation(2)).written(message))
    return fields


def offered(grant: str = GRANT) -> PrefillReply:
    state = a_state()
    ownership = msgspec.structs.replace(state.ownership, grant=grant)
    manifest = encode_manifest(a_state(ownership=ownership))
    return PrefillReply(token=9, finish_reason=None, manifest=manifest, prefill_ms=1.5)


# what the older one says


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_every_message_of_the_older_version_is_understood(name: str) -> None:
    understood(name)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_what_the_older_one_said_is_said_back_in_the_very_same_fields(name: str) -> None:
    assert said(understood(name)) == recorded(name)


def test_what_the_older_version_does_not_say_gets_the_meaning_that_it_had() -> None:
    order = understood("prefill")
    assert isinstance(order, PrefillOrder)
    assert (order.have_tokens, order.mode, order.registration) == (0, TriggerMode.PULL, None)
    hello = understood("hello")
    assert isinstance(hello, Hello)
    assert hello.member.imports == ()
    assert hello.member.schema_versions == (2,)
    assert hello.member.process.pid == 4242
    assert not has_exited(hello.member.process)  # of a bare pid nothing is certain


@pytest.mark.parametrize(
    ("name", "field"),
    [("prefill", "have_tokens"), ("prefill", "mode"), ("pulse", "unhealthy"), ("peer_hello", "no_such_field")],
)
def test_within_the_older_version_what_came_later_is_unknown_and_refused(name: str, field: str) -> None:
    kind, id_, message = msgspec.msgpack.decode(RECORDED[name])
    with pytest.raises(FrameInvalid, match=field):
        decode_frame(msgspec.msgpack.encode([kind, id_, message | {field: 0}]), Conversation(2))


# what is said to the older one


def test_a_member_is_told_to_the_older_one_without_what_it_cannot_use() -> None:
    hello = understood("hello")
    assert isinstance(hello, Hello)
    member = msgspec.structs.replace(
        hello.member, process=this_process(), imports=hello.member.endpoints, schema_versions=SCHEMA_VERSIONS_SPOKEN
    )
    told = said(Members(members=(member,)))
    assert set(told["members"][0]) == set(recorded("members")["members"][0])
    assert told["members"][0]["pid"] == member.process.pid


def test_what_only_people_read_is_left_out_for_the_older_one() -> None:
    reply = msgspec.structs.replace(offered(), reused_tokens=7)
    assert "reused_tokens" not in said(reply)
    assert said(Pulse(blocks={"free": 8}, unhealthy="full")) == recorded("pulse")


REGISTRATION = Registration(grant=GRANT, epoch=1, transport="tcp")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (("prefill", {"have_tokens": 4}), "have_tokens"),
        (("prefill", {"mode": TriggerMode.PUSH}), "mode"),
        (("prefill", {"registration": REGISTRATION}), "registration"),
        (("snapshot_order", {"handoff": "ab"}), "handoff"),
    ],
)
def test_what_the_older_version_cannot_say_is_refused_by_the_name_of_the_field(
    message: tuple[str, dict[str, Any]], field: str
) -> None:
    name, changes = message
    with pytest.raises(FrameInvalid, match=f"{name}.{field}") as caught:
        said(msgspec.structs.replace(understood(name), **changes))  # type: ignore[type-var]
    assert caught.value.field == field


@pytest.mark.parametrize(
    "message",
    [
        RegisterOrder(handoff="a" * 32, registration=REGISTRATION, **HOLDER),
        WrittenOrder(handoff="a" * 32, **HOLDER),
    ],
)
def test_push_is_not_spoken_with_the_older_one(message: Message) -> None:
    with pytest.raises(FrameInvalid, match="version 2 has no"):
        said(message)
    tag = msgspec.to_builtins(message, builtin_types=(bytes,))
    with pytest.raises(FrameInvalid, match="version 2 has no"):
        decode_frame(msgspec.msgpack.encode([0, 1, tag]), Conversation(2))


# grants


def test_a_grant_crosses_to_the_older_one_as_its_random_half_and_comes_back_whole() -> None:
    conversation = Conversation(2)
    told = said(offered(), conversation)
    envelope = msgspec.msgpack.decode(told["manifest"])
    assert envelope["schema_version"] == 2
    assert envelope["state"]["ownership"]["grant"] == GRANT[:32]
    confirm = decode_frame(RECORDED["confirm"], conversation).message
    assert isinstance(confirm, ConfirmOrder)
    assert confirm.grant == GRANT


def test_half_a_grant_that_was_never_given_on_this_connection_stays_half_and_opens_nothing() -> None:
    confirm = understood("confirm")
    assert isinstance(confirm, ConfirmOrder)
    assert confirm.grant == GRANT[:32]
    state = decode_manifest(understood("prefilled").manifest)  # type: ignore[union-attr]
    assert state.ownership.grant == GRANT[:32]


# connections


class Producer:
    """A version-3 producer's end: answers what a pull hand-off asks, and remembers who greeted and with what grant."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    async def handle(self, channel: Channel, message: Message) -> Message:
        self.heard.append(message)
        match message:
            case PeerHello() | AbortOrder() | RenewOrder():
                channel.greeted = True
                return Ack()
            case Hello():
                return Welcome(schema_version=channel.conversation.version or 0, heartbeat_ms=100, timeout_ms=1000)
            case PrefillOrder():
                return offered()
            case ConfirmOrder() if GrantId(message.grant) == GRANT:
                return ConfirmReply(epoch=message.epoch)
            case ConfirmOrder():
                raise GrantUnknown("no such grant", field="grant")
            case _:
                return Ack()


class Served:
    """A listening producer, and what it takes to talk to it in raw bytes."""

    async def __aenter__(self) -> "Served":
        self.producer = Producer()
        self._running: list[asyncio.Task[None]] = []
        self._server = await listen(self._accept, "127.0.0.1", 0, tls=None)
        self.port = self._server.sockets[0].getsockname()[1]
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _accept(self, link: Link) -> None:
        channel = Channel(link, CLOCK, handler=self.producer.handle, posted=lambda *_: None)
        running = asyncio.ensure_future(channel.run())
        self._running.append(running)
        await running

    async def ask(self, frame: bytes) -> dict[str, Any]:
        self._writer.write(len(frame).to_bytes(4, "big") + frame)
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        answer: dict[str, Any] = msgspec.msgpack.decode(await self._reader.readexactly(size))[2]
        return answer


async def test_a_version_2_consumer_does_a_whole_pull_with_a_version_3_producer() -> None:
    async with Served() as served:
        assert await served.ask(RECORDED["peer_hello"]) == recorded("ack")
        reply = await served.ask(RECORDED["prefill"])
        assert set(reply) == set(recorded("prefilled"))
        assert await served.ask(RECORDED["renew"]) == recorded("ack")
        assert await served.ask(RECORDED["confirm"]) == recorded("confirmed")
        assert await served.ask(RECORDED["abort_handoff"]) == recorded("ack")
    renewed = served.producer.heard[2]
    assert isinstance(renewed, RenewOrder)
    assert renewed.grant == GRANT


async def test_a_version_2_worker_is_welcomed_in_version_2() -> None:
    async with Served() as served:
        assert await served.ask(RECORDED["hello"]) == recorded("welcome")


@pytest.mark.parametrize("versions", [[1], [4, 5], ["2"], None])
async def test_who_speaks_no_version_of_ours_is_told_which_those_are(versions: Any) -> None:
    hello = {"type": "hello", "member": {"of": "long ago"}, "schema_versions": versions}
    async with Served() as served:
        answer = await served.ask(msgspec.msgpack.encode([0, 1, hello]))
    assert (answer["type"], answer["code"], answer["field"]) == ("failure", "ManifestInvalid", "schema_version")
    assert served.producer.heard == []
    if versions == [1]:
        assert "speaks [1], this worker [2, 3]" in answer["message"]


async def test_a_version_3_consumer_says_to_a_version_2_producer_only_what_it_understands() -> None:
    heard: asyncio.Queue[list[Any]] = asyncio.Queue()

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = {"peer_hello": "ack", "prefill": "prefilled", "confirm": "confirmed"}
        for _ in range(3):
            size = int.from_bytes(await reader.readexactly(4), "big")
            _, id_, message = msgspec.msgpack.decode(await reader.readexactly(size))
            heard.put_nowait(message)
            frame = msgspec.msgpack.encode([1, id_, recorded(answers[message["type"]])])
            writer.write(len(frame).to_bytes(4, "big") + frame)
        writer.close()

    server = await asyncio.start_server(older, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    channel = await connect(
        "127.0.0.1",
        port,
        CLOCK,
        handler=Producer().handle,
        posted=lambda *_: None,
        peer="prefill-0",
        deadline=Duration.of_seconds(5),
        version=2,
    )
    running = asyncio.ensure_future(channel.run())
    with pytest.raises(FrameInvalid, match="have_tokens"):  # before anything is sent
        await channel.call(msgspec.structs.replace(understood("prefill"), have_tokens=3))  # type: ignore[type-var]
    assert await channel.call(understood("peer_hello")) == Ack()
    reply = await channel.call(understood("prefill"))
    assert isinstance(reply, PrefillReply)
    grant = decode_manifest(reply.manifest).ownership.grant
    confirm = msgspec.structs.replace(understood("confirm"), grant=grant)  # type: ignore[type-var]
    assert await channel.call(confirm) == ConfirmReply(epoch=7)
    assert [heard.get_nowait() for _ in range(3)] == [recorded(name) for name in ("peer_hello", "prefill", "confirm")]
    await running
    server.close()


def test_both_versions_are_spoken_and_no_other() -> None:
    assert set(SCHEMA_VERSIONS_SPOKEN) == {PROTOCOL_VERSION - 1, PROTOCOL_VERSION}
    with pytest.raises(ManifestInvalid, match="version"):
        Conversation().read(msgspec.Raw(msgspec.msgpack.encode({"type": "peer_hello", "version": 1})))
    assert isinstance(understood("snapshot_order"), SnapshotOrder)
