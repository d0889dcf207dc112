"""KV that a real llama.cpp wrote, read out of its memory and its saved states by a description, is what transformers
computes. In an environment of its own: `make test-llama-cpp`.
"""

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from isthmus.core.errors import BadInput, NotCovered, Unsupported
from isthmus.engines.embedded.prepare import SMOLLM2_NAME
from isthmus.engines.launch.describe import describe
from isthmus.kernels.binding import bind
from isthmus.kernels.reference import execute
from isthmus.portability.compiler import compile_plans
from isthmus.state.encoding import ScaleLocation
from isthmus.state.identity import TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import Layout
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.ground_truth.gguf_models import WINDOW, packaged_gguf, write_f32, write_gemma3, write_qwen3
from tests.ground_truth.llama_cpp_cases import (
    BF16,
    CASES,
    CELLS,
    DEFAULTS,
    F16,
    F16_TRANSPOSED,
    F32,
    GEMMA3,
    LLAMA,
    PROMPT,
    Q8,
    Q8_PLAIN,
    QWEN3,
    REFUSED,
    TOKENS,
    Case,
)
from tests.ground_truth.llama_cpp_state import StatePart, parse_state, quantise_q8_0
from tests.ground_truth.reading import worst_rows
from tests.ground_truth.regions import Values, hadamard, read_regions
from tests.ground_truth.transformers_kv import computed_kv

pytestmark = pytest.mark.llama_cpp

ROOT = Path(__file__).resolve().parents[2]
ENGINE_PYTHON = ROOT / ".venv-llama-cpp" / "bin" / "python"
SMOLLM2 = ROOT / ".cache" / "isthmus" / "smollm2"
SECONDS_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What llama.cpp said; its memory as flat uint8 regions; the saved state."""

    facts: dict[str, Any]
    regions: dict[str, np.ndarray]
    state: list[StatePart]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[dict[str, Path]]:
    assert ENGINE_PYTHON.exists(), "run `make test-llama-cpp`"
    folder = tmp_path_factory.mktemp("gguf")
    write_f32(packaged_gguf(), folder / "smollm2-f32.gguf")
    write_qwen3(folder / "qwen3", folder / "qwen3.gguf")
    write_gemma3(folder / "gemma3", folder / "gemma3.gguf")
    made = {name: folder / f"{name}.gguf" for name in ("smollm2-f32", "qwen3", "gemma3")}
    yield {"smollm2": packaged_gguf(), **made}
    for path in made.values():
        path.unlink()


@pytest.fixture(scope="module")
def llama(models, tmp_path_factory) -> dict[str, Dump]:
    """By the case's name."""
    folder = tmp_path_factory.mktemp("llama-cpp")
    orders = {"cases": [case.order(str(models[case.model]), str(folder / case.name)) for case in CASES]}
    (folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
    command = [str(ENGINE_PYTHON), str(Path(__file__).with_name("llama_cpp_dump.py")), str(folder / "orders.json")]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, (folder / "log").read_text(errors="replace")[-4000:]
    return {case.name: _read_dump(folder / case.name) for case in CASES}


def _read_dump(folder: Path) -> Dump:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if not facts["started"]:
        return Dump(facts=facts, regions={}, state=[])
    regions = {name: np.fromfile(folder / f"{name}.bin", np.uint8) for name in ("key", "value")}
    return Dump(facts=facts, regions=regions, state=parse_state((folder / "state.bin").read_bytes()))


@pytest.fixture(scope="module")
def expected(models) -> dict[str, Values]:
    """What transformers computes in f32, by model: f32 [L, T, H, D]."""
    smollm2 = computed_kv(SMOLLM2, "float32", "auto", PROMPT)
    return {
        "smollm2": smollm2,
        "smollm2-f32": smollm2,
        "qwen3": computed_kv(models["qwen3"].with_suffix(""), "float32", "auto", QWEN3.prompt),
    }


by_name = pytest.mark.parametrize("case", LLAMA, ids=lambda case: case.name)

Described = Callable[[Case], KVRepresentation]


@pytest.fixture(scope="module")
def described(models) -> Described:
    """The representation that the case's launch line stands for."""

    def of(case: Case) -> KVRepresentation:
        path = models[case.model]
        if case.small:
            return describe(f"{case.line(str(path.with_suffix('')))} @cpu").representation
        return describe(f"{case.line(str(path))} @cpu,base={SMOLLM2_NAME}").representation

    return of


def transposed(representation: KVRepresentation, extent: int) -> KVRepresentation:
    """As without flash attention: values as [head, element, place]. No launch line says so yet."""
    (group,) = representation.groups
    key, value = group.components
    keys = msgspec.structs.replace(group, components=(key,))
    values = msgspec.structs.replace(
        group, components=(value,), block_size=extent, layout=Layout.LBHNC, interior="x_packed:1"
    )
    return KVRepresentation(groups=(keys, values), partition=representation.partition)


def _of(case: Case, described: Described, extent: int = CELLS) -> KVRepresentation:
    if case.fa != "off":
        return described(case)
    return transposed(described(dataclasses.replace(case, fa="on")), extent)


def close(case: Case, off: np.ndarray, first_layer: int = 0) -> bool:
    """Whether the worst rows, by layer, are as close as the case says."""
    return off[0] <= (case.any if first_layer else case.first) and off.max() <= case.any


@by_name
def test_the_description_reads_what_llama_cpp_wrote(case, described, llama, expected):
    found = read_regions(_of(case, described), llama[case.name].regions, case.cells, CELLS)
    for name in ("key", "value"):
        off = worst_rows(found[name], expected[case.model][name])
        print(f"{case.name} {name}: worst row of the first layer {off[0]:.2g}, of all {off.max():.2g}")
        assert close(case, off), (name, off)


@by_name
def test_a_saved_state_is_a_pool_of_the_cells_that_it_holds(case, described, llama):
    (part,) = llama[case.name].state
    assert part.positions == [*range(40, TOKENS), *range(40)]  # by cell, where the prompt's first tokens are last
    assert (part.types, part.transposed, part.layers) == (case.types, case.fa == "off", 30)
    places = np.argsort(part.positions).tolist()
    saved = read_regions(_of(case, described, TOKENS), part.regions, places, TOKENS)
    found = read_regions(_of(case, described), llama[case.name].regions, case.cells, CELLS)
    for name in ("key", "value"):
        np.testing.assert_array_equal(saved[name], found[name])


def _changed(representation: KVRepresentation, component: str, **fields) -> KVRepresentation:
    """With other fields of a component, and what is said of its group."""
    groups = []
    for group in representation.groups:
        parts = tuple(
            msgspec.structs.replace(part, **fields) if part.name == component else part for part in group.components
        )
        groups.append(msgspec.structs.replace(group, components=parts))
    return msgspec.structs.replace(representation, groups=tuple(groups))


@pytest.mark.parametrize("case", [F32, F16, BF16, Q8, Q8_PLAIN, DEFAULTS], ids=lambda case: case.name)
def test_keys_in_the_models_order_do_not_match(case, described, llama, expected):
    """llama.cpp turns neighbours, and has the rows of Llama's weights in that order."""
    assert llama[case.name].facts["rope"] == "interleaved"
    wrong = _changed(_of(case, described), "key", element_order="model")
    found = read_regions(wrong, llama[case.name].regions, case.cells, CELLS)
    assert worst_rows(found["key"], expected[case.model]["key"]).min() > 0.8


@pytest.mark.parametrize("case", [Q8, Q8_PLAIN], ids=lambda case: case.name)
def test_the_other_rotation_does_not_match(case, described, llama, expected):
    representation = described(case)
    for name in ("key", "value"):
        encoding = representation.groups[0].component(name).encoding
        turned = "hadamard:64" if encoding.transform == "none" else "none"
        representation = _changed(representation, name, encoding=msgspec.structs.replace(encoding, transform=turned))
    found = read_regions(representation, llama[case.name].regions, case.cells, CELLS)
    for name in ("key", "value"):
        assert worst_rows(found[name], expected[case.model][name]).min() > 0.8


@pytest.mark.parametrize("case", [F16, Q8_PLAIN], ids=lambda case: case.name)
def test_another_layout_does_not_match(case, described, llama, expected):
    (group,) = described(case).groups
    wrong = KVRepresentation(groups=(msgspec.structs.replace(group, layout=Layout.LHBNC),), partition=Partition())
    found = read_regions(wrong, llama[case.name].regions, case.cells, CELLS)
    for name in ("key", "value"):
        assert worst_rows(found[name], expected[case.model][name]).min() > 0.8


def test_values_by_rows_do_not_match_without_flash_attention(described, llama, expected):
    found = read_regions(described(F16), llama[F16_TRANSPOSED.name].regions, F16_TRANSPOSED.cells, CELLS)
    assert worst_rows(found["value"], expected["smollm2"]["value"]).min() > 0.8


def test_scales_after_the_codes_do_not_match(described, llama, expected):
    encoding = described(Q8_PLAIN).groups[0].components[1].encoding
    quant = msgspec.structs.replace(encoding.quant, scale_location=ScaleLocation.INLINE)
    wrong = _changed(described(Q8_PLAIN), "value", encoding=msgspec.structs.replace(encoding, quant=quant))
    with np.errstate(invalid="ignore"):
        found = read_regions(wrong, llama[Q8_PLAIN.name].regions, Q8_PLAIN.cells, CELLS)
    assert worst_rows(found["value"], expected["smollm2"]["value"]).min() > 0.8


@by_name
def test_tokens_in_the_order_of_cells_do_not_match(case, described, llama, expected):
    found = read_regions(_of(case, described), llama[case.name].regions, sorted(case.cells), CELLS)
    assert worst_rows(found["key"], expected[case.model]["key"]).min() > 0.8


@pytest.mark.parametrize("case", [Q8, Q8_PLAIN], ids=lambda case: case.name)
def test_a_block_is_a_scale_and_32_codes(case, described, llama):
    """The first layer's bytes are ggml's quantisation of what it computes in f32."""
    stored = read_regions(
        _changed(_of(F32, described), "key", element_order="model"), llama["f32"].regions, F32.cells, CELLS
    )
    raw = llama[case.name].regions
    for name in ("key", "value"):
        rows = stored[name][0]
        if case.rotate:
            rows = rows @ hadamard(64)
        wanted = quantise_q8_0(rows).reshape(TOKENS, 6, 34)
        found = raw[name].reshape(30, CELLS, 6, 34)[0, case.cells]
        assert (found[..., :2] == wanted[..., :2]).mean() > 0.99
        assert (found[..., 2:] == wanted[..., 2:]).mean() > 0.999


@pytest.fixture(scope="module")
def as_transformers_has_it() -> KVRepresentation:
    """A cache of transformers has as many places as tokens."""
    return describe(f"transformers {SMOLLM2_NAME} --dtype float32 @cpu").representation


@pytest.mark.parametrize("case", [F16, BF16, Q8_PLAIN], ids=lambda case: case.name)
def test_a_plan_rewrites_it_as_transformers_has_it(case, described, as_transformers_has_it, llama, expected):
    (plan,) = compile_plans(described(case), as_transformers_has_it)
    binding = bind(
        plan,
        TokenRange(start=0, stop=TOKENS),
        producer_blocks=case.cells,
        producer_num_blocks=CELLS,
        consumer_blocks=range(TOKENS),
        consumer_num_blocks=TOKENS,
    )
    regions = llama[case.name].regions
    written = [np.zeros(expected["smollm2"][name].nbytes, np.uint8) for name in ("key", "value")]
    execute(plan, binding, [[regions["key"], regions["value"]]], [written])
    for name, region in zip(("key", "value"), written, strict=True):
        found = region.view("<f4").reshape(30, 3, TOKENS, 64).swapaxes(1, 2)
        off = worst_rows(found, expected["smollm2"][name])
        assert close(case, off), (name, off)


def test_what_is_rotated_has_no_plan(described, as_transformers_has_it):
    with pytest.raises(Unsupported, match="transform"):
        compile_plans(described(Q8), as_transformers_has_it)


def test_without_flash_attention_no_line_is_described(described):
    with pytest.raises(NotCovered, match="transposed"):
        described(F16_TRANSPOSED)


def test_qwen3_keeps_the_models_order(described, llama, expected):
    """Where llama.cpp turns halves, as transformers does, weights are in the model's order."""
    assert llama[QWEN3.name].facts["rope"] == "neox"
    found = read_regions(described(QWEN3), llama[QWEN3.name].regions, QWEN3.cells, CELLS)
    for name in ("key", "value"):
        off = worst_rows(found[name], expected["qwen3"][name])
        print(f"qwen3 {name}: worst row of the first layer {off[0]:.2g}, of all {off.max():.2g}")
        assert close(QWEN3, off), (name, off)
    wrong = _changed(described(QWEN3), "key", element_order="rope_pairs")
    turned = read_regions(wrong, llama[QWEN3.name].regions, QWEN3.cells, CELLS)
    assert worst_rows(turned["key"], expected["qwen3"]["key"]).min() > 0.8


def test_gemma3_saves_its_windows_tokens_and_keeps_more(described, llama, models):
    """Two caches. A saved state has the window's tokens; the cells have all, until they are needed."""
    full, windows = llama[GEMMA3.name].state
    assert (full.positions, full.layers) == (list(range(TOKENS)), 1)
    assert (windows.positions, windows.layers) == (list(range(TOKENS - WINDOW, TOKENS)), 5)
    network = AutoModelForCausalLM.from_pretrained(models["gemma3"].with_suffix(""), dtype=torch.float32).eval()
    with torch.inference_mode():
        layers = network(torch.tensor([GEMMA3.prompt]), use_cache=True).past_key_values.layers
    assert windows.positions == list(range(TOKENS)[-described(GEMMA3).groups[1].sliding_window :])
    for part, group in zip((full, windows), described(GEMMA3).groups, strict=True):
        chosen, count = group.layers, len(part.positions)
        alone = KVRepresentation(groups=(group,), partition=Partition())
        found = read_regions(alone, part.regions, list(range(count)), count)
        for name, attribute in (("key", "keys"), ("value", "values")):
            wanted = np.stack([getattr(layers[layer], attribute)[0].transpose(0, 1).numpy() for layer in chosen])
            off = worst_rows(found[name][:, -wanted.shape[1] :], wanted)
            print(f"gemma3 {chosen} {name}: worst row of the first layer {off[0]:.2g}, of all {off.max():.2g}")
            assert close(GEMMA3, off, chosen[0]), (name, off)


def test_quantised_values_need_flash_attention(described, llama):
    assert llama[REFUSED.name].facts == {"started": False}
    with pytest.raises(BadInput, match="flash attention"):
        described(REFUSED)
