"""The boundary object: a `RuntimeKVState` is a claim about KV that somebody holds, precise enough to read it by."""

from functools import cached_property
from typing import Annotated

from msgspec import Meta

from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, LAYER_GROUPS_MAX
from isthmus.state.addressing import address_shards
from isthmus.state.fields import RegionShape, ShardAddressing
from isthmus.state.identity import HexDigest, Identity, TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupRepresentation
from isthmus.state.structs import GRANT_TOKEN, NAME, TOKEN, WireStruct, refuse, require

__all__ = ["GroupState", "KVRepresentation", "Ownership", "Residency", "RuntimeKVState"]


class KVRepresentation(WireStruct, frozen=True, kw_only=True, dict=True):
    """All layer groups of one side and how they are partitioned: what a worker is configured with.

    What follows from that is made once and kept with it.
    """

    groups: Annotated[tuple[GroupRepresentation, ...], Meta(min_length=1, max_length=LAYER_GROUPS_MAX)]
    partition: Partition

    def __post_init__(self) -> None:
        self.address()  # raises where the partition does not fit
        held = [
            (layer, part.name, group.tokens_per_state)
            for group in self.groups
            for layer in group.layers
            for part in group.components
        ]
        require(len(set(held)) == len(held), "groups", "a layer's component twice", "each component of a layer once")

    def address(self) -> tuple[tuple[ShardAddressing, ...], ...]:
        """The shards of each group. Region ids begin with the group's number. Raises ValueError."""
        return self._shards

    @cached_property
    def _shards(self) -> tuple[tuple[ShardAddressing, ...], ...]:
        return tuple(address_shards(group, self.partition, f"g{index}.") for index, group in enumerate(self.groups))

    @cached_property
    def parts(self) -> tuple[tuple[int, tuple[RegionShape, ...]], ...]:
        """Each part of a hand-off that is read: its layer group, and its regions. In the order of `regions`."""
        return tuple((group, tuple(shard.regions)) for group, shards in enumerate(self._shards) for shard in shards)

    @cached_property
    def regions(self) -> tuple[RegionShape, ...]:
        """All regions of all groups and shards, in the order that images and pools use."""
        return tuple(region for _, regions in self.parts for region in regions)

    @cached_property
    def block_bytes(self) -> tuple[int, ...]:
        """What a block of each group takes, over all its shards."""
        return tuple(
            sum(region.size_bytes(1) for shard in shards for region in shard.regions) for shards in self._shards
        )

    @property
    def bytes_per_token(self) -> float:
        """KV bytes one token takes over all groups, each once; states, which do not grow, not counted."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of states, which a sequence takes whatever its length."""
        return sum(group.bytes_per_sequence for group in self.groups)


class GroupState(WireStruct, frozen=True, kw_only=True):
    """One group's blocks, in token order: block i holds tokens [i*block_size, (i+1)*block_size)."""

    block_ids: tuple[BlockId, ...]
    logical_digest: Annotated[int, Meta(ge=0)]

    def __post_init__(self) -> None:
        ids = self.block_ids
        if len(set(ids)) != len(ids):
            refuse("block_ids", len(ids), "unique ids")
        if ids and not (min(ids) >= 0 and max(ids) < BLOCKS_PER_POOL_MAX):
            refuse("block_ids", "an id out of range", f"0 <= id < {BLOCKS_PER_POOL_MAX}")
        if not self.logical_digest < 1 << 64:
            refuse("logical_digest", self.logical_digest, "64 bits")


class Residency(WireStruct, frozen=True, kw_only=True):
    """Where the bytes lie: the tier and the pool's extent, which fixes every stride."""

    tier: Annotated[str, Meta(pattern=r"^(device|pinned_host|host|file|remote)\Z")]
    num_blocks: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_blocks <= BLOCKS_PER_POOL_MAX:
            refuse("num_blocks", self.num_blocks, f"1 to {BLOCKS_PER_POOL_MAX}")


class Ownership(WireStruct, frozen=True, kw_only=True):
    """Who answers for the bytes, and under which grant they may be read. `lease_ms` is relative to receipt."""

    owner: Annotated[WorkerId, NAME]
    incarnation: Annotated[Incarnation, TOKEN]
    handoff: Annotated[HandoffId, TOKEN]
    grant: Annotated[GrantId, GRANT_TOKEN]
    epoch: Annotated[Epoch, Meta(ge=1)]
    tenant: Annotated[TenantId, NAME]
    lease_ms: Annotated[int, Meta(ge=1)]


class RuntimeKVState(WireStruct, frozen=True, kw_only=True):
    """KV tensors' meaning, form, place and owner.

    Invariants: every group has its state; block ids are unique, within the pool, and as many as the token range needs.
    `tokens_digest` is over the token ids [0, token_range.stop): KV at a position depends on all before it.
    """

    identity: Identity
    token_range: TokenRange
    tokens_digest: HexDigest
    representation: KVRepresentation
    groups: tuple[GroupState, ...]
    residency: Residency
    ownership: Ownership

    def __post_init__(self) -> None:
        wanted = len(self.representation.groups)
        if len(self.groups) != wanted:
            refuse("groups", len(self.groups), f"{wanted}, one per layer group")
        tokens, pool, ranks = self.token_range, self.residency.num_blocks, self.representation.partition.dcp_size
        for group, state in zip(self.representation.groups, self.groups, strict=True):
            blocks = group.blocks_of(tokens.start, tokens.stop, ranks)
            if len(state.block_ids) != blocks:
                says = f"{blocks} blocks of {group.block_size} for tokens {tokens.start}..{tokens.stop}"
                refuse("block_ids", len(state.block_ids), says)
            if max(state.block_ids) >= pool:
                refuse("block_ids", max(state.block_ids), f"below the pool's num_blocks = {pool}")
