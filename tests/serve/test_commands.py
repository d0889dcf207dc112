"""The command line: exit codes, and errors that name the field and what would be right."""

import json
import time

import pytest
import yaml

from tests.serve.commands import isthmus
from tests.serve.shapes import PAIR, deployment_of

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture
def file(tmp_path, smollm2):
    """Writes a deployment's file with some changes, and gives its path."""

    def write(pools=PAIR, **changes) -> str:
        raw = deployment_of(pools, smollm2) | changes
        path = tmp_path / "deployment.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return str(path)

    return write


async def test_help_is_quick_and_says_what_there_is():
    start = time.perf_counter()
    ended = await isthmus("--help")
    assert ended.code == 0
    assert all(command in ended.out for command in ("demo", "serve", "top", "model"))
    assert time.perf_counter() - start < 5  # no torch; a second or less on an idle machine
    assert (await isthmus("serve", "prefill", "--help")).code == 0


@pytest.mark.parametrize(
    "arguments", [["brew"], ["top", "--jsn"], ["serve", "gateway"], ["serve", "decode", "--config", "x"]]
)
async def test_a_wrong_command_line_exits_with_2(arguments):
    ended = await isthmus(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err + ended.out


async def test_print_config_shows_the_effective_file_and_starts_nothing(file):
    path = file(lease_ms=1234)
    for arguments in (["gateway"], ["prefill", "--name", "prefill-0"], ["decode", "--name", "decode-0"], ["all"]):
        ended = await isthmus(
            "serve", *arguments, "--config", path, "--print-config", environment={"ISTHMUS_GATEWAY__ATTEMPTS_MAX": "7"}
        )
        assert ended.code == 0, ended.err
        shown = yaml.safe_load(ended.out)
        assert (shown["lease_ms"], shown["gateway"]["attempts_max"]) == (1234, 7)
        assert shown["deadlines"]["confirm_ms"] == 5000  # a default
        assert [pool["name"] for pool in shown["pools"]] == ["prefill", "decode"]


CONFIGS = {
    "an unknown key": ({"leese_ms": 1}, "leese_ms", "lease_ms"),
    "an unknown key of the gateway": ({"gateway": {"prot": 1}}, "gateway.prot", "control_port"),
    "an unknown key of a pool": ({"pools": [*PAIR, {**PAIR[0], "blok_size": 4}]}, "pools.2.blok_size", "block_size"),
    "a wrong value": ({"lease_ms": "soon"}, "lease_ms", "integer"),
    "a port out of range": ({"gateway": {"port": 70000}}, "gateway.port", "65535"),
    "no decode pool": ({"pools": [PAIR[0]]}, "pools", "decode"),
    "a wrong layout": ({"pools": [PAIR[0], {**PAIR[1], "kv_layout": "NDH"}]}, "pools.1.kv_layout", "LBNHC"),
    "no such model": ({"model": "/nowhere/at/all"}, "model", "config.json"),
}


@pytest.mark.parametrize("case", CONFIGS)
async def test_a_wrong_file_exits_with_2_and_names_the_field(file, case):
    changes, field, right = CONFIGS[case]
    ended = await isthmus("serve", "gateway", "--config", file(**changes))
    assert ended.code == 2, ended.err
    assert f"{field}:" in ended.err
    assert right in ended.err
    assert "Traceback" not in ended.err


async def test_a_file_that_is_not_there_or_is_not_yaml_exits_with_2(tmp_path):
    missing = await isthmus("serve", "gateway", "--config", str(tmp_path / "none.yaml"))
    assert (missing.code, "No such file" in missing.err) == (2, True)
    for text in ("a: [", "- 1", "\x00", ""):
        broken = tmp_path / "broken.yaml"
        broken.write_text(text)
        ended = await isthmus("serve", "gateway", "--config", str(broken))
        assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err


async def test_a_wrong_environment_variable_exits_with_2_and_is_named(file):
    ended = await isthmus("serve", "gateway", "--config", file(), environment={"ISTHMUS_GATEWAY__PROT": "9"})
    assert (ended.code, "gateway.prot" in ended.err) == (2, True)


async def test_an_unknown_worker_exits_with_2_and_names_those_there_are(file):
    ended = await isthmus("serve", "decode", "--name", "decode-7", "--config", file())
    assert ended.code == 2
    assert "name:" in ended.err
    assert "decode-0" in ended.err


async def test_a_worker_whose_pool_cannot_be_built_exits_with_2_and_names_the_field(file):
    pools = (PAIR[0], {**PAIR[1], "tp_size": 2})  # SmolLM2 has three KV heads
    ended = await isthmus("serve", "decode", "--name", "decode-0", "--config", file(pools=pools))
    assert ended.code == 2, ended.err
    assert "tp_size" in ended.err
    assert "Traceback" not in ended.err


async def test_top_without_a_gateway_exits_with_3():
    ended = await isthmus("top", "--json", "--url", "http://127.0.0.1:1")
    assert (ended.code, ended.out) == (3, "")
    assert "url:" in ended.err


async def test_top_shows_every_worker(pair):
    ended = await isthmus("top", "--json", "--url", pair.url)
    assert (ended.code, ended.err) == (0, "")
    shown = json.loads(ended.out)
    assert set(shown["workers"]) == {"prefill-0", "decode-0"}
    assert shown["workers"]["prefill-0"]["blocks"]["total"] == 256
    for_people = await isthmus("top", "--url", pair.url)
    assert for_people.code == 0
    assert all(name in for_people.out for name in ("prefill-0", "decode-0", "quarantined"))


async def test_a_port_in_use_is_named_and_the_first_gateway_lives_on(pair):
    ended = await isthmus("serve", "gateway", "--config", str(pair.path))
    assert ended.code == 2, ended.err
    assert f"gateway.port: 127.0.0.1:{pair.config.gateway.port} is in use" in ended.err
    assert "Traceback" not in ended.err
    assert (await pair.client.get("/ready")).status_code == 200


async def test_a_name_that_is_taken_is_refused_and_its_holder_lives_on(pair):
    before = await pair.incarnations()
    ended = await isthmus("serve", "decode", "--name", "decode-0", "--config", str(pair.path))
    assert ended.code == 2, ended.err
    assert "worker:" in ended.err
    assert "decode-0" in ended.err
    assert await pair.incarnations() == before
