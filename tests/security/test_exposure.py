"""What a deployment's file exposes: nothing beyond loopback without TLS, unless it says so itself."""

import pytest

from isthmus.core.errors import ConfigInvalid
from isthmus.serve.config import load_config, parse_config
from isthmus.serve.tls import is_loopback

POOLS = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode", "count": 2}]
TLS = {"ca": "certs/ca.pem", "certificate": "certs/{name}.pem", "key": "certs/{name}.key"}


def config(*, gateway=None, host="127.0.0.1", **fields):
    pools = [{**POOLS[0], "host": host}, POOLS[1]]
    return parse_config({"gateway": gateway or {}, "pools": pools, **fields}, where="test")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": "10.0.0.5"}, "pools[0].host is 10.0.0.5"),
        ({"host": "0.0.0.0"}, "pools[0].host is 0.0.0.0"),
        ({"host": "::"}, "pools[0].host is ::"),
        ({"host": "prefill.cluster.local"}, "pools[0].host is prefill.cluster.local"),
        ({"gateway": {"host": "0.0.0.0"}}, "gateway.host is 0.0.0.0"),
        ({"gateway": {"control_host": "10.0.0.1"}}, "gateway.control_host is 10.0.0.1"),
    ],
)
def test_beyond_loopback_tls_is_required_and_the_message_says_how(fields, named):
    with pytest.raises(ConfigInvalid) as refused:
        config(**fields)
    message = str(refused.value)
    assert named in message
    assert "isthmus certs init" in message
    assert "--worker gateway --worker prefill-0 --worker decode-0 --worker decode-1" in message
    assert "insecure" in message


@pytest.mark.parametrize("tls", [TLS, "insecure"])
def test_with_certificates_or_the_word_insecure_it_may(tls):
    assert config(host="0.0.0.0", tls=tls).pools[0].host == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_it_is_off_by_default(host):
    assert config(host=host).tls is None


def test_clients_may_come_from_anywhere_while_workers_stay_on_loopback():
    found = config(gateway={"host": "0.0.0.0", "control_host": "127.0.0.1"})
    assert found.control_host == "127.0.0.1"


@pytest.mark.parametrize("tls", ["off", "Insecure", {}, {"ca": "x"}, {**TLS, "verify": False}, True, 0])
def test_no_other_word_turns_tls_off(tls):
    with pytest.raises(ConfigInvalid) as refused:
        config(tls=tls)
    assert refused.value.field.startswith("tls")


def test_a_name_that_only_looks_like_loopback_is_none():
    for host in ("127.0.0.1.example.org", "localhost.example.org", "", "0.0.0.0", "::ffff:10.0.0.1"):
        assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "nested deeper"),
        ("a: *x\n", "stands for nothing"),
        ("a: &x [*x]\n", "stands for nothing"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "aliases",
        ),
        ("a: " + "x" * (2 << 20), "larger"),
        ("when: 2001-99-99\n", "not YAML"),
        ("? {a: 1}\n: 2\n", "not YAML"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("\x00", "not YAML"),
    ],
    ids=["deep", "alias of nothing", "alias of itself", "billion laughs", "large", "date", "key", "python", "zero"],
)
def test_a_file_that_is_a_trap_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        load_config(path)


def test_a_file_may_use_aliases(tmp_path):
    path = tmp_path / "deployment.yaml"
    path.write_text(
        "served_model_name: &host 127.0.0.1\n"
        "pools:\n- {name: a, role: prefill, host: *host}\n- {name: b, role: decode, host: *host}\n"
    )
    assert {pool.host for pool in load_config(path).pools} == {"127.0.0.1"}
