"""Who is at the other end is proven, on channels and on the data plane: real sockets, real certificates."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import ConfigInvalid, Lost, NotAuthorised, PeerLost
from isthmus.core.ids import TenantId
from isthmus.core.units import Duration
from isthmus.serve.channel import Channel, connect
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Ack, Message, Pulse
from isthmus.serve.tls import TlsConfig, load_tls
from isthmus.transport.tls import Tls, names_of

CLOCK = SystemClock()
SOON = Duration.of_seconds(5)


async def _answer(channel: Channel, _: Message) -> Message:
    return Ack()


def _silent(*_: object) -> None:
    """Nothing is posted here."""


@asynccontextmanager
async def serving(tls: Tls | None, claimed: str | None = None) -> AsyncIterator[int]:
    """A port that speaks channels, and that wants its callers to be `claimed` where that is given."""
    running: list[asyncio.Task[None]] = []

    async def handler(channel: Channel, message: Message) -> Message:
        if claimed is not None:
            channel.prove(tls, claimed)
        channel.greeted = True
        return await _answer(channel, message)

    async def accept(link: Link) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        await Channel(link, CLOCK, handler=handler, posted=_silent).serve()

    server = await listen(accept, "127.0.0.1", 0, tls=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()


async def call(port: int, tls: Tls | None, peer: str = "gateway") -> Message:
    """Connect to `peer`, ask once, and leave."""
    channel = await connect(
        "127.0.0.1", port, CLOCK, handler=_answer, posted=_silent, peer=peer, deadline=SOON, tls=tls
    )
    running = asyncio.create_task(channel.run())
    try:
        async with asyncio.timeout(5):
            return await channel.call(Pulse())
    finally:
        channel.close()
        await asyncio.wait({running})


async def test_two_that_prove_who_they_are_understand_each_other(authority):
    async with serving(authority.tls("gateway"), claimed="prefill-0") as port:
        assert isinstance(await call(port, authority.tls("prefill-0")), Ack)


async def test_a_worker_that_claims_anothers_name_is_refused_by_name(authority):
    async with serving(authority.tls("gateway"), claimed="prefill-1") as port:
        with pytest.raises(NotAuthorised, match="is for 'prefill-0', the peer says that it is 'prefill-1'"):
            await call(port, authority.tls("prefill-0"))


async def test_who_listens_there_must_be_whom_was_called(authority):
    async with serving(authority.tls("decode-0")) as port:
        with pytest.raises(NotAuthorised, match="decode-0"):
            await call(port, authority.tls("prefill-0"), peer="gateway")


async def test_a_stranger_is_not_believed_by_either_end(authority, strangers):
    async with serving(strangers.tls("gateway")) as port:
        with pytest.raises(NotAuthorised, match="certificate"):
            await call(port, authority.tls("prefill-0"))
    async with serving(authority.tls("gateway")) as port:
        # It believes us, we do not believe it: TLS 1.3 tells it so at its first read.
        with pytest.raises(Lost):
            await call(port, strangers.tls("prefill-0", believes=authority))


async def test_plain_and_encrypted_ends_lose_each_other_at_once(authority):
    async with serving(authority.tls("gateway")) as port:
        with pytest.raises(PeerLost):
            await call(port, None)
    async with serving(None) as port:
        with pytest.raises(PeerLost):
            await call(port, authority.tls("prefill-0"))


async def test_nothing_below_tls_1_3_and_nobody_without_a_certificate_is_served(authority):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    authority.tls("prefill-0")
    old.load_cert_chain(authority.folder / "prefill-0.pem", authority.folder / "prefill-0.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    async with serving(authority.tls("gateway")) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=nobody)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.transport.abort()


async def test_another_deployment_of_the_same_ca_is_refused(tmp_path, authority):
    from tests.security.authority import Authority

    other = Authority(tmp_path / "other", deployment="other")
    theirs = other.tls("gateway", believes=authority)
    ours = authority.tls("prefill-0")
    ours.client.load_verify_locations(other.folder / "ca.pem")
    try:
        async with serving(theirs) as port:
            with pytest.raises(NotAuthorised, match="deployment 'other'"):
                await call(port, ours)
    finally:
        assert ours.own.deployment == "test"


def test_a_certificate_says_whose_requests_it_may_handle(authority):
    proof = authority.tls("decode-7", "red", "blue/green").own
    assert proof.tenants == {"red", "blue/green"}
    proof.check_tenant(TenantId("blue/green"))
    with pytest.raises(NotAuthorised, match="does not cover 'yellow'"):
        proof.check_tenant(TenantId("yellow"))
    authority.tls("decode-8").own.check_tenant(TenantId("yellow"))  # of no tenant in particular


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://other/test/worker/a"],
        ["spiffe://isthmus/test/worker/a", "spiffe://isthmus/test/worker/b"],
        ["spiffe://isthmus/test/worker/a", "spiffe://isthmus/else/tenant/b"],
        ["spiffe://isthmus/test/worker/"],
        ["spiffe://isthmus/test/worker/a/b"],
        ["spiffe://isthmus/test/admin/a"],
        ["https://isthmus/test/worker/a"],
    ],
)
def test_a_certificate_that_names_no_one_worker_is_refused(uris):
    with pytest.raises(NotAuthorised):
        names_of(uris)


@pytest.mark.parametrize("change", ["ca", "certificate", "key"])
def test_files_that_cannot_be_used_are_named(authority, strangers, tmp_path, change):
    authority.tls("prefill-0"), strangers.tls("prefill-1")
    files = {name: authority.folder / f"prefill-0.{end}" for name, end in (("certificate", "pem"), ("key", "key"))}
    files["ca"] = authority.folder / "ca.pem"
    wrong = {
        "ca": strangers.folder / "ca.pem",
        "certificate": strangers.folder / "prefill-1.pem",
        "key": tmp_path / "no",
    }
    with pytest.raises(ConfigInvalid) as invalid:
        Tls(**files | {change: wrong[change]})
    assert invalid.value.field.startswith("tls.")


def test_a_process_with_anothers_certificate_does_not_start(authority):
    authority.tls("prefill-0")
    folder = authority.folder
    mine = TlsConfig(ca=folder / "ca.pem", certificate=folder / "{name}.pem", key=folder / "{name}.key")
    tls = load_tls(mine, "prefill-0")
    assert tls is not None
    assert tls.own.worker == "prefill-0"
    fixed = TlsConfig(ca=folder / "ca.pem", certificate=folder / "prefill-0.pem", key=folder / "prefill-0.key")
    with pytest.raises(ConfigInvalid, match="isthmus certs issue"):
        load_tls(fixed, "prefill-1")
    assert load_tls(None, "prefill-0") is None
    assert load_tls("insecure", "prefill-0") is None
