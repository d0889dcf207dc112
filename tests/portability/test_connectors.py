"""What would happen without Isthmus: measured pairs, reported cases, and those derived from connectors' sources."""

import time
from collections.abc import Mapping

import pytest

from isthmus.catalogue.connectors import connectors
from isthmus.portability.connectors import ConnectorOutcome, without_isthmus

Facts = dict[str, str | int]

NIXL = "vLLM NixlConnector"
MOONCAKE = "vLLM MooncakeConnector"
SGLANG = "SGLang Mooncake"
SGLANG_NIXL = "SGLang NIXL"
TRT_CPP = "TensorRT-LLM C++ cache transceiver"
TRT_PYTHON = "TensorRT-LLM Python cache transceiver"
LLM_D = "llm-d routing sidecar over NIXL"
KVBM = "Dynamo KVBM"
ASCEND = "vLLM Ascend MooncakeConnector"

LLAMA: Facts = {
    "engine": "vllm",
    "engine_version": "0.33.0",
    "accelerator": "h100",
    "vendor": "nvidia",
    "arch": "sm90",
    "model": "meta-llama/Llama-3.1-8B",
    "base_model": "meta-llama/Llama-3.1-8B",
    "revision": "main",
    "weights_dtype": "bf16",
    "weights_digest": "aa",
    "attn_backend": "FLASH_ATTN",
    "kv_cache_dtype": "auto",
    "dtype": "bf16",
    "layout": "LBHNC",
    "kv_order": "packed_c",
    "interior": "row",
    "block_size": 32,
    "storage_dtype": "bf16",
    "element_bytes": 2,
    "row_bytes": 512,
    "block_bytes": 131072,
    "num_regions": 32,
    "num_layers": 32,
    "num_kv_heads": 8,
    "head_size": 128,
    "tp_size": 1,
    "pp_size": 1,
    "dcp_size": 1,
    "rope": "500000.0 x",
    "scale_values": "none",
    "quant": "none",
    "scale_location": "none",
    "sliding_window": 0,
    "kinds": "full_attention",
    "has_state": "false",
    "fields": "key,value",
}
CPU: Facts = LLAMA | {
    "engine_version": "0.32.0",
    "vendor": "cpu",
    "arch": "avx512",
    "attn_backend": "CPU_ATTN",
    "interior": "isa_packed:vec",
}
FP8: Facts = {
    "kv_cache_dtype": "fp8",
    "storage_dtype": "f8_e4m3fn",
    "element_bytes": 1,
    "row_bytes": 256,
    "quant": "tensor",
    "scale_values": "ones",
    "scale_location": "layer_attr",
}
E4M3: Facts = {"kv_cache_dtype": "fp8_e4m3", "storage_dtype": "f8_e4m3fn", "element_bytes": 1}
MLA: Facts = {"kinds": "mla", "num_kv_heads": 1, "head_size": 512, "row_bytes": 1152}
SGL: Facts = {"engine": "sglang", "engine_version": "0.5.23", "layout": "LBNHC", "kv_order": "two_tensors"}


def side(*parts: Mapping[str, str | int], **changes: str | int) -> Facts:
    """Facts of one side. The bytes of its blocks follow from the others, unless they are given."""
    facts = dict(LLAMA)
    for part in parts:
        facts |= part
    facts |= changes
    if "block_bytes" not in changes:
        heads = 1 if facts["kinds"] == "mla" else max(1, int(facts["num_kv_heads"]) // int(facts["tp_size"]))
        facts["block_bytes"] = int(facts["row_bytes"]) * int(facts["block_size"]) * heads
    return facts


def outcome(connector: str, producer: Facts, consumer: Facts, *differing: str) -> ConnectorOutcome:
    [found] = [each for each in without_isthmus(producer, consumer, differing) if each.connector == connector]
    assert found.why
    assert found.source
    return found


def test_equal_sides_work_with_each_connector_of_their_engine() -> None:
    for engine in ("vllm", "sglang", "tensorrt_llm", "vllm_ascend"):
        facts = side(engine=engine)
        found = {each.outcome for each in without_isthmus(facts, facts, ())}
        assert found == {"works", "not applicable"}, engine


def test_a_connector_of_other_engines_is_not_applicable() -> None:
    found = outcome(NIXL, side(), side(SGL))
    assert found.outcome == "not applicable"
    assert "sglang" in found.why


def test_every_connector_is_listed_once() -> None:
    titles = [each.connector for each in without_isthmus(side(), side(), ())]
    assert len(set(titles)) == len(titles) == 10


def test_no_step_repeats_a_source_that_is_not_there() -> None:
    for connector in connectors().values():
        assert all(step.source and step.why for step in connector.steps)


# Measured with vLLM's own NIXL connector on two processes.


def test_measured_block_128_to_32_crashes() -> None:
    found = outcome(NIXL, side(CPU, block_size=128), side(CPU, block_size=32), "block_size")
    assert found.outcome == "crashes"
    assert "AssertionError" in found.why


def test_measured_block_32_to_128_corrupts_silently() -> None:
    found = outcome(NIXL, side(CPU, block_size=32), side(CPU, block_size=128), "block_size")
    assert found.outcome == "corrupts silently"
    assert "measured" in found.source


def test_measured_bf16_to_fp8_refuses() -> None:
    found = outcome(NIXL, side(CPU), side(CPU, FP8), "storage_dtype", "quant.granularity")
    assert found.outcome == "refuses"
    assert "hash mismatch" in found.why


def test_measured_tp_1_to_2_converts_by_descriptor() -> None:
    found = outcome(NIXL, side(CPU), side(CPU, tp_size=2), "tp_size")
    assert found.outcome == "converts"
    assert "descriptor" in found.why


def test_plain_blocks_32_to_128_convert() -> None:
    assert outcome(NIXL, side(), side(block_size=128), "block_size").outcome == "converts"


# Derived from sources; nobody reported them.


@pytest.mark.parametrize(
    ("producer", "consumer"),
    [
        ({"storage_dtype": "bf16"}, {"storage_dtype": "f16", "dtype": "f16"}),
        (FP8, {**FP8, "storage_dtype": "f8_e5m2", "kv_cache_dtype": "fp8_e5m2"}),
        (FP8, {**FP8, "storage_dtype": "i8", "kv_cache_dtype": "int8_per_token_head"}),
    ],
)
def test_derived_1_vllm_mooncake_passes_types_of_equal_width(producer: Facts, consumer: Facts) -> None:
    assert outcome(MOONCAKE, side(producer), side(consumer), "storage_dtype").outcome == "corrupts silently"


def test_derived_1_vllm_mooncake_passes_layouts_of_equal_bytes() -> None:
    found = outcome(MOONCAKE, side(layout="LBHNC"), side(layout="LBNHC"), "layout")
    assert found.outcome == "corrupts silently"


@pytest.mark.parametrize("other", ["gfx950", "sm90"])
def test_derived_2_vllm_nixl_passes_fnuz_and_fn_under_one_word(other: str) -> None:
    rocm = side(FP8, arch="gfx942", vendor="amd", storage_dtype="f8_e4m3fnuz", attn_backend="TRITON_ATTN")
    found = outcome(NIXL, rocm, side(FP8, arch=other, attn_backend="TRITON_ATTN"), "storage_dtype")
    assert found.outcome == "corrupts silently"
    assert "bias" in found.why


def test_derived_3_vllm_nixl_passes_shuffled_pages() -> None:
    aiter = {"attn_backend": "ROCM_AITER_FA", "arch": "gfx942", "vendor": "amd"}
    found = outcome(NIXL, side(aiter), side(aiter, interior="shuffled:8"), "interior")
    assert found.outcome == "corrupts silently"


def test_derived_4_vllm_nixl_passes_other_scales() -> None:
    found = outcome(NIXL, side(FP8), side(FP8, scale_values="beef"), "quant.scale_values")
    assert found.outcome == "corrupts silently"
    assert "scales" in found.why


@pytest.mark.parametrize("connector", [SGLANG, SGLANG_NIXL])
def test_derived_5_sglang_passes_e5m2_that_hip_stores_otherwise(connector: str) -> None:
    hip = side(SGL, FP8, kv_cache_dtype="fp8_e5m2", storage_dtype="f8_e4m3fnuz")
    cuda = side(SGL, FP8, kv_cache_dtype="fp8_e5m2", storage_dtype="f8_e5m2")
    assert outcome(connector, hip, cuda, "storage_dtype").outcome == "corrupts silently"


@pytest.mark.parametrize("connector", [SGLANG, SGLANG_NIXL])
def test_derived_5_and_10_sglang_passes_vectorized_pages(connector: str) -> None:
    found = outcome(connector, side(SGL), side(SGL, interior="shuffled:8"), "interior")
    assert found.outcome == "corrupts silently"
    assert "skipped" in found.why


def test_derived_6_tensorrt_llm_python_passes_types_of_equal_width() -> None:
    bf16, f16 = side(engine="tensorrt_llm"), side(engine="tensorrt_llm", storage_dtype="f16")
    assert outcome(TRT_PYTHON, bf16, f16, "storage_dtype").outcome == "corrupts silently"
    assert outcome(TRT_CPP, bf16, f16, "storage_dtype").outcome == "refuses"


def test_derived_7_kvbm_passes_unknown_layouts() -> None:
    vec, packed = side(interior="isa_packed:vec"), side(interior="isa_packed:vec16")
    found = outcome(KVBM, vec, packed, "interior")
    assert found.outcome == "corrupts silently"
    assert "Unknown" in found.why


def test_derived_8_an_alias_of_one_word_is_not_seen() -> None:
    custom, octave = side(quant="none"), side(quant="token_head")
    assert outcome(NIXL, custom, octave, "quant.granularity").outcome == "corrupts silently"


@pytest.mark.parametrize(("ours", "theirs"), [(576, 656), (656, 576), (584, 512)])
def test_derived_9_sglang_mooncake_writes_rows_at_a_wrong_stride(ours: int, theirs: int) -> None:
    producer, consumer = side(SGL, MLA, E4M3, row_bytes=ours), side(SGL, MLA, E4M3, row_bytes=theirs)
    found = outcome(SGLANG, producer, consumer, "row", "quant.granularity")
    assert found.outcome == "corrupts silently"
    assert "other requests' pages" in found.why


@pytest.mark.parametrize(("ours", "theirs", "wanted"), [(576, 656, "corrupts silently"), (656, 576, "refuses")])
def test_derived_9_sglang_nixl_takes_shorter_rows_only(ours: int, theirs: int, wanted: str) -> None:
    producer, consumer = side(SGL, MLA, E4M3, row_bytes=ours), side(SGL, MLA, E4M3, row_bytes=theirs)
    assert outcome(SGLANG_NIXL, producer, consumer, "row").outcome == wanted


@pytest.mark.parametrize("connector", [SGLANG, SGLANG_NIXL])
def test_sglang_compares_the_layouts_of_deepseek_v4(connector: str) -> None:
    pool = E4M3 | {"attn_backend": "dsv4"}
    found = outcome(connector, side(SGL, MLA, pool, row_bytes=584), side(SGL, MLA, pool, row_bytes=512), "row")
    assert found.outcome == "refuses"
    old = side(SGL, MLA, pool, row_bytes=512, engine_version="0.5.9")
    found = outcome(connector, side(SGL, MLA, pool, row_bytes=584), old, "row")
    assert found.outcome == "corrupts silently"


# Reported.


def test_reported_fp16_read_as_bf16() -> None:
    """sglang: `auto` is compared as a word. vLLM's NIXL hash has the dtype."""
    bf16, f16 = {"storage_dtype": "bf16"}, {"storage_dtype": "f16", "dtype": "f16"}
    assert outcome(SGLANG, side(SGL, bf16), side(SGL, f16), "storage_dtype").outcome == "corrupts silently"
    assert outcome(NIXL, side(bf16), side(f16), "storage_dtype").outcome == "refuses"


def test_reported_mamba_with_other_ranks() -> None:
    hybrid = {"kinds": "full_attention,mamba", "has_state": "true"}
    found = outcome(NIXL, side(hybrid), side(hybrid, tp_size=2), "tp_size")
    assert (found.outcome, found.source) == ("corrupts silently", "vllm #55208")
    gdn = {"kinds": "full_attention,gdn", "has_state": "true"}
    assert outcome(NIXL, side(gdn), side(gdn, tp_size=2), "tp_size").outcome == "converts"


def test_reported_block_lengths_fail_after_the_hash() -> None:
    found = outcome(NIXL, side(), side(block_bytes=65536), "page_size_padded")
    assert found.outcome == "crashes"
    assert "#42895" in found.source


def test_reported_mooncake_block_ratio() -> None:
    mla = side(MLA, block_size=64)
    found = outcome(MOONCAKE, mla, side(MLA, block_size=128), "block_size")
    assert found.outcome == "corrupts silently"
    assert "#46334" in found.source


@pytest.mark.parametrize(("version", "wanted"), [("0.5.10", "corrupts silently"), ("0.5.23", "converts")])
def test_reported_sglang_ranks_that_share_a_head(version: str, wanted: str) -> None:
    gqa: Facts = {"num_kv_heads": 2, "engine_version": version}
    producer, consumer = side(SGL, gqa), side(SGL, gqa, tp_size=4)
    assert outcome(SGLANG, producer, consumer, "tp_size").outcome == wanted


def test_reported_tensorrt_llm_nhd_read_as_hnd() -> None:
    nhd, hnd = side(engine="tensorrt_llm", layout="LBNHC"), side(engine="tensorrt_llm", layout="LBHNC")
    for connector in (TRT_CPP, TRT_PYTHON):
        found = outcome(connector, nhd, hnd, "layout")
        assert (found.outcome, found.source) == ("corrupts silently", "TensorRT-LLM #6507")


def test_reported_ascend_with_other_ranks() -> None:
    ascend = {"engine": "vllm_ascend", "layout": "LBNHC", "kv_order": "two_tensors"}
    found = outcome(ASCEND, side(ascend), side(ascend, tp_size=2), "tp_size")
    assert found.outcome == "corrupts silently"


def test_reported_lmcache_layouts_on_rocm() -> None:
    found = outcome("LMCache", side(), side(interior="x_packed:8"), "interior")
    assert found.outcome == "corrupts silently"
    assert "rocm-aic" in found.source


# Checks and conversions.


def test_vllm_nixl_refuses_another_layout_and_llm_d_with_it() -> None:
    for connector in (NIXL, LLM_D):
        assert outcome(connector, side(layout="LBNHC"), side(layout="LBHNC"), "layout").outcome == "refuses"


def test_vllm_nixl_splits_heads_only_where_they_are_contiguous() -> None:
    spread: Facts = {"layout": "LHBNC"}
    assert outcome(NIXL, side(spread), side(spread, tp_size=2), "tp_size").outcome == "refuses"


@pytest.mark.parametrize("connector", [NIXL, LLM_D, MOONCAKE])
def test_vllm_connectors_ask_for_the_layout_in_which_they_split_heads(connector: str) -> None:
    """LBNHC on both sides is what vLLM takes without a connector."""
    default: Facts = {"layout": "LBNHC"}
    found = outcome(connector, side(default), side(default, tp_size=2), "tp_size")
    assert found.outcome == "converts"
    assert "asks for" in found.why


def test_vllm_nixl_lets_another_revision_pass() -> None:
    assert outcome(NIXL, side(), side(revision="x"), "lineage.revision").outcome == "corrupts silently"


def test_what_no_step_names_is_named() -> None:
    found = outcome(NIXL, side(), side(rope="10000.0 x"), "rope", "adapter")
    assert found.outcome == "corrupts silently"
    assert found.why.startswith("adapter, rope differ")


def test_weights_of_another_precision_do_no_harm() -> None:
    assert outcome(NIXL, side(), side(weights_dtype="fp8"), "weights.dtype").outcome == "works"


def test_a_conversion_does_not_hide_another_difference() -> None:
    found = outcome(NIXL, side(FP8), side(FP8, tp_size=2, scale_values="beef"), "tp_size", "quant.scale_values")
    assert found.outcome == "corrupts silently"


def test_tensorrt_llm_converts_ranks_and_stages() -> None:
    producer, consumer = side(engine="tensorrt_llm"), side(engine="tensorrt_llm", tp_size=2, pp_size=2)
    for connector in (TRT_CPP, TRT_PYTHON):
        assert outcome(connector, producer, consumer, "tp_size", "pp_size").outcome == "converts"


def test_lmcache_takes_other_blocks_and_layouts_and_misses_on_other_ranks() -> None:
    producer = side()
    found = outcome("LMCache", producer, side(block_size=16, layout="LBNHC"), "block_size", "layout")
    assert found.outcome == "converts"
    assert outcome("LMCache", producer, side(tp_size=2), "tp_size").outcome == "refuses"
    assert outcome("LMCache", producer, side(SGL), "kv_order").outcome == "crashes"


def test_all_connectors_take_less_than_300_microseconds() -> None:
    producer, consumer = side(), side(block_size=128)
    without_isthmus(producer, consumer, ("block_size",))
    best = 1.0
    for _ in range(30):
        start = time.perf_counter()
        without_isthmus(producer, consumer, ("block_size",))
        best = min(best, time.perf_counter() - start)
    assert best < 300e-6


@pytest.mark.parametrize(("connector", "wanted"), [(NIXL, "refuses"), (MOONCAKE, "corrupts silently")])
def test_a_backend_that_does_not_take_that_layout_cannot_be_split(connector: str, wanted: str) -> None:
    flex: Facts = {"layout": "LBNHC", "attn_backend": "FLEX_ATTENTION"}
    assert outcome(connector, side(flex), side(flex, tp_size=2), "tp_size").outcome == wanted
