"""`isthmus certs`: keys that only their owner can read, never overwritten unasked, and files a process can use."""

import json
import stat

import pytest

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.core.ids import TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.serve.certificates import create_authority, issue, read_folder
from isthmus.transport.tls import Tls
from tests.serve.commands import isthmus

CLOCK = SystemClock()
WORKER = WorkerId("prefill-0")


async def test_the_commands_make_what_a_worker_can_use(tmp_path):
    folder = tmp_path / "certs"
    made = await isthmus("certs", "init", str(folder), "--deployment", "prod", "--json")
    assert (made.code, made.err) == (0, "")
    issued = await isthmus(
        "certs", "issue", str(folder), "--worker", "gateway", "--worker", "prefill-0", "--tenant", "a/b", "--json"
    )
    assert issued.code == 0, issued.err
    assert [one["name"] for one in json.loads(issued.out)["certificates"]] == ["gateway", "prefill-0"]
    shown = await isthmus("certs", "show", str(folder), "--json")
    assert shown.code == 0
    assert {one["name"] for one in json.loads(shown.out)["certificates"]} == {"ca", "gateway", "prefill-0"}
    tls = Tls(ca=folder / "ca.pem", certificate=folder / "prefill-0.pem", key=folder / "prefill-0.key")
    assert (tls.own.deployment, tls.own.worker, tls.own.tenants) == ("prod", "prefill-0", {"a/b"})
    again = await isthmus("certs", "init", str(folder))
    assert again.code == 2
    assert "--force" in again.err


def test_keys_are_their_owners_alone_and_nothing_is_left_beside_them(tmp_path):
    folder = tmp_path / "certs"
    create_authority(folder, "test", CLOCK, days=1)
    issue(folder, WORKER, CLOCK, days=1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes) == {"ca.pem", "ca.key", "prefill-0.pem", "prefill-0.key"}
    assert modes["ca.key"] == modes["prefill-0.key"] == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_overwritten_unasked(tmp_path):
    create_authority(tmp_path, "test", CLOCK, days=1)
    issue(tmp_path, WORKER, CLOCK, days=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for repeat in (
        lambda: create_authority(tmp_path, "test", CLOCK, days=1),
        lambda: issue(tmp_path, WORKER, CLOCK, days=1),
    ):
        with pytest.raises(ConfigInvalid, match="exists; --force"):
            repeat()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    issue(tmp_path, WORKER, CLOCK, days=1, force=True)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"prefill-0.pem", "prefill-0.key"}


def test_a_certificate_that_has_run_out_is_said_to_and_not_used(tmp_path):
    past = ManualClock()
    past.advance(Duration.of_seconds(1_000_000_000))  # September 2001
    create_authority(tmp_path, "test", CLOCK, days=1)
    issue(tmp_path, WORKER, past, days=1)
    assert {one.name: one.valid_now for one in read_folder(tmp_path, CLOCK)} == {"ca": True, "prefill-0": False}
    with pytest.raises(ConfigInvalid, match="expired"):
        Tls(ca=tmp_path / "ca.pem", certificate=tmp_path / "prefill-0.pem", key=tmp_path / "prefill-0.key")


@pytest.mark.parametrize("name", ["", "a/b", "../evil", "A", "a b", "x" * 64, "ca", "-x", "a\n"])
def test_a_name_that_could_be_a_path_or_another_thing_is_refused(tmp_path, name):
    create_authority(tmp_path, "test", CLOCK, days=1)
    with pytest.raises(BadInput, match="worker"):
        issue(tmp_path, WorkerId(name), CLOCK, days=1)


def test_other_wrong_input_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match="certs init"):
        issue(tmp_path, WORKER, CLOCK, days=1)
    with pytest.raises(ConfigInvalid, match="certs init"):
        read_folder(tmp_path, CLOCK)
    with pytest.raises(BadInput, match="days"):
        create_authority(tmp_path, "test", CLOCK, days=0)
    create_authority(tmp_path, "test", CLOCK, days=1)
    with pytest.raises(BadInput, match="tenant"):
        issue(tmp_path, WORKER, CLOCK, tenants=[TenantId("")], days=1)
    (tmp_path / "junk.pem").write_text("no certificate")
    with pytest.raises(ConfigInvalid, match=r"junk\.pem"):
        read_folder(tmp_path, CLOCK)
