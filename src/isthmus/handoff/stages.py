"""The stages of a hand-off. Each is made from the one before and never changes:

    Request → Placed → Reserved → Filled → Offered → Planned → Arrived → Verified → Installed → Released
    any of them → Abandoned

(`Filled` may go straight to `Released`: where the first token ends the answer, no KV needs to cross.)
"""

from collections.abc import Mapping

import msgspec

from isthmus.core.ids import BlockId, HandoffId, Incarnation, RegionId, WorkerId
from isthmus.core.units import ByteCount
from isthmus.handoff.orders import PrefillReply
from isthmus.handoff.request import Request
from isthmus.kernels.report import Verified as Checked
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.portability.verdict import Verdict
from isthmus.state.plan import TransformPlan
from isthmus.state.runtime_kv_state import RuntimeKVState

__all__ = ["Arrived", "Filled", "Installed", "Offered", "Placed", "Planned", "Released", "Reserved", "Verified"]


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """The two workers are chosen. The producer is named by its life: another one of that name is another peer."""

    request: Request
    producer: WorkerId
    producer_incarnation: Incarnation


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """The consumer holds blocks for the prompt and its whole growth, and staging, before prefill is asked.

    The first `held_blocks` of them hold the KV of the first `have_tokens` already, and are shared: nobody writes there.
    `num_parts` will cross, moved as `mode` says. `names` are of the prompt's whole blocks, to be kept by.
    """

    placed: Placed
    handoff: HandoffId
    blocks: tuple[BlockId, ...]
    mode: TriggerMode = TriggerMode.PULL
    num_parts: int = 1
    held_blocks: int = 0
    have_tokens: int = 0
    names: tuple[bytes, ...] = ()

    @property
    def own_blocks(self) -> tuple[BlockId, ...]:
        """Those that this hand-off fills."""
        return self.blocks[self.held_blocks :]


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """The producer has filled its blocks and sampled a token."""

    reserved: Reserved
    reply: PrefillReply


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """The producer's manifest, parsed, and found to be about this hand-off."""

    filled: Filled
    state: RuntimeKVState


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """The gate has passed and every layer group has a plan."""

    offered: Offered
    verdict: Verdict
    plans: tuple[TransformPlan, ...]


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """The last byte is in staging: per region a pool image of just the blocks that crossed.

    `image` is empty in what later stages carry: once converted, the staging is nobody's any more.
    """

    planned: Planned
    image: Mapping[RegionId, memoryview]
    wire_bytes: ByteCount
    transport: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Converted into the consumer's blocks; digests hold. Not yet visible to decode."""

    arrived: Arrived
    checked: tuple[Checked, ...]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """Committed: the owner has confirmed the epoch after the last byte. Decode may start."""

    verified: Verified


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """The hand-off is over: source blocks and staging are free. `installed` is None where no KV had to cross."""

    filled: Filled
    installed: Installed | None
