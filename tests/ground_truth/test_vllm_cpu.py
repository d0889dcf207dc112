"""KV that a real vLLM wrote, read out of its memory by what Isthmus makes of its launch line, is what transformers
computes for the same tokens.
"""

import re
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch

from isthmus.engines.launch.describe import describe
from isthmus.state.representation import Layout
from tests.ground_truth.conftest import VllmDump
from tests.ground_truth.reading import read_kv, worst_rows
from tests.ground_truth.transformers_kv import computed_kv, toward_zero
from tests.ground_truth.vllm_cases import BF16, CASES, F32, FP8, PROMPTS, TOKENS, VEC16, Case

pytestmark = pytest.mark.engines

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

UNLIKE = 0.8
"""Off by so much of its norm, a row is another one."""


def _read(
    case: Case, dump: VllmDump, *, block_ids: Sequence[int] | None = None, **wrong: object
) -> dict[str, np.ndarray]:
    """By the launch line's description, with some of the group's fields made wrong."""
    representation = describe(case.line).representation
    (group,) = representation.groups
    if group.opaque:
        pytest.skip(f"{group.interior} on this machine is not described")
    if wrong:
        representation = msgspec.structs.replace(representation, groups=(msgspec.structs.replace(group, **wrong),))
    table = dump.facts["block_ids"] if block_ids is None else block_ids
    return read_kv(representation, dump.storage, table, dump.facts["num_blocks"], TOKENS)


@each_case
def test_the_description_of_a_launch_line_reads_what_vllm_wrote(case, vllm_dumps, vllm_expected):
    found = _read(case, vllm_dumps[case.name])
    for name, expected in vllm_expected[case.name].items():
        off = worst_rows(found[name], expected)
        print(f"{case.name} {name}: worst row of the first layer {off[0]:.2g}, of all {off.max():.2g}")
        assert off[0] <= case.first_off_max, name
        assert off.max() <= case.off_max, (name, off)


@each_case
def test_the_description_says_what_vllm_says(case, vllm_dumps):
    facts, description = vllm_dumps[case.name].facts, describe(case.line)
    (group,) = description.representation.groups
    layers = facts["layers"]
    assert set(description.attn_backends) == {layer["attn_backend"] for layer in layers}
    assert {layer["isa"] for layer in layers} == {re.split("[:_]", group.interior)[-1]}
    assert (group.layout.value, group.block_size) == (facts["layout"], facts["block_size"])
    assert description.kv_cache_dtype == facts["kv_cache_dtype"]
    assert group.layers == tuple(range(len(layers)))
    assert {(layer["k_scale"], layer["v_scale"]) for layer in layers} == {(1.0, 1.0)}


WRONG = {
    "rows": {"interior": "row"},
    "rows of all heads": {"interior": "row", "layout": Layout.LBNHC},
    "tiles of 4": {"interior": "x_packed:4"},
    "tiles of 16": {"interior": "nz:16"},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("case", [F32, BF16, VEC16], ids=lambda case: case.name)
def test_a_description_with_something_wrong_does_not(case, wrong, vllm_dumps, vllm_expected):
    found = _read(case, vllm_dumps[case.name], **WRONG[wrong])
    assert worst_rows(found["key"], vllm_expected[case.name]["key"]).min() > UNLIKE


@each_case
def test_the_order_of_the_blocks_matters(case, vllm_dumps, vllm_expected):
    dump = vllm_dumps[case.name]
    in_order = sorted(dump.facts["block_ids"])
    assert in_order != dump.facts["block_ids"]
    found = _read(case, dump, block_ids=in_order)
    assert worst_rows(found["key"], vllm_expected[case.name]["key"]).min() > UNLIKE


def test_vllm_cuts_off_what_does_not_fit_into_fp8(vllm_dumps):
    """Its CPU kernel does not round to nearest, and so what it is compared with is cut off likewise."""
    exact = torch.from_numpy(computed_kv(FP8.model, "float32", "auto", PROMPTS[-1])["key"][0])
    found = _read(FP8, vllm_dumps[FP8.name])["key"][0]
    cut, nearest = toward_zero(exact, torch.float8_e4m3fn), exact.to(torch.float8_e4m3fn)
    assert (cut.float().numpy() == found).mean() > 0.999
    assert (nearest.float().numpy() == found).mean() < 0.7
