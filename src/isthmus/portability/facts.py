"""A description as flat facts: what connectors compare, and what they do not."""

from isthmus.catalogue.accelerators import accelerator_named
from isthmus.state.addressing import address_rank, stage_of
from isthmus.state.description import Description
from isthmus.state.representation import STATE_KINDS
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["facts_of"]


def facts_of(side: Description) -> dict[str, str | int]:
    """The facts of one side, of its first layer group where they are a group's."""
    identity, representation = side.identity, side.representation
    group, partition = representation.groups[0], representation.partition
    part = group.components[0]
    start, stop = stage_of(group, partition, 0)
    regions, fields = address_rank(group, partition.tp_size, max(1, stop - start))
    _, outer, block_bytes = regions[0]
    quant = part.encoding.quant
    accelerator = accelerator_named(side.accelerator)[1]
    return {
        "engine": side.engine,
        "engine_version": side.engine_version,
        "accelerator": side.accelerator,
        "vendor": accelerator.vendor,
        "arch": accelerator.arch,
        "model": side.model,
        "base_model": identity.lineage.base_model,
        "revision": identity.lineage.revision,
        "weights_dtype": identity.weights.dtype,
        "weights_digest": identity.weights.digest or identity.weights.published,
        "attn_backend": side.attn_backends[0] if side.attn_backends else "",
        "kv_cache_dtype": side.kv_cache_dtype,
        "dtype": side.dtype,
        "layout": group.layout.value,
        "kv_order": group.kv_order.value,
        "interior": group.interior,
        "block_size": group.block_size,
        "storage_dtype": part.encoding.storage_dtype.value,
        "element_bytes": part.encoding.traits.itemsize,
        "row_bytes": group.row_bytes or part.row_bytes,
        "block_bytes": block_bytes * outer // max(1, stop - start),
        "num_regions": len(regions),
        "num_layers": len({layer for each in representation.groups for layer in each.layers}),
        "num_kv_heads": group.num_kv_heads,
        "head_size": part.count,
        "tp_size": partition.tp_size,
        "pp_size": partition.pp_size,
        "dcp_size": partition.dcp_size,
        "rope": f"{identity.rope.theta} {identity.rope.scaling_digest}",
        "scale_values": "none" if quant is None else quant.scale_values,
        "quant": "none" if quant is None else quant.granularity.value,
        "scale_location": "none" if quant is None else quant.scale_location.value,
        "sliding_window": group.sliding_window,
        "kinds": ",".join(each.kind.value for each in representation.groups),
        "has_state": "true" if any(each.kind in STATE_KINDS for each in representation.groups) else "false",
        "conv_layout": _conv_layout(representation),
        "fields": ",".join(field.name for field, _ in fields),
    }


def _conv_layout(representation: KVRepresentation) -> str:
    """How convolutions' states lie: SD, DS, or '' where there are none."""
    states = [group for group in representation.groups if group.kind in STATE_KINDS]
    if not states:
        return ""
    return "SD" if any(group.interior.startswith("conv_sd") for group in states) else "DS"
