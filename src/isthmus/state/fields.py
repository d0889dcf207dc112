"""The addresses of a shard: regions, and the fields in them. `state.addressing` derives them."""

from isthmus.core.ids import RegionId
from isthmus.state.digits import Axis, Digit, Stride
from isthmus.state.encoding import TRAITS, StorageDtype
from isthmus.state.structs import WireStruct

__all__ = ["FieldAddress", "RegionShape", "ShardAddressing"]


class FieldAddress(WireStruct, frozen=True, kw_only=True):
    """One field of a shard: rows of `count` elements for the model's heads [head_start, head_start + heads).

    A row is `units` units of `unit_bytes`; `digits` say where each lies in region number `region` of the shard.
    """

    name: str
    storage_dtype: StorageDtype
    count: int
    head_start: int
    heads: int
    region: int
    offset: Stride
    digits: tuple[Digit, ...]

    @property
    def unit_bytes(self) -> int:
        return TRAITS[self.storage_dtype].itemsize

    @property
    def row_bytes(self) -> int:
        return TRAITS[self.storage_dtype].size(self.count)

    @property
    def units(self) -> int:
        return self.row_bytes // self.unit_bytes

    def stride(self, axis: Axis) -> Stride | None:
        """Bytes between neighbours along an axis, or None where it has more than one digit."""
        found = [digit for digit in self.digits if digit.axis is axis]
        if not found:
            return Stride()
        return found[0].stride if len(found) == 1 else None

    @property
    def contiguous(self) -> bool:
        """Whether each row is one run of bytes, at one stride for each other axis."""
        plain = all(self.stride(axis) is not None for axis in Axis)
        return plain and (self.units == 1 or self.stride(Axis.UNIT) == Stride(self.unit_bytes))


class RegionShape(WireStruct, frozen=True, kw_only=True):
    """A dense region: `outer` slices of `num_blocks` blocks of `block_bytes`. Block b is `outer` spans."""

    id: RegionId
    outer: int
    block_bytes: int

    def size_bytes(self, num_blocks: int) -> int:
        return self.outer * num_blocks * self.block_bytes


class ShardAddressing(WireStruct, frozen=True, kw_only=True):
    """One shard: which of the group's layers (as positions in its `layers`), its regions, and its fields.

    Of tokens it holds those that `dcp_rank` names (`Partition.dcp_size`), counted on in its own blocks.
    """

    rank: int
    layer_start: int
    layer_stop: int
    dcp_rank: int
    regions: tuple[RegionShape, ...]
    fields: tuple[FieldAddress, ...]

    def field(self, name: str) -> FieldAddress:
        """The field of that name. Raises KeyError."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)
