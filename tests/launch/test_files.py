"""Description files and fleets: what is read back, and what is refused."""

import json

import msgspec
import pytest

from isthmus.core.errors import BadInput, Rejected
from isthmus.engines.launch.describe import describe
from isthmus.engines.launch.fleet import check_fleet
from isthmus.portability.check import check, report
from tests.launch.lines import SGLANG, VLLM, vllm

DEEP = "[" * 2_000

LINES = {
    "hybrid": "vllm serve Qwen/Qwen3-Next-80B-A3B-Instruct -tp 4 @h100,vllm=0.33",
    "latent": "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3.2 --tp 8 @h200,sglang=0.5.23",
    "stages": vllm("-pp 3 -tp 2"),
    "packed": "vllm serve Qwen/Qwen3-8B @cpu-amx,vllm=0.33",
}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_description_comes_back_from_a_file_as_it_was(tmp_path, line, suffix):
    found = describe(line)
    path = tmp_path / f"side.{suffix}"
    path.write_bytes((msgspec.json if suffix == "json" else msgspec.yaml).encode(found))
    again = describe(str(path))
    assert again == found
    assert report(check(again, found)) == report(check(found, found))


@pytest.mark.parametrize(
    "change",
    [
        {"engine": 3}, {"surprise": 1}, {"representation": {}}, {"identity": None}, {"attn_backends": "FLASH_ATTN"},
        {"representation": {"groups": [], "partition": {}}}, {"accelerator": ""}, {"model": "x" * 10_000},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_with_a_wrong_field_is_refused(tmp_path, change):
    path = tmp_path / "side.json"
    path.write_text(json.dumps(msgspec.to_builtins(describe(VLLM)) | change))
    with pytest.raises(BadInput) as caught:
        describe(str(path))
    assert caught.value.field == "file"


def test_a_description_on_a_part_that_there_is_not_is_refused_where_it_is_judged(tmp_path):
    path = tmp_path / "side.json"
    path.write_text(json.dumps(msgspec.to_builtins(describe(VLLM)) | {"accelerator": "h1000"}))
    with pytest.raises(BadInput, match="nearest known"):
        check(describe(str(path)), describe(VLLM))


@pytest.mark.parametrize("text", ["", "{", "[]", DEEP, '{"a":' * 2_000, "\0", "a: &a [*a]"], ids=lambda t: t[:8])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_what_is_no_description_is_refused(tmp_path, text, suffix):
    path = tmp_path / f"side.{suffix}"
    path.write_text(text)
    with pytest.raises(BadInput):
        describe(str(path))


def fleet(tmp_path, text: str):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return check_fleet(path)


def test_a_fleet_is_judged_pair_by_pair(tmp_path):
    lines = {"a": VLLM, "b": SGLANG, "c": vllm(model="Qwen/Qwen3-8B"), "d": vllm("--enable-lora")}
    found = fleet(tmp_path, msgspec.yaml.encode(lines).decode())
    assert [found["sides"][name]["unknown"] is None for name in lines] == [True, True, True, False]
    verdicts = {(pair["producer"], pair["consumer"]): pair["verdict"] for pair in found["pairs"]}
    assert len(verdicts) == len(found["pairs"]) == 12
    assert verdicts["a", "b"] == verdicts["b", "a"] == "redistribute"
    assert verdicts["a", "c"] == verdicts["c", "b"] == "reject"
    assert {verdict for pair, verdict in verdicts.items() if "d" in pair} == {"unknown"}
    fields = next(pair["fields"] for pair in found["pairs"] if (pair["producer"], pair["consumer"]) == ("a", "b"))
    assert {"kv_order", "block_size"} <= set(fields)


@pytest.mark.parametrize(
    "text",
    [
        "", "a: 1", f"a: {VLLM}", "[]", "a: [x]", "{", "a:\n  b: c", "\0", DEEP, "a: &a [*a]",
        f"a: {VLLM!r}\nb: ''", f"a: {VLLM!r}\nb: {'x' * 20_000}", f'a: {VLLM!r}\nb: "x\\0.json"',
    ],
    ids=lambda text: text[:10] or "empty",
)  # fmt: skip
def test_a_fleet_that_cannot_be_read_is_refused(tmp_path, text):
    with pytest.raises(Rejected):
        fleet(tmp_path, text)


def test_a_line_of_a_fleet_that_is_wrong_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"^second: --kv-cache-dtype"):
        fleet(tmp_path, f"first: {VLLM!r}\nsecond: {vllm('--kv-cache-dtype fp9')!r}\n")


def test_a_fleet_that_is_not_there_or_too_large_is_refused(tmp_path):
    with pytest.raises(BadInput, match="YAML file of names"):
        check_fleet(tmp_path / "nowhere.yaml")
    with pytest.raises(BadInput, match="YAML file of names"):
        check_fleet(tmp_path)
    with pytest.raises(BadInput, match="larger than"):
        fleet(tmp_path, "a: " + "x" * (1 << 20))
