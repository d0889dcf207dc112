"""`describe`: a launch line, or a file that holds a description, to a `Description`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import msgspec

from isthmus.catalogue.accelerators import Accelerator, accelerator_named
from isthmus.catalogue.conditions import Value
from isthmus.catalogue.rules import engine_on
from isthmus.catalogue.shape_types import LayerShape, ModelShape
from isthmus.core.errors import BadInput
from isthmus.core.files import read_at_most
from isthmus.core.limits import MANIFEST_BYTES_MAX
from isthmus.engines.launch.flags import read_environment, read_flags
from isthmus.engines.launch.groups import group_of, partition_of
from isthmus.engines.launch.line import LaunchLine, parse_line
from isthmus.engines.launch.model import identity_of, served_model
from isthmus.engines.launch.settings import apply_rules
from isthmus.engines.launch.yaml_text import read_yaml
from isthmus.state.assumption import Assumption
from isthmus.state.description import Description
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["describe", "describe_line", "read_description"]

_ORDER = ("full_attention", "mla", "sliding_window", "chunked_local")


def describe(text: str) -> Description:
    """What `isthmus check` takes for a side: a path to a description (JSON or YAML), or a launch line.

    Raises:
        BadInput, UnknownModel, Unsupported: it cannot be read, or names what does not exist.
        NotCovered: read, but no rule says what follows.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):  # what argv makes of bytes that are no text
        raise BadInput("launch line: is not UTF-8", field="line")
    path = Path(text)
    if len(text) < 4096 and "@" not in text and path.suffix in (".json", ".yaml", ".yml"):
        return read_description(path)
    return describe_line(text)


def read_description(path: Path) -> Description:
    """A description from a file. Raises BadInput naming the field."""
    hint = "give a launch line or a file that `isthmus describe … --json` wrote"
    if path.suffix != ".json":
        found: Description = read_yaml(path, Description, hint=hint, field="file")
        return found
    try:
        return msgspec.json.decode(read_at_most(path, MANIFEST_BYTES_MAX), type=Description)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; {hint}", field="file") from None
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}; {hint}", field="file") from None


def describe_line(text: str) -> Description:
    """What a launch line stands for. Raises as `describe`."""
    line = parse_line(text)
    part, accelerator = accelerator_named(line.accelerator)
    line = dataclasses.replace(line, rules=engine_on(line.rules, accelerator.arch))
    given = read_flags(line.rules, line.arguments) | read_environment(line.rules, line.environment)
    assumed: list[Assumption] = []
    if not line.version_given:
        assumed.append(
            Assumption(
                field="engine_version",
                value=line.version,
                why=f"the newest that there are rules for; say @{line.accelerator},"
                f"{line.rules.plugin_of or line.rules.engine}=VERSION",
            )
        )
    name = _model_name(given, line)
    base = line.options.get("base", "")
    shape, local = served_model(name, base)
    context, ordered = _context(line, part, accelerator, shape) | given, _ordered(shape)
    by_kind = [
        apply_rules(line.rules, line.version, context | _layer_context(layers, shape), assumed) for layers in ordered
    ]
    groups = tuple(group_of(layers, settings) for layers, settings in zip(ordered, by_kind, strict=True))
    first = by_kind[0]
    weights = str(first.get("weights_dtype", "published"))
    identity = identity_of(
        shape,
        name=name,
        local=local,
        base=base,
        revision=line.options.get("revision", str(given.get("revision", ""))),
        weights_dtype=shape.weights_dtype if weights == "published" else weights,
        assumed=assumed,
    )
    try:
        representation = KVRepresentation(groups=groups, partition=partition_of(first, shape.num_hidden_layers))
    except ValueError as error:
        raise BadInput(str(error), field=str(error).partition(":")[0]) from None
    return Description(
        engine=line.rules.engine,
        engine_version=line.version,
        accelerator=part,
        model=name[-256:],
        attn_backends=tuple(str(settings.get("attn_backend", "")) for settings in by_kind),
        kv_cache_dtype=str(first.get("kv_cache_dtype", "")),
        dtype=str(first.get("run_dtype", shape.dtype)),
        identity=identity,
        representation=representation,
        assumed=tuple(assumed),
        environment=dict(line.environment),
    )


def _model_name(given: Mapping[str, Value], line: LaunchLine) -> str:
    name = str(given.get("model", line.options.get("base", "")))
    if not name:
        raise BadInput(
            f"model: {line.rules.title}'s line names none; give a name of the catalogue or a folder with config.json",
            field="model",
        )
    return name


def _context(line: LaunchLine, part: str, accelerator: Accelerator, shape: ModelShape) -> dict[str, Value]:
    """What rules may ask of the line, the part and the model."""
    return {
        "engine_version": line.version,
        "accelerator": part,
        "vendor": accelerator.vendor,
        "arch": accelerator.arch,
        "fp8": accelerator.fp8,
        "model": shape.name,
        "model_type": shape.model_type,
        "dtype": shape.dtype,
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "max_position_embeddings": shape.max_position_embeddings,
        "is_hybrid": "true" if len(shape.layers) > 1 else "false",
        "index_head_dim": next((layers.head_size for layers in shape.layers if layers.kind == "indexer"), 0),
    }


def _layer_context(layers: LayerShape, shape: ModelShape) -> dict[str, Value]:
    return {
        "kind": layers.kind,
        "num_kv_heads": layers.num_kv_heads,
        "head_size": layers.head_size,
        "head_size_v": layers.head_size_v,
        "sliding_window": layers.sliding_window,
        "tokens_per_state": layers.tokens_per_state,
        "model": shape.name,
    }


def _ordered(shape: ModelShape) -> list[LayerShape]:
    """Kinds in one order for all engines: full attention first."""
    rank = {kind: index for index, kind in enumerate(_ORDER)}
    return sorted(shape.layers, key=lambda layers: (rank.get(layers.kind, len(rank)), layers.layers))
