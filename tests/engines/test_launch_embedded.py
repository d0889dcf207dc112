"""What `isthmus check` says of the embedded engine's line is what the engine does with the same fields."""

import itertools
import json

import pytest

from isthmus.catalogue.rules import engine_file
from isthmus.core.errors import BadInput, ConfigInvalid, Unsupported
from isthmus.engines.embedded.config import KV_CACHE_DTYPES, LAYOUTS, EmbeddedConfig, config_of, representation_of
from isthmus.engines.embedded.pool import PagedPool
from isthmus.engines.embedded.shape import MODEL_TYPES, read_model_shape
from isthmus.engines.launch.describe import describe
from isthmus.state.encoding import ScaleLocation
from isthmus.state.representation import KvOrder

RULES = engine_file("embedded")
FLAGS = {flag.removeprefix("--").replace("-", "_"): rule for flag, rule in RULES.flags.items()}


def line(model: object, fields: dict[str, object]) -> str:
    words = [f"--{name.replace('_', '-')} {value}" for name, value in fields.items()]
    return " ".join(["isthmus-embedded", f"--model '{model}'", *words, "@cpu"])


def agree(model, fields: dict[str, object]) -> bool:
    """Whether both take the fields; they then stand for one representation."""
    try:
        wanted = representation_of(config_of({"model": model, **fields}), read_model_shape(model))
    except ConfigInvalid:
        with pytest.raises(BadInput):
            describe(line(model, fields))
        return False
    assert describe(line(model, fields)).representation == wanted
    return True


def test_every_field_that_bears_on_kv_is_a_flag_with_the_same_words():
    known = {*FLAGS, *(flag.removeprefix("--").replace("-", "_") for flag in RULES.ignored)}
    assert known == set(EmbeddedConfig.model_fields)
    assert set(FLAGS["kv_cache_dtype"].values) == set(KV_CACHE_DTYPES)
    assert set(FLAGS["kv_layout"].values) == set(LAYOUTS)
    assert set(FLAGS["kv_order"].values) == set(KvOrder)
    assert set(FLAGS["scale_location"].values) == set(ScaleLocation)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_the_defaults_are_the_engines(tiny_models, family):
    assert agree(tiny_models[family], {})
    assert describe(line(tiny_models[family], {})).dtype == "f32"
    assert describe(line(tiny_models[family], {"dtype": "bfloat16"})).dtype == "bf16"


@pytest.mark.parametrize("kv_cache_dtype", KV_CACHE_DTYPES)
@pytest.mark.parametrize("scale_location", ScaleLocation)
def test_all_layouts_and_orders_of_a_dtype_agree(llama, kv_cache_dtype, scale_location):
    taken = [
        agree(
            llama,
            {
                "kv_cache_dtype": kv_cache_dtype,
                "scale_location": scale_location.value,
                "kv_layout": layout,
                "kv_order": order.value,
                "block_size": 32,
                "tp_size": 2,
            },
        )
        for layout, order in itertools.product(LAYOUTS, KvOrder)
    ]
    scaled = kv_cache_dtype == "int8_per_token_head"
    if scaled and scale_location in (ScaleLocation.LAYER_ATTR, ScaleLocation.INTERLEAVED):
        assert not any(taken)
    else:
        assert any(taken)


@pytest.mark.parametrize("tp_size", [1, 2, 3])
@pytest.mark.parametrize("block_size", [0, 1, 16, 4096, 4097])
def test_sizes_agree(llama, tp_size, block_size):
    assert agree(llama, {"tp_size": tp_size, "block_size": block_size}) == (tp_size < 3 and 1 <= block_size <= 4096)


def test_the_pool_serves_what_is_described(llama):
    for name in KV_CACHE_DTYPES:
        assert PagedPool(describe(line(llama, {"kv_cache_dtype": name})).representation, 2).num_blocks == 2


def test_a_family_that_the_engine_does_not_compute_is_refused(llama, tmp_path):
    fields = json.loads((llama / "config.json").read_text()) | {"model_type": "mistral", "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(Unsupported, match="model_type"):
        read_model_shape(tmp_path)
    with pytest.raises(BadInput, match="model_type"):
        describe(line(tmp_path, {}))


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("--kv-cache-dtype fp4", "--kv-cache-dtype"),
        ("--kv-layout NDH", "--kv-layout"),
        ("--dtype float16", "--dtype"),
        ("--speed 9", "--speed"),
    ],
)
def test_a_wrong_flag_is_named(llama, words, field):
    with pytest.raises(BadInput) as caught:
        describe(f"isthmus-embedded --model '{llama}' {words} @cpu")
    assert caught.value.field == field
