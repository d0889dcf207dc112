"""What is wrong in a launch line is said with its field and what would be right; what is not known is called so."""

import pytest

from isthmus.core.errors import BadInput, NotCovered, Rejected, UnknownModel
from isthmus.engines.launch.describe import describe
from tests.launch.lines import SGLANG, VLLM, vllm

WRONG = {
    "an unknown flag, with the nearest": (vllm("--kv-cache-dtyp fp8"), "--kv-cache-dtyp", "--kv-cache-dtype"),
    "an unknown flag like none": (vllm("--zzzzqqqq"), "--zzzzqqqq", "no such flag"),
    "an unknown value, with the nearest": (vllm("--kv-cache-dtype fp8-e4m3"), "--kv-cache-dtype", "nearest: fp8_e4m3"),
    "a value that is no number": (vllm("--block-size sixteen"), "--block-size", "wanted a whole number"),
    "a flag without its value": (vllm().replace(" @", " --block-size @"), "--block-size", "wanted a value"),
    "a number with too many digits": (vllm("--block-size " + "9" * 5000), "--block-size", "wanted a whole number"),
    "an argument too many": (vllm("another/model"), "line", "takes no such argument"),
    "an unknown accelerator, with the nearest": (vllm(place="@mi300y"), "accelerator", "mi300x"),
    "no accelerator": ("vllm serve Qwen/Qwen3-32B", "accelerator", "@h100"),
    "an accelerator without a name": (vllm(place="@"), "accelerator", "wanted one"),
    "two accelerators": (vllm(place="@h100 @h200"), "accelerator", "got 2"),
    "nothing": ("", "accelerator", "@h100"),
    "an unknown engine": ("vlm serve Qwen/Qwen3-32B @h100", "engine", "vllm serve"),
    "an engine without its command": ("@h100", "engine", "known:"),
    "an option after @ of another engine": (vllm(place="@h100,sglang=0.5.23"), "sglang", "vllm="),
    "an option after @ without a value": (vllm(place="@h100,vllm="), "vllm", "vllm="),
    "quotes that do not end": ("vllm serve 'Qwen/Qwen3-32B @h100", "line", "check the quotes"),
    "a line that is too long": (vllm("--port 1 " * 4000), "line", "at most"),
    "a word that is too long": (vllm("--served-model-nam" + "e" * 12_000), None, "no such flag"),
    "a block that is no multiple of what the backend takes": (
        vllm("-tp 8 --block-size 96", model="deepseek-ai/DeepSeek-V3.2"),
        "block_size",
        "multiples of 64",
    ),
    "a cache type that no backend takes": (
        vllm("-tp 8 --kv-cache-dtype fp8_e5m2", model="deepseek-ai/DeepSeek-V3"),
        "kv_cache_dtype",
        "no backend",
    ),
    "a layout that the backend does not take": (
        "VLLM_KV_CACHE_LAYOUT=NHD vllm serve Qwen/Qwen3-32B @b200,vllm=0.33",
        "layout",
        "FLASHINFER",
    ),
    "a layout that there is not": ("VLLM_KV_CACHE_LAYOUT=NDH " + VLLM, "VLLM_KV_CACHE_LAYOUT", "nearest"),
    "ranks that do not divide heads": (vllm("-tp 3"), None, "3"),
    "no ranks": (vllm("-tp 0"), "tp_size", "0"),
    "ranks below none": (vllm("-tp -8"), "tp_size", "-8"),
    "dealt tokens over ranks that do not divide": (vllm("-tp 4 -dcp 3"), "dcp_size", "3"),
    "more stages than layers": (vllm("-pp 65"), "pp_size", "64"),
    "no stages": (vllm("-pp 0"), "pp_size", "0"),
    "blocks of nothing": (vllm("--block-size 0"), "block_size", "0"),
    "sglang with a page size that does not fit": (
        SGLANG.replace("python", "SGLANG_USE_AITER=1 SGLANG_AITER_KV_CACHE_LAYOUT=vectorized_5d python")
        .replace("@h100", "--page-size 4 @mi355x"),
        "page_size",
        "multiples of 8",
    ),
    "a file that is not there": ("side.json", "file", "launch line or a file"),
}  # fmt: skip

UNKNOWN = {
    "a version without rules": (vllm(place="@h100,vllm=0.1"), "engine_version", "0.33"),
    "a version that only begins alike": (vllm(place="@h100,vllm=0.333"), "engine_version", "0.33"),
    "a flag that bears on KV": (vllm("--hf-overrides '{}'"), "--hf-overrides", "bears on KV"),
    "a switch that bears on KV": (vllm("--enable-lora"), "--enable-lora", "adapter"),
    "a variable that bears on KV": ("VLLM_MLA_DISABLE=1 " + VLLM, "VLLM_MLA_DISABLE", "latent"),
    "a variable that nobody read": ("VLLM_KV_CACHE_LAYOUTS=HND " + VLLM, "VLLM_KV_CACHE_LAYOUTS", "nearest"),
    "an accelerator whose pools were not read": (vllm(place="@tpu-v5e,vllm=0.33"), "accelerator", "plugin"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "field", "said"), WRONG.values(), ids=WRONG)
def test_wrong_input_names_its_field_and_what_would_be_right(line, field, said):
    with pytest.raises(Rejected) as caught:
        describe(line)
    assert isinstance(caught.value, BadInput)
    assert said in str(caught.value)
    assert field is None or caught.value.field == field


@pytest.mark.parametrize(("line", "field", "said"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_no_rule_covers_is_unknown_and_not_wrong(line, field, said):
    with pytest.raises(NotCovered) as caught:
        describe(line)
    assert caught.value.field == field
    assert said in str(caught.value)


def test_an_unknown_model_is_named_with_the_nearest():
    with pytest.raises(UnknownModel, match=r"Qwen/Qwen3-32B") as caught:
        describe(vllm(model="Qwen/Qwen3-33B"))
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    "name", ["no/such-model-at-all-xyzzy", "/nowhere/model", "x" * 5000, "/" + "x" * 5000, "-", "."]
)
def test_a_model_that_cannot_be_found_is_refused(name):
    with pytest.raises((UnknownModel, BadInput)) as caught:
        describe(vllm(model=name))
    assert caught.value.field == "model"


def test_a_name_with_a_zero_byte_is_refused():
    for text in ("a\0.json", vllm(model="'a\0b'")):
        with pytest.raises((UnknownModel, BadInput)):
            describe(text)


@pytest.mark.parametrize(
    "line",
    [
        'vllm serve "Qwen/Qwen3-32B" --kv-cache-dtype=fp8 @h100,vllm=0.33',
        "vllm serve Qwen/Qwen3-32B --kv_cache_dtype fp8 @h100,vllm=0.33",
        "vllm serve --kv-cache-dtype fp8 @h100,vllm=0.33 Qwen/Qwen3-32B",
        "vllm serve --model Qwen/Qwen3-32B --kv-cache-dtype fp8 --port 80 --trust-remote-code @h100,vllm=0.33",
        "/opt/venv/bin/vllm serve qwen/qwen3-32b --kv-cache-dtype fp8 @H100,vllm=0.33.1",
        "python3 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-32B --kv-cache-dtype fp8 @h100-sxm,vllm=0.33",
        "CUDA_VISIBLE_DEVICES=0 HF_TOKEN=x vllm serve Qwen/Qwen3-32B --kv-cache-dtype fp8 @h100,vllm=0.33",
    ],
)  # fmt: skip
def test_ways_to_write_one_line_are_one_description(line):
    wanted = describe("vllm serve Qwen/Qwen3-32B --kv-cache-dtype fp8 @h100,vllm=0.33")
    found = describe(line)
    assert (found.identity, found.representation) == (wanted.identity, wanted.representation)


def test_the_newest_version_is_taken_where_none_is_said_and_that_is_printed():
    assumed = {each.field: each.value for each in describe("vllm serve Qwen/Qwen3-32B @h100").assumed}
    assert assumed["engine_version"] == "0.33"
    assert "engine_version" not in {each.field for each in describe(VLLM).assumed}
