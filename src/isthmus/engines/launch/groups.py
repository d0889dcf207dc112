"""From settings, as the rules leave them, to the representation of one kind of layer."""

import math
from collections.abc import Mapping

import msgspec

from isthmus.catalogue.conditions import Value
from isthmus.catalogue.encodings import NamedRow, encoding_named, row_named
from isthmus.catalogue.shape_types import LayerShape
from isthmus.core.errors import BadInput, Bug, NotCovered
from isthmus.state.addressing import address_rank
from isthmus.state.encoding import Encoding
from isthmus.state.partition import Partition
from isthmus.state.representation import Component, GroupKind, GroupRepresentation, KvOrder, Layout

__all__ = ["group_of", "partition_of"]

_SPLITS = ("first", "last", "before_last")


def group_of(layers: LayerShape, settings: Mapping[str, Value]) -> GroupRepresentation:
    """The group of one kind of layer.

    Raises:
        NotCovered: the rules leave something open.
        BadInput: what was asked for does not fit the model.
    """
    kind = GroupKind(layers.kind)
    row = row_named(_text(settings, "row")) if "row" in settings else None
    kept = settings.get("window_kept") != "false" and kind is not GroupKind.CHUNKED_LOCAL
    try:
        group = GroupRepresentation(
            kind=kind,
            layers=layers.layers,
            components=_components(layers, settings, row),
            block_size=1 if layers.state is not None else _number(settings, "block_size"),
            layout=Layout(_text(settings, "layout")),
            kv_order=_order(layers, settings, row),
            interior=row.interior if row is not None and row.interior else _interior(layers, settings),
            row_bytes=0 if row is None else row.row_bytes,
            page_size_padded=int(settings.get("page_size_padded", 0)),
            sliding_window=layers.sliding_window if kept else 0,
            tokens_per_state=layers.tokens_per_state,
        )
        return group if row is None or row.block_align == 1 else _aligned(group, settings, row.block_align)
    except ValueError as error:
        raise BadInput(f"{kind.value}: {error}", field=str(error).partition(":")[0]) from None


def partition_of(settings: Mapping[str, Value], num_layers: int) -> Partition:
    """How the model is cut. Pipeline stages take even shares; `pp_split` says which take one more of a remainder.

    before_last: the stages before the last (vLLM, distributed/utils.py, get_pp_indices). last: the last ones (SGLang,
    utils.py:110-150). first: the first ones (TensorRT-LLM).

    Raises:
        NotCovered: there is a remainder, and the engine's rules do not say who takes it.
    """
    stages = _number(settings, "pp_size")
    if not 1 <= stages <= num_layers:
        raise BadInput(f"pp_size: got {stages}, wanted 1 to {num_layers}, the model's layers", field="pp_size")
    each, rest = divmod(num_layers, stages)
    sizes = [each] * stages
    if rest and settings.get("pp_split") not in _SPLITS:
        raise NotCovered(f"pp_size: how {num_layers} layers are dealt to {stages} stages was not read", field="pp_size")
    for extra in range(rest):
        at = {"first": extra, "last": -(extra + 1), "before_last": -(extra + 2)}[str(settings["pp_split"])]
        sizes[at] += 1
    starts = tuple(sum(sizes[:stage]) for stage in range(stages))
    try:
        return Partition(
            tp_size=_number(settings, "tp_size"),
            pp_starts=starts,
            dcp_size=_number(settings, "dcp_size"),
            dcp_interleave=int(settings.get("dcp_interleave", 1)),
        )
    except ValueError as error:
        raise BadInput(str(error), field=str(error).partition(":")[0]) from None


def _order(layers: LayerShape, settings: Mapping[str, Value], row: NamedRow | None) -> KvOrder:
    """Where components lie. A page of states holds one after another, whatever rows of attention do."""
    if row is not None:
        return KvOrder(row.kv_order)
    order = KvOrder(_text(settings, "kv_order"))
    return KvOrder.TWO_SLOTS if layers.state is not None and order is KvOrder.PACKED_C else order


def _components(layers: LayerShape, settings: Mapping[str, Value], row: NamedRow | None) -> tuple[Component, ...]:
    if row is not None:
        return tuple(
            Component(name=part.name, heads=1, count=part.count, encoding=part.stored(), offset=part.offset)
            for part in row.components
        )
    encoding = encoding_named(_text(settings, "encoding"))
    second = encoding_named(_text(settings, "encoding_v")) if "encoding_v" in settings else encoding
    if layers.state is not None:
        return _state(layers, encoding, second)
    order = str(settings.get("element_order", "model"))
    heads = layers.num_kv_heads
    return (
        Component(name="key", heads=heads, count=layers.head_size, encoding=encoding, element_order=order),
        Component(name="value", heads=heads, count=layers.head_size_v, encoding=second),
    )


def _state(layers: LayerShape, conv: Encoding, ssm: Encoding) -> tuple[Component, ...]:
    state = layers.state
    assert state is not None
    taps = state.conv_kernel - 1
    sections = tuple(
        Component(name=section.name, heads=section.heads, count=section.head_channels * taps, encoding=conv)
        for section in state.sections
    )
    count = state.ssm_head_dim * state.ssm_state_size
    return (*sections, Component(name="ssm", heads=state.ssm_heads, count=count, encoding=ssm))


def _interior(layers: LayerShape, settings: Mapping[str, Value]) -> str:
    interior = _text(settings, "interior")
    if layers.state is not None and layers.state.sections and settings.get("conv_layout") == "SD":
        return f"conv_sd:{layers.state.conv_kernel - 1}"
    return interior


def _aligned(group: GroupRepresentation, settings: Mapping[str, Value], align: int) -> GroupRepresentation:
    """A group whose pages are rounded up to a multiple of `align` bytes."""
    regions, _ = address_rank(group, _number(settings, "tp_size"), 1)
    page = regions[0][2]
    return msgspec.structs.replace(group, page_size_padded=math.ceil(page / align) * align)


def _text(settings: Mapping[str, Value], name: str) -> str:
    if name not in settings:
        raise NotCovered(f"{name}: the engine's rules do not say it for these settings", field=name)
    return str(settings[name])


def _number(settings: Mapping[str, Value], name: str) -> int:
    value = _text(settings, name)
    try:
        return int(value)
    except ValueError:
        raise Bug(f"{name}: a rule set it to {value!r}, wanted a number", field=name) from None
