"""The only authority over one worker's blocks and staging bytes. Local: it dies with the memory it accounts for.

Each block has one accounting state and three counts; it returns to free when all counts are zero, on named drain
evidence. Sums are checked at every mutation by counters, and in full by `check_in_full`.

    free ─► reserved ─► filling ─► resident ─► free
              │            │          └──────► quarantined ─► free
              └────────────┴──► free

Owns I2 (a mutation under another epoch than the block's is a `Bug`), I3 and I10. Refuses to know hand-off phases,
peers, and what the bytes mean. Every operation costs O(blocks it touches).
"""

from array import array
from collections.abc import Callable

from isthmus.core.errors import Bug
from isthmus.core.ids import BlockId, Epoch, HandoffId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX
from isthmus.core.units import BlockCount, ByteCount
from isthmus.ownership.accounts import Assignment, Available, BlockState, Count, Held
from isthmus.ownership.protocol.drain import Evidence

__all__ = ["Ledger"]


class Ledger:
    """Accounting of one pool of `num_blocks` blocks and one budget of `staging_bytes`."""

    def __init__(self, *, num_blocks: int, block_bytes: int, staging_bytes: int) -> None:
        if not 1 <= num_blocks <= BLOCKS_PER_POOL_MAX or block_bytes < 1 or staging_bytes < 0:
            raise Bug(f"no pool: {num_blocks} blocks of {block_bytes} bytes, {staging_bytes} of staging")
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.staging_bytes = staging_bytes
        self._state = bytearray(num_blocks)
        self._epoch = array("Q", bytes(8 * num_blocks))
        self._owner: list[HandoffId | None] = [None] * num_blocks
        self._counts = tuple(array("I", bytes(4 * num_blocks)) for _ in Count)
        self._free = array("I", range(num_blocks - 1, -1, -1))
        self._in_state = [num_blocks, 0, 0, 0, 0]
        self._sums = [0, 0, 0]
        self._quarantined_max = 0
        self._staging: dict[Epoch, int] = {}
        self._staging_used = 0
        self._last_epoch = 0
        self._on_room: list[Callable[[], None]] = []

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every release of blocks or staging bytes."""
        self._on_room.append(callback)

    # reservation

    def try_reserve(self, handoff: HandoffId, *, blocks: int, staging_bytes: int) -> Assignment | None:
        """Blocks and staging bytes at once, or nothing at all: half a reservation could wait for its other half."""
        if blocks < 1 or staging_bytes < 0:
            raise Bug(f"a reservation of {blocks} blocks and {staging_bytes} staging bytes", field="blocks")
        # I10: everything the hand-off will need until its commit is counted before any of it is used.
        if blocks > len(self._free) or self._staging_used + staging_bytes > self.staging_bytes:
            return None
        self._last_epoch += 1
        epoch = Epoch(self._last_epoch)
        chosen = tuple(BlockId(self._free.pop()) for _ in range(blocks))
        for block in chosen:
            self._state[block] = BlockState.RESERVED
            self._epoch[block] = epoch
            self._owner[block] = handoff
        self._transfer_sum(BlockState.FREE, BlockState.RESERVED, blocks)
        if staging_bytes:
            self._staging[epoch] = staging_bytes
            self._staging_used += staging_bytes
        self._check()
        return Assignment(blocks=chosen, epoch=epoch)

    def release_staging(self, epoch: Epoch) -> None:
        """The staging bytes reserved under `epoch` are free again."""
        size = self._staging.pop(epoch, None)
        if size is None:
            raise Bug(f"staging of epoch {epoch} released twice, or never reserved", field="epoch")
        self._staging_used -= size
        self._check()
        self._room()

    # a block's life

    def fill(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """reserved → filling, with its filler as an active user."""
        self._move(blocks, epoch, BlockState.RESERVED, BlockState.FILLING)
        self.hold(blocks, epoch, Count.ACTIVE)

    def settle(self, blocks: tuple[BlockId, ...], epoch: Epoch, *, in_use: bool) -> None:
        """filling → resident. The filler's use ends, or passes on to whoever reads on (`in_use`)."""
        self._move(blocks, epoch, BlockState.FILLING, BlockState.RESIDENT)
        if not in_use:
            self.unhold(blocks, epoch, Count.ACTIVE)

    def quarantine(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """Keep the blocks from everybody: somebody may still touch them."""
        self.check_assigned(blocks, epoch)
        for block in blocks:
            self._transfer_sum(self._state[block], BlockState.QUARANTINED, 1)
            self._state[block] = BlockState.QUARANTINED
        self._quarantined_max = max(self._quarantined_max, self._in_state[BlockState.QUARANTINED])
        self._check()

    def free(self, blocks: tuple[BlockId, ...], epoch: Epoch, evidence: Evidence) -> None:
        """Back to the free list: all counts are zero, and `evidence` says that nobody touches the blocks."""
        self.check_assigned(blocks, epoch)
        if evidence in (Evidence.SILENCE, Evidence.CONNECTION_CLOSED, Evidence.LEASE_EXPIRED_MANY_TENANTS):
            raise Bug(f"{evidence} frees no block on any transport", field="evidence")
        grants, active, retention = self._counts
        for block in blocks:
            if grants[block] or active[block] or retention[block]:
                raise Bug(f"block {block} freed with {self._describe(block)}", field="block")
        for block in blocks:
            self._transfer_sum(self._state[block], BlockState.FREE, 1)
            self._state[block] = BlockState.FREE
            self._owner[block] = None
        self._free.extend(reversed(blocks))
        self._check()
        self._room()

    def hold(self, blocks: tuple[BlockId, ...], epoch: Epoch, count: Count) -> None:
        """One reason more to keep each block."""
        self.check_assigned(blocks, epoch)
        counts = self._counts[count]
        for block in blocks:
            counts[block] += 1
        self._sums[count] += len(blocks)

    def unhold(self, blocks: tuple[BlockId, ...], epoch: Epoch, count: Count) -> None:
        """One reason less."""
        self.check_assigned(blocks, epoch)
        counts = self._counts[count]
        for block in blocks:
            if not counts[block]:
                raise Bug(f"block {block}: {count.name.lower()} ended twice", field="block")  # I4
            counts[block] -= 1
        self._sums[count] -= len(blocks)

    # questions

    def check_assigned(self, blocks: tuple[BlockId, ...], epoch: Epoch) -> None:
        """Raise `Bug` unless every block is still assigned under `epoch`."""
        for block in blocks:
            # I2: what acts under an old epoch does not reach a block's next owner.
            if self._epoch[block] != epoch or self._state[block] == BlockState.FREE:
                raise Bug(f"block {block} acted on under epoch {epoch}: {self._describe(block)}", field="epoch")

    def assigned_to(self, block: BlockId, epoch: Epoch) -> bool:
        """Whether `block` is one of this pool's and is assigned under `epoch`; for ids that a peer named."""
        return 0 <= block < self.num_blocks and self._epoch[block] == epoch and self._state[block] != BlockState.FREE

    def owner(self, block: BlockId) -> HandoffId | None:
        """The hand-off that the block is assigned to."""
        return self._owner[block]

    def state(self, block: BlockId) -> BlockState:
        return BlockState(self._state[block])

    def available(self) -> Available:
        return Available(
            blocks=BlockCount(len(self._free)), staging_bytes=ByteCount(self.staging_bytes - self._staging_used)
        )

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
        counted = [self._state.count(state) for state in BlockState]
        free = set(self._free)
        sums = [sum(counts) for counts in self._counts]
        held_free = [block for block in free if self._state[block] != BlockState.FREE or self._owner[block] is not None]
        held_free += [block for block in free if any(counts[block] for counts in self._counts)]
        if counted != self._in_state or sums != self._sums or held_free or len(free) != len(self._free):
            raise Bug(f"recount: {counted} against {self._in_state}, {sums} against {self._sums}, free {held_free}")
        if sum(self._staging.values()) != self._staging_used:
            raise Bug(f"recount: staging {self._staging} against {self._staging_used}")
        self._check()

    # inside

    def _move(self, blocks: tuple[BlockId, ...], epoch: Epoch, before: BlockState, to: BlockState) -> None:
        self.check_assigned(blocks, epoch)
        for block in blocks:
            if self._state[block] != before:
                raise Bug(f"block {block} to {to.name.lower()}: {self._describe(block)}", field="block")
            self._state[block] = to
        self._transfer_sum(before, to, len(blocks))
        self._check()

    def _transfer_sum(self, before: int, to: int, blocks: int) -> None:
        self._in_state[before] -= blocks
        self._in_state[to] += blocks

    def _check(self) -> None:
        # I3: every block is in exactly one state, and the free list is exactly the free ones.
        if sum(self._in_state) != self.num_blocks or self._in_state[BlockState.FREE] != len(self._free):
            raise Bug(f"the pool's sum is {self._in_state} with {len(self._free)} free, of {self.num_blocks}")
        if not 0 <= self._staging_used <= self.staging_bytes:
            raise Bug(f"staging holds {self._staging_used} of {self.staging_bytes} bytes")  # I10

    def _room(self) -> None:
        for callback in self._on_room:
            callback()

    def _describe(self, block: int) -> str:
        counts = ", ".join(f"{count.name.lower()} {self._counts[count][block]}" for count in Count)
        return f"{self.state(BlockId(block)).name.lower()}, {counts}, epoch {self._epoch[block]}"
