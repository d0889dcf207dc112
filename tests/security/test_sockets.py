"""A running deployment with TLS between its processes: it answers, and listens where its file says, nowhere else."""

import asyncio
import ssl

import psutil
import pytest
import pytest_asyncio

from tests.security.authority import Authority
from tests.serve.asking import ask, finish
from tests.serve.fleet import Fleet
from tests.serve.shapes import PAIR, deployment_of

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

POOLS = tuple({**pool, "transports": ["tcp"]} for pool in PAIR)
CLOSED_BY_DEFAULT = {"127.0.0.1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured(smollm2, tmp_path_factory):
    """One prefill and one decode worker, KV by TCP, everything between processes by TLS."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "certs", deployment="secured")
    for name in ("gateway", "prefill-0", "decode-0"):
        authority.tls(name)
    certs = folder / "certs"
    raw = deployment_of(POOLS, smollm2)
    raw["tls"] = {
        "ca": str(certs / "ca.pem"),
        "certificate": str(certs / "{name}.pem"),
        "key": str(certs / "{name}.key"),
    }
    async with Fleet(raw, folder / "fleet") as fleet:
        await fleet.heal()
        yield fleet


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process, or a child of it, accepts connections or datagrams."""
    found = set()
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        for each in process.net_connections(kind="inet"):
            if each.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and each.laddr:
                found.add((each.laddr.ip, each.laddr.port))
    return found


async def test_answers_cross_tls_from_end_to_end_and_are_exact(secured, reference):
    stream = ask(secured.client, await secured.model(), 0, reference[0].prompt, max_tokens=8)
    await finish([stream])
    assert stream.token_ids == list(reference[0].answer[:8]), stream
    installed = (await secured.client.get("/v1/isthmus/handoffs")).json()["installed"]
    assert [report["transport"] for report in installed] == ["tcp"]
    assert await secured.held_blocks() == 0


async def test_nothing_listens_but_what_the_file_says(secured):
    gateway = secured.config.gateway
    pids = secured.pids()
    assert listening(pids["gateway"]) == {(gateway.host, gateway.port), (gateway.host, gateway.control_port)}
    prefill = listening(pids["prefill-0"])
    assert len(prefill) == 2  # orders, and KV
    assert {host for host, _ in prefill} == CLOSED_BY_DEFAULT
    assert listening(pids["decode-0"]) == set()


async def test_no_port_between_processes_takes_a_plain_connection_or_an_unknown_one(secured):
    ports = [secured.config.gateway.control_port, *(port for _, port in listening(secured.pids()["prefill-0"]))]
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    for port in ports:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x00\x00\x00\x01\xc0" * 10)
        writer.write_eof()
        async with asyncio.timeout(10):
            said = await reader.read()
        assert b"failure" not in said  # not a word of our protocol
        assert b"refusal" not in said
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=nobody)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(10):
                await reader.readexactly(1)
        writer.transport.abort()
    assert set(await secured.incarnations()) == {"prefill-0", "decode-0"}


async def test_a_worker_without_a_certificate_of_its_own_does_not_start(secured, tmp_path):
    import yaml

    from tests.serve.commands import isthmus

    raw = {**secured.raw, "pools": [*secured.raw["pools"], {**secured.raw["pools"][1], "name": "late"}]}
    path = tmp_path / "late.yaml"
    path.write_text(yaml.safe_dump(raw))
    ended = await isthmus("serve", "decode", "--name", "late-0", "--config", str(path))
    assert ended.code == 2, ended.err
    assert "tls.certificate" in ended.err
