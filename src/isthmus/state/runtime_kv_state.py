"""The boundary object: a `RuntimeKVState` is a claim about KV that somebody holds, precise enough to read it by."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, LAYER_GROUPS_MAX
from isthmus.core.units import blocks_for
from isthmus.state.addressing import address_shards
from isthmus.state.fields import ShardAddressing
from isthmus.state.identity import HexDigest, Identity, TokenRange
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupRepresentation
from isthmus.state.structs import GrantToken, Name, Token, WireStruct, require

__all__ = ["GroupState", "KVRepresentation", "Ownership", "Residency", "RuntimeKVState"]


class KVRepresentation(WireStruct, frozen=True, kw_only=True):
    """All layer groups of one side and how they are partitioned: what a worker is configured with."""

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
        return tuple(address_shards(group, self.partition, f"g{index}.") for index, group in enumerate(self.groups))

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

    block_ids: tuple[int, ...]
    logical_digest: Annotated[int, Meta(ge=0)]

    def __post_init__(self) -> None:
        require(len(set(self.block_ids)) == len(self.block_ids), "block_ids", len(self.block_ids), "unique ids")
        require(
            all(0 <= block < BLOCKS_PER_POOL_MAX for block in self.block_ids),
            "block_ids",
            "an id out of range",
            f"0 <= id < {BLOCKS_PER_POOL_MAX}",
        )
        require(self.logical_digest < 1 << 64, "logical_digest", self.logical_digest, "64 bits")

    def blocks(self) -> tuple[BlockId, ...]:
        return tuple(BlockId(block) for block in self.block_ids)


class Residency(WireStruct, frozen=True, kw_only=True):
    """Where the bytes lie: the tier and the pool's extent, which fixes every stride."""

    tier: Annotated[str, Meta(pattern=r"^(device|pinned_host|host|file|remote)\Z")]
    num_blocks: int

    def __post_init__(self) -> None:
        require(
            1 <= self.num_blocks <= BLOCKS_PER_POOL_MAX, "num_blocks", self.num_blocks, f"1 to {BLOCKS_PER_POOL_MAX}"
        )


class Ownership(WireStruct, frozen=True, kw_only=True):
    """Who answers for the bytes, and under which grant they may be read. `lease_ms` is relative to receipt."""

    owner: Name
    incarnation: Token
    handoff: Token
    grant: GrantToken
    epoch: Annotated[int, Meta(ge=1)]
    tenant: Name
    lease_ms: Annotated[int, Meta(ge=1)]

    def worker(self) -> WorkerId:
        return WorkerId(self.owner)

    def life(self) -> Incarnation:
        return Incarnation(self.incarnation)

    def handoff_id(self) -> HandoffId:
        return HandoffId(self.handoff)

    def grant_id(self) -> GrantId:
        return GrantId(self.grant)

    def fence(self) -> Epoch:
        return Epoch(self.epoch)

    def tenant_id(self) -> TenantId:
        return TenantId(self.tenant)


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
        require(len(self.groups) == wanted, "groups", len(self.groups), f"{wanted}, one per layer group")
        for group, state in zip(self.representation.groups, self.groups, strict=True):
            rows, span = group.held(self.token_range), group.block_size * self.representation.partition.dcp_size
            blocks = blocks_for(rows.stop, span) - rows.start // span
            require(
                len(state.block_ids) == blocks,
                "block_ids",
                len(state.block_ids),
                f"{blocks} blocks of {group.block_size} for tokens {self.token_range.start}..{self.token_range.stop}",
            )
            require(
                max(state.block_ids) < self.residency.num_blocks,
                "block_ids",
                max(state.block_ids),
                f"below the pool's num_blocks = {self.residency.num_blocks}",
            )
