"""The only authority over one worker's blocks and staging bytes. Local: it dies with the memory it accounts for.

Blocks that were assigned together are one account, under an epoch that no other ever has: they have one state until
they come free together. Each block also has three counts: its account's, and its own where only some blocks of an
account are held (a prefix that several requests share).

    free ─► reserved ─► filling ─► resident ─► free
              │            │          ├──────► quarantined ─► free
              │            │          └──────► resident under a new epoch, as long as it is retained
              └────────────┴──► free

Owns I2 (a mutation under another epoch than the block's is a `Bug`), I3 and I10. Sums are checked at every mutation by
counters, and in full by `check_in_full`. Refuses to know hand-off phases, peers, and what the bytes mean.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, HandoffId, TenantId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX
from isthmus.core.units import BlockCount, ByteCount
from isthmus.ownership.accounts import Assignment, Available, BlockState, Count, Held
from isthmus.ownership.protocol.drain import Evidence

__all__ = ["Ledger", "OnRetained"]

OnRetained = Callable[[HandoffId, tuple[Assignment, ...]], None]
"""Told of blocks that outlive their hand-off because they are retained: whose they were, each under its new epoch."""

_FREES_NOTHING = (Evidence.SILENCE, Evidence.CONNECTION_CLOSED, Evidence.LEASE_EXPIRED_MANY_TENANTS)


@dataclass(slots=True, kw_only=True, eq=False)
class _Account:
    """Blocks assigned together. `counts` are of each block; `own` of single blocks, on top.

    `retained`: the hand-off has ended, and the block is kept for reuse only.
    """

    blocks: tuple[BlockId, ...]
    epoch: Epoch
    owner: HandoffId
    tenant: TenantId
    state: BlockState = BlockState.RESERVED
    retained: bool = False
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    own: dict[BlockId, list[int]] = field(default_factory=dict)

    def counts_of(self, block: BlockId) -> list[int]:
        own = self.own.get(block)
        return self.counts if own is None else [common + more for common, more in zip(self.counts, own, strict=True)]


class Ledger:
    """Accounting of one pool of `num_blocks` blocks and one budget of `staging_bytes`.

    Every operation costs O(1), and O(blocks) for reserving, freeing, and touching a part of an account.
    """

    def __init__(self, *, num_blocks: int, block_bytes: int, staging_bytes: int) -> None:
        if not 1 <= num_blocks <= BLOCKS_PER_POOL_MAX or block_bytes < 1 or staging_bytes < 0:
            raise Bug(f"no pool: {num_blocks} blocks of {block_bytes} bytes, {staging_bytes} of staging")
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.staging_bytes = staging_bytes
        self._accounts: dict[Epoch, _Account] = {}
        self._account_of: list[_Account | None] = [None] * num_blocks
        self._free = [BlockId(block) for block in range(num_blocks - 1, -1, -1)]
        self._in_state = [num_blocks, 0, 0, 0, 0]
        self._sums = [0, 0, 0]
        self._of_tenant: dict[TenantId, int] = {}
        self._quarantined_max = 0
        self._staging: dict[Epoch, int] = {}
        self._staging_used = 0
        self._last_epoch = 0
        self._on_room: list[Callable[[], None]] = []
        self._on_retained: list[OnRetained] = []

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every release of blocks or staging bytes."""
        self._on_room.append(callback)

    def when_retained(self, callback: OnRetained) -> None:
        """Call `callback` when blocks come free of their hand-off but are retained."""
        self._on_retained.append(callback)

    # reservation

    def try_reserve(
        self, handoff: HandoffId, *, tenant: TenantId, blocks: int, staging_bytes: int
    ) -> Assignment | None:
        """Blocks and staging bytes at once, or nothing at all: half a reservation could wait for its other half."""
        if blocks < 1 or staging_bytes < 0:
            raise Bug(f"a reservation of {blocks} blocks and {staging_bytes} staging bytes", field="blocks")
        # I10: everything the hand-off will need until its commit is counted before any of it is used.
        if blocks > len(self._free) or self._staging_used + staging_bytes > self.staging_bytes:
            return None
        chosen = tuple(self._free[: -blocks - 1 : -1])
        del self._free[-blocks:]
        account = self._open(chosen, handoff, tenant, BlockState.RESERVED)
        self._in_state[BlockState.FREE] -= blocks
        self._in_state[BlockState.RESERVED] += blocks
        self._of_tenant[tenant] = self._of_tenant.get(tenant, 0) + blocks
        if staging_bytes:
            self._staging[account.epoch] = staging_bytes
            self._staging_used += staging_bytes
        self._check()
        return Assignment(blocks=chosen, epoch=account.epoch)

    def release_staging(self, epoch: Epoch) -> None:
        """The staging bytes reserved under `epoch` are free again."""
        size = self._staging.pop(epoch, None)
        if size is None:
            raise Bug(f"staging of epoch {epoch} released twice, or never reserved", field="epoch")
        self._staging_used -= size
        self._check()
        self._room()

    # an account's life; `blocks` are all of it

    def fill(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """reserved → filling, with its filler as an active user."""
        account = self._move(blocks, epoch, BlockState.RESERVED, BlockState.FILLING)
        account.counts[Count.ACTIVE] += 1
        self._sums[Count.ACTIVE] += len(blocks)

    def settle(self, blocks: tuple[BlockId, ...], epoch: Epoch, *, in_use: bool) -> None:
        """filling → resident. The filler's use ends, or passes on to whoever reads on (`in_use`)."""
        self._move(blocks, epoch, BlockState.FILLING, BlockState.RESIDENT)
        if not in_use:
            self.unhold(blocks, epoch, Count.ACTIVE)

    def quarantine(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """Keep the blocks from everybody: somebody may still touch them."""
        account = self._whole(blocks, epoch)
        self._in_state[account.state] -= len(blocks)
        self._in_state[BlockState.QUARANTINED] += len(blocks)
        account.state = BlockState.QUARANTINED
        self._quarantined_max = max(self._quarantined_max, self._in_state[BlockState.QUARANTINED])
        self._check()

    def free(self, blocks: tuple[BlockId, ...], epoch: Epoch, evidence: Evidence) -> None:
        """Back to the free list: nobody uses or reads them any more, and `evidence` says so.

        Blocks that are retained stay resident, under an epoch of their own: no old grant reaches them.
        """
        account = self._whole(blocks, epoch)
        if evidence in _FREES_NOTHING:
            raise Bug(f"{evidence} frees no block on any transport", field="evidence")
        for block in blocks if account.own else blocks[:1]:
            grants, active, retention = account.counts_of(block)
            if grants or active or (retention and account.retained):
                raise Bug(f"block {block} freed with {self._describe(block)}", field="block")
        kept = self._close(account)
        self._check()
        if kept:
            for callback in self._on_retained:
                callback(account.owner, kept)
        self._room()

    def hold(self, blocks: tuple[BlockId, ...], epoch: Epoch, count: Count) -> None:
        """One reason more to keep each of `blocks`: an account, or some of it."""
        account = self._assigned(blocks, epoch)
        if blocks is account.blocks or blocks == account.blocks:
            account.counts[count] += 1
        else:
            for block in blocks:
                account.own.setdefault(block, [0, 0, 0])[count] += 1
        self._sums[count] += len(blocks)

    def unhold(self, blocks: tuple[BlockId, ...], epoch: Epoch, count: Count) -> None:
        """One reason less. What was held as a whole ends as a whole, what was held in part ends in part."""
        account = self._assigned(blocks, epoch)
        if blocks is account.blocks or blocks == account.blocks:
            if not account.counts[count]:
                raise Bug(f"blocks of epoch {epoch}: {count.name.lower()} ended twice", field="block")  # I4
            account.counts[count] -= 1
        else:
            self._unhold_some(account, blocks, count)
        self._sums[count] -= len(blocks)

    # questions

    def check_assigned(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """Raise `Bug` unless every block is still assigned under `epoch`."""
        self._assigned(blocks, epoch)

    def assigned_to(self, block: BlockId, epoch: Epoch) -> bool:
        """Whether `block` is one of this pool's and is assigned under `epoch`; for ids that a peer named."""
        if not 0 <= block < self.num_blocks:
            return False
        account = self._account_of[block]
        return account is not None and account.epoch == epoch

    def owner(self, block: BlockId) -> HandoffId | None:
        """The hand-off that the block is, or was before it was retained, assigned to."""
        account = self._account_of[block]
        return None if account is None else account.owner

    def state(self, block: BlockId) -> BlockState:
        account = self._account_of[block]
        return BlockState.FREE if account is None else account.state

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def free_staging_bytes(self) -> int:
        return self.staging_bytes - self._staging_used

    def available(self) -> Available:
        return Available(blocks=BlockCount(self.free_blocks), staging_bytes=ByteCount(self.free_staging_bytes))

    def held_by(self, tenant: TenantId) -> BlockCount:
        """Blocks assigned to a tenant's hand-offs, those in quarantine included, those retained for reuse not."""
        return BlockCount(self._of_tenant.get(tenant, 0))

    def held(self) -> Held:
        _, reserved, filling, resident, quarantined = self._in_state
        grants, active, retention = self._sums
        return Held(
            reserved=reserved,
            filling=filling,
            resident=resident,
            quarantined=quarantined,
            quarantined_max=self._quarantined_max,
            grants=grants,
            active=active,
            retention=retention,
            staging_bytes=self._staging_used,
        )

    def check_in_full(self) -> None:
        """Recount everything: O(pool), for when the worker is idle and for tests."""
        in_state, sums = [len(self._free), 0, 0, 0, 0], [0, 0, 0]
        for epoch, account in self._accounts.items():
            in_state[account.state] += len(account.blocks)
            sums = [
                total + common * len(account.blocks) + sum(own[count] for own in account.own.values())
                for count, (total, common) in enumerate(zip(sums, account.counts, strict=True))
            ]
            if account.epoch != epoch or any(self._account_of[block] is not account for block in account.blocks):
                raise Bug(f"recount: account {epoch} does not have its blocks", field="epoch")
        unaccounted = [block for block in self._free if self._account_of[block] is not None]
        if in_state != self._in_state or sums != self._sums or unaccounted or len(set(self._free)) != len(self._free):
            raise Bug(f"recount: {in_state} against {self._in_state}, {sums} against {self._sums}, {unaccounted}")
        if sum(self._staging.values()) != self._staging_used:
            raise Bug(f"recount: staging {self._staging} against {self._staging_used}")
        self._check()

    # inside

    def _open(self, blocks: tuple[BlockId, ...], owner: HandoffId, tenant: TenantId, state: BlockState) -> _Account:
        self._last_epoch += 1
        account = _Account(blocks=blocks, epoch=Epoch(self._last_epoch), owner=owner, tenant=tenant, state=state)
        self._accounts[account.epoch] = account
        for block in blocks:
            self._account_of[block] = account
        return account

    def _close(self, account: _Account) -> tuple[Assignment, ...]:
        """An account's end: its blocks are free, but for those retained, which go on, each as an account of its own."""
        del self._accounts[account.epoch]
        for block in account.blocks:
            self._account_of[block] = None
        if not account.retained:
            left = self._of_tenant.pop(account.tenant) - len(account.blocks)
            if left:
                self._of_tenant[account.tenant] = left  # a tenant that holds nothing leaves no trace
        gone = account.blocks
        kept: list[Assignment] = []
        if account.own or account.counts[Count.RETENTION]:
            counts = {block: account.counts_of(block)[Count.RETENTION] for block in account.blocks}
            gone = tuple(block for block, retention in counts.items() if not retention)
            kept = [self._keep(account, block, retention) for block, retention in counts.items() if retention]
        self._in_state[account.state] -= len(gone)
        self._in_state[BlockState.FREE] += len(gone)
        self._free.extend(reversed(gone))
        return tuple(kept)

    def _keep(self, account: _Account, block: BlockId, retention: int) -> Assignment:
        if account.state is not BlockState.RESIDENT:
            raise Bug(f"block {block} is retained while {account.state.name.lower()}", field="block")
        kept = self._open((block,), account.owner, account.tenant, BlockState.RESIDENT)
        kept.retained = True
        kept.counts[Count.RETENTION] = retention
        return Assignment(blocks=kept.blocks, epoch=kept.epoch)

    def _assigned(self, blocks: Iterable[BlockId], epoch: Epoch) -> _Account:
        # I2: what acts under an old epoch does not reach a block's next owner.
        account = self._accounts.get(epoch)
        if account is not None and blocks is account.blocks:
            return account
        for block in blocks:
            if account is None or self._account_of[block] is not account:
                raise Bug(f"block {block} acted on under epoch {epoch}: {self._describe(block)}", field="epoch")
        if account is None:
            raise Bug(f"no block named under epoch {epoch}", field="blocks")
        return account

    def _whole(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> _Account:
        found = self._accounts.get(epoch)
        if found is not None and blocks is found.blocks:
            return found
        account = self._assigned(blocks, epoch)
        if blocks is not account.blocks and blocks != account.blocks:
            raise Bug(f"{len(blocks)} of {len(account.blocks)} blocks of epoch {epoch}: wanted all", field="blocks")
        return account

    def _move(self, blocks: tuple[BlockId, ...], epoch: Epoch, before: BlockState, to: BlockState) -> _Account:
        account = self._whole(blocks, epoch)
        if account.state is not before:
            raise Bug(f"account to {to.name.lower()}: {self._describe(blocks[0])}", field="block")
        account.state = to
        self._in_state[before] -= len(blocks)
        self._in_state[to] += len(blocks)
        self._check()
        return account

    def _unhold_some(self, account: _Account, blocks: tuple[BlockId, ...], count: Count) -> None:
        for block in blocks:
            own = account.own.get(block)
            if own is None or not own[count]:
                raise Bug(f"block {block}: {count.name.lower()} ended twice", field="block")  # I4
            own[count] -= 1
            if not any(own):
                del account.own[block]

    def _check(self) -> None:
        # I3: every block is in exactly one state, and the free list is exactly the free ones.
        if sum(self._in_state) != self.num_blocks or self._in_state[BlockState.FREE] != len(self._free):
            raise Bug(f"the pool's sum is {self._in_state} with {len(self._free)} free, of {self.num_blocks}")
        if not 0 <= self._staging_used <= self.staging_bytes:
            raise Bug(f"staging holds {self._staging_used} of {self.staging_bytes} bytes")  # I10

    def _room(self) -> None:
        for callback in self._on_room:
            callback()

    def _describe(self, block: BlockId) -> str:
        account = self._account_of[block]
        if account is None:
            return "free"
        counts = ", ".join(f"{count.name.lower()} {account.counts_of(block)[count]}" for count in Count)
        return f"{account.state.name.lower()}, {counts}, epoch {account.epoch}"
