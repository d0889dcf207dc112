"""`isthmus check` and `describe` as commands: exit codes, the JSON contract, files in place of lines."""

import json
import subprocess
import sys

import pytest

from tests.launch.lines import SGLANG, VLLM, vllm

KEYS = {
    "verdict", "lossless", "differences", "loss", "bytes_per_token", "run_at", "price", "assumed", "without_isthmus",
    "plan",
}  # fmt: skip
FP8 = vllm("--kv-cache-dtype fp8")
OTHER = vllm(model="Qwen/Qwen3-8B")
TURBO = vllm("--kv-cache-dtype turboquant_k8v4")


def isthmus(*arguments: str | bytes) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isthmus", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((VLLM, FP8), 0),
        ((VLLM, OTHER), 1),
        ((VLLM, vllm("--no-such-flag")), 2),
        ((VLLM, "no-such-file.json"), 2),
        ((VLLM,), 2),
        ((VLLM, FP8, "--tokens", "0"), 2),
        ((VLLM, FP8, "--link-gbps", "nan"), 2),
        ((VLLM, TURBO), 3),
        ((VLLM, vllm(place="@h100,vllm=0.1")), 3),
        ((VLLM, vllm("--enable-lora"), "--json"), 3),
    ],
    ids=["crosses", "rejects", "flag", "file", "one side", "tokens", "link", "unknown", "version", "unknown as JSON"],
)
def test_exit_codes(arguments, code):
    done = isthmus("check", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        assert done.stdout == ""
        assert len(done.stderr.strip()) < 600


def test_which_side_is_wrong_is_said():
    assert isthmus("check", VLLM, vllm("-pp 65")).stderr.startswith("isthmus: consumer: pp_size")
    assert isthmus("check", vllm(place="@h1000"), VLLM).stderr.startswith("isthmus: producer: accelerator")


def test_bytes_that_are_no_text_end_in_no_traceback():
    for line in (b"vllm serve Qwen/Qwen3-32B @h100,vllm=\xff", b"\xff.json"):
        done = isthmus("check", VLLM, line, "--json")
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_the_json_of_a_pair_that_crosses_has_the_contract():
    done = isthmus("check", VLLM, SGLANG.replace(" @", " --kv-cache-dtype fp8_e4m3 @"), "--json", "--tokens", "1000")
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["verdict"] == "redistribute+convert"
    assert found["lossless"] is False
    assert all(d.keys() == {"field", "producer", "consumer", "kind", "resolution"} for d in found["differences"])
    assert {d["kind"] for d in found["differences"]} <= {"gate", "layout", "partition", "numeric"}
    assert {d["resolution"] for d in found["differences"]} <= {"redistribute", "convert", "none", "reject", "unknown"}
    # 64 layers, K and V, 8 heads of 128 elements: in two bytes, and in one.
    assert found["bytes_per_token"] == {"producer": 262144.0, "wire": 131072.0, "consumer": 131072.0}
    assert found["run_at"].keys() == {"where", "why"}
    assert found["run_at"]["where"] == "producer"
    assert found["price"]["tokens"] == 1000
    assert all(each.keys() == {"field", "value", "why"} for each in found["assumed"])
    wanted = {"connector", "outcome", "why", "source"}
    assert all(each.keys() >= wanted for each in found["without_isthmus"])
    assert found["plan"].keys() >= {"fingerprint", "runs"}


def test_the_json_of_what_does_not_cross_has_the_same_keys():
    for consumer, verdict in ((OTHER, "reject"), (TURBO, "unknown")):
        found = json.loads(isthmus("check", VLLM, consumer, "--json").stdout)
        assert found.keys() >= KEYS
        assert found["verdict"] == verdict
        assert found["plan"] is None
        assert found["lossless"] is False


def test_a_description_written_to_a_file_is_checked_as_the_line_is(tmp_path):
    paths = []
    for name, line in (("producer", VLLM), ("consumer", SGLANG)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(isthmus("describe", line, "--json").stdout)
    by_file = isthmus("check", *map(str, paths), "--json")
    assert by_file.stdout == isthmus("check", VLLM, SGLANG, "--json").stdout
    assert by_file.returncode == 0


@pytest.mark.parametrize("explain", [(), ("--explain",)])
def test_a_verdict_is_printed_for_people(explain):
    done = isthmus("check", VLLM, SGLANG, *explain)
    assert done.stdout.startswith("redistribute — may cross")
    assert "kv_order" in done.stdout
    assert "without Isthmus" in done.stdout
    assert ("the first bytes of a block" in done.stdout) == bool(explain)
