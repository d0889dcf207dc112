"""How positions are rotated into keys, read from both spellings of a config: `rope_parameters` (transformers 5), and
`rope_theta` with `rope_scaling` (before). Source: transformers 5.23.0, modeling_rope_utils.py:760-840.
"""

from collections.abc import Mapping

from isthmus.catalogue.config_fields import POSITIONS_MAX, Fields, bad, canonical, named, positive
from isthmus.catalogue.families import Family
from isthmus.catalogue.shape_types import LayerShape, RopeShape

__all__ = ["NOT_ROTATED", "rope_of"]

NOT_ROTATED = RopeShape(theta=1.0, rope_dim=0, style="neox")
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "indexed_attention")
FROM_A_CONTEXT = ("llama3", "yarn", "longrope")
"""Types of scaling that start from a length, which is the context's where it is not said."""


def rope_of(family: Family, fields: Fields, layers: tuple[LayerShape, ...]) -> RopeShape:
    """How a model of these layers rotates keys.

    Raises:
        BadInput: a field is missing or wrong; the error names it.
    """
    if family.rotation == "none":
        return NOT_ROTATED
    style = "interleaved" if family.interleaved and fields.get("rope_interleave") is not False else "neox"
    name = fields.which("rope_scaling", "rope_parameters")
    record = fields.record(name) if name else {}
    if family.rotation == "main_and_compress":
        return _main_and_compress(fields, record, style, layers)
    size = _rotated_size(layers)
    nested = {key: one for key, one in record.items() if key in LAYER_TYPES and isinstance(one, Mapping)}
    if family.rotation == "by_layer_type" or nested:
        return _by_layer_type(fields, record, nested, style, size)
    theta, part, scaling = _one(fields, record, fields.get("rope_theta"))
    text = canonical("rope_scaling", scaling) if scaling else ""
    return RopeShape(theta=theta, rope_dim=_dim(size, part), style=style, scaling=text)


def _rotated_size(layers: tuple[LayerShape, ...]) -> int:
    """Elements of a head that are there to be rotated: of the latest kind of layer that sees all tokens, or any."""
    kept = [shape for shape in layers if shape.state is None]
    shape = next((one for one in kept if one.kind in ("mla", "full_attention")), kept[0] if kept else None)
    if shape is None:
        return 0
    return shape.qk_rope_head_dim or shape.head_size


def _dim(size: int, part: float) -> int:
    return int(size * part)


def _one(fields: Fields, record: Mapping[str, object], theta: object) -> tuple[float, float, dict[str, object]]:
    """One record: theta, the part of a head that is rotated, and the scaling ({} for none)."""
    left = {key: one for key, one in record.items() if one is not None}
    found = positive("rope_theta", left.pop("rope_theta", None) or theta)
    part = _part(fields, left.pop("partial_rotary_factor", None))
    kind = named("rope_scaling.rope_type", left.pop("rope_type", None) or left.get("type") or "default")
    left.pop("type", None)
    kind = {"su": "longrope"}.get(kind, kind)
    if kind in FROM_A_CONTEXT:
        name = "original_max_position_embeddings"
        if fields.get(name) is not None:
            left[name] = fields.integer(name, POSITIONS_MAX)
        left.setdefault(name, fields.integer("max_position_embeddings", POSITIONS_MAX))
    if kind == "default" and not left:
        return found, part, {}
    return found, part, left | {"rope_type": kind}


def _part(fields: Fields, said: object) -> float:
    if said is None and fields.get("rotary_dim") is not None:
        size = fields.integer("head_dim", POSITIONS_MAX)
        return fields.integer("rotary_dim", size) / size
    said = fields.get("partial_rotary_factor") if said is None else said
    part = 1.0 if said is None else positive("partial_rotary_factor", said)
    if part > 1.0:
        raise bad("partial_rotary_factor", said, "at most 1")
    return part


def _by_layer_type(
    fields: Fields, record: Mapping[str, object], nested: Mapping[str, object], style: str, size: int
) -> RopeShape:
    """Full and sliding layers rotate in different ways. Before transformers 5 the scaling was the full ones'."""
    if nested:
        given = {kind: dict(one) for kind, one in nested.items() if isinstance(one, Mapping)}
        thetas: dict[str, object] = dict.fromkeys(given, fields.get("rope_theta"))
    else:
        given = {"full_attention": dict(record), "sliding_attention": {}}
        thetas = {
            "full_attention": fields.get("rope_theta"),
            "sliding_attention": fields.get("rope_local_base_freq") or fields.get("rope_theta"),
        }
    if "full_attention" not in given:
        raise bad("rope_parameters.full_attention", None, "an object")
    read = {kind: _one(fields, one, thetas[kind]) for kind, one in given.items()}
    records = {
        kind: scaling | {"rope_theta": theta, "partial_rotary_factor": part}
        for kind, (theta, part, scaling) in read.items()
    }
    theta, part, _ = read["full_attention"]
    return RopeShape(theta=theta, rope_dim=_dim(size, part), style=style, scaling=canonical("rope_parameters", records))


def _main_and_compress(
    fields: Fields, record: Mapping[str, object], style: str, layers: tuple[LayerShape, ...]
) -> RopeShape:
    """DeepSeek V4: the window's keys are rotated plainly, the compressed ones with a base and a scaling of theirs."""
    main, compress = record.get("main"), record.get("compress")
    if isinstance(main, Mapping) and isinstance(compress, Mapping):
        theta, _, plain = _one(fields, dict(main), fields.get("rope_theta"))
        base, _, scaling = _one(fields, dict(compress), fields.get("compress_rope_theta"))
    else:
        theta, _, plain = _one(fields, {}, fields.get("rope_theta"))
        yarn = {key: one for key, one in record.items() if key != "rope_theta"}
        base, _, scaling = _one(fields, yarn, fields.get("compress_rope_theta"))
    if scaling.get("rope_type") == "yarn":
        scaling.setdefault("attention_factor", 1.0)
    records = {"main": plain | {"rope_theta": theta}, "compress": scaling | {"rope_theta": base}}
    return RopeShape(
        theta=theta, rope_dim=_rotated_size(layers), style=style, scaling=canonical("rope_parameters", records)
    )
