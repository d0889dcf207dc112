"""A cache of transformers (`DynamicCache`), read out of its memory by a description, is what its layers computed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.cache_utils import DynamicCache

from isthmus.engines.embedded.prepare import SMOLLM2_NAME, prepare_smollm2
from isthmus.engines.launch.describe import describe
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, Layout
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.ground_truth.reading import worst_rows
from tests.ground_truth.regions import Values, read_regions

pytestmark = pytest.mark.model

CACHE = Path(__file__).parents[2] / ".cache" / "isthmus"
PROMPTS = [[(index * 7919 + start) % 49_000 + 20 for index in range(length)] for start, length in ((13, 61), (114, 90))]
WINDOW, SMALL_TOKENS = 16, 40
THETA = 100_000
ALL = list(range(30))
DTYPES = ["float32", "bfloat16", "float16"]


def described(dtype: str, model: str = SMOLLM2_NAME) -> KVRepresentation:
    return describe(f"transformers {model} --dtype {dtype} @cpu").representation


class Run:
    """Tokens gone through a model in steps: the cache, and what the projections gave."""

    def __init__(self, network: Any, *steps: list[int]) -> None:
        self._size = network.config.head_dim
        self._projected: dict[tuple[str, int], list[torch.Tensor]] = {}
        hooks = []
        for index, layer in enumerate(network.model.layers):
            for name, projection in (("key", layer.self_attn.k_proj), ("value", layer.self_attn.v_proj)):
                parts = self._projected[name, index] = []
                hooks.append(projection.register_forward_hook(lambda m, given, found, parts=parts: parts.append(found)))
        self.cache = DynamicCache(config=network.config)
        with torch.inference_mode():
            for tokens in steps:
                network(torch.tensor([tokens]), past_key_values=self.cache, use_cache=True)
        for hook in hooks:
            hook.remove()

    def regions(self, layers: list[int]) -> dict[str, np.ndarray]:
        """The allocations of some layers, one after another, as they lie."""
        chosen = [self.cache.layers[layer] for layer in layers]
        return {
            "key": np.concatenate([_allocation(layer.keys) for layer in chosen]),
            "value": np.concatenate([_allocation(layer.values) for layer in chosen]),
        }

    def projected(self, name: str, layers: list[int]) -> np.ndarray:
        """f32 [L, T, H, D]."""
        found = [torch.cat(self._projected[name, layer], dim=1)[0].float().numpy() for layer in layers]
        return np.stack([each.reshape(len(each), -1, self._size) for each in found])


def _allocation(tensor: torch.Tensor) -> np.ndarray:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().copy()


def turned(keys: np.ndarray, theta: float) -> np.ndarray:
    """RoPE: element i of a head turns with element i + D/2. f32 [L, T, H, D]."""
    half = keys.shape[-1] // 2
    angles = np.arange(keys.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = keys[..., :half], keys[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def smollm2() -> dict[str, list[Run]]:
    """By dtype, a run of each prompt; the second one's last token is a step of decoding."""
    path = prepare_smollm2(CACHE)
    found = {}
    for dtype in DTYPES:
        network = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        first, second = PROMPTS
        found[dtype] = [Run(network, first), Run(network, second[:-1], second[-1:])]
    return found


TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.5e-2}
"""Of keys, which the tests turn in f32, relative to a row's norm: three times what was measured. Values are equal."""


def _read(run: Run, representation: KVRepresentation, tokens: int) -> Values:
    return read_regions(representation, run.regions(ALL), list(range(tokens)), tokens)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_description_reads_a_dynamic_cache(dtype, which, smollm2):
    run = smollm2[dtype][which]
    found = _read(run, described(dtype), len(PROMPTS[which]))
    np.testing.assert_array_equal(found["value"], run.projected("value", ALL))
    off = worst_rows(found["key"], turned(run.projected("key", ALL), THETA))
    print(f"{dtype}: worst row of keys {off.max():.2g}")
    assert off.max() <= TOLERANCE[dtype]


def test_another_layout_does_not(smollm2):
    run = smollm2["float32"][0]
    (group,) = described("float32").groups
    wrong = KVRepresentation(groups=(msgspec.structs.replace(group, layout=Layout.LBNHC),), partition=Partition())
    found = _read(run, wrong, len(PROMPTS[0]))
    assert worst_rows(found["value"], run.projected("value", ALL)).min() > 0.8
    assert worst_rows(found["key"], turned(run.projected("key", ALL), THETA)).min() > 0.8


def test_the_other_half_precision_does_not(smollm2):
    run = smollm2["float16"][0]
    found = _read(run, described("bfloat16"), len(PROMPTS[0]))
    assert worst_rows(found["value"], run.projected("value", ALL)).min() > 0.8


def test_keys_before_rope_do_not(smollm2):
    run = smollm2["float32"][0]
    found = _read(run, described("float32"), len(PROMPTS[0]))
    assert worst_rows(found["key"], run.projected("key", ALL)).min() > 0.4


def test_keys_in_neighbouring_pairs_do_not(smollm2):
    run = smollm2["float32"][0]
    (group,) = described("float32").groups
    key, value = group.components
    parts = (msgspec.structs.replace(key, element_order="rope_pairs"), value)
    wrong = KVRepresentation(groups=(msgspec.structs.replace(group, components=parts),), partition=Partition())
    found = _read(run, wrong, len(PROMPTS[0]))
    assert worst_rows(found["key"], turned(run.projected("key", ALL), THETA)).min() > 0.8


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> dict[str, tuple[Any, KVRepresentation]]:
    """Made-up models with a window of 16 tokens, and the descriptions of their folders."""
    shape = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
        "sliding_window": WINDOW,
    }
    torch.manual_seed(5)
    networks = {
        "mistral": MistralForCausalLM(MistralConfig(**shape, num_hidden_layers=2)).eval(),
        "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(**shape, num_hidden_layers=6)).eval(),
    }
    found = {}
    for name, network in networks.items():
        folder = tmp_path_factory.mktemp("models") / name
        network.save_pretrained(folder)
        found[name] = network, described("float32", str(folder))
    return found


def _group(representation: KVRepresentation, kind: GroupKind) -> tuple[list[int], KVRepresentation]:
    """The layers of a kind, and the representation with their group alone."""
    (group,) = (group for group in representation.groups if group.kind is kind)
    return list(group.layers), KVRepresentation(groups=(group,), partition=representation.partition)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
@pytest.mark.parametrize("decoded", [0, 1, 3])
def test_a_window_keeps_one_token_less_than_its_size(name, decoded, windowed):
    """Those that the next token looks at beside itself. After a prompt, the allocation still has all tokens."""
    network, representation = windowed[name]
    layers, alone = _group(representation, GroupKind.SLIDING_WINDOW)
    assert alone.groups[0].sliding_window == WINDOW
    total, kept = SMALL_TOKENS + decoded, WINDOW - 1
    tokens = [(7 * index + 3) % 120 for index in range(total)]
    run = Run(network, tokens[:SMALL_TOKENS], *([token] for token in tokens[SMALL_TOKENS:]))
    assert {run.cache.layers[layer].keys.shape[-2] for layer in layers} == {kept}
    extent = WINDOW if decoded else total  # a step of decoding adds its token to what was kept
    found = read_regions(alone, run.regions(layers), list(range(extent - kept, extent)), extent)
    values = run.projected("value", layers)
    np.testing.assert_array_equal(found["value"], values[:, -kept:])
    assert worst_rows(found["value"], values[:, -kept - 1 : -1]).min() > 0.8
    if name == "mistral":  # Gemma normalises keys, too
        wanted = turned(run.projected("key", layers), network.config.rope_parameters["rope_theta"])
        assert worst_rows(found["key"], wanted[:, -kept:]).max() <= TOLERANCE["float32"]


def test_a_layer_without_a_window_keeps_all(windowed):
    network, representation = windowed["gemma3"]
    layers, alone = _group(representation, GroupKind.FULL_ATTENTION)
    assert layers == [5]
    run = Run(network, [(7 * index + 3) % 120 for index in range(SMALL_TOKENS)])
    found = read_regions(alone, run.regions(layers), list(range(SMALL_TOKENS)), SMALL_TOKENS)
    np.testing.assert_array_equal(found["value"], run.projected("value", layers))
