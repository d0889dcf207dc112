"""What a seed draws before anything runs: the size of its world, and which kinds of fault are on, and how often.

Not every kind in every world (swarm testing): a fault that is everywhere hides what is found only without it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from isthmus.core.clock import Chance
from isthmus.core.units import Duration
from isthmus.lab.seeds.engine import Pace
from isthmus.lab.seeds.forms import FORMS, Form
from isthmus.lab.seeds.loop import Order
from isthmus.ownership.protocol.drain import TransportKind
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["PROCESS_FAULTS", "Fault", "Mix", "Prompt", "draw_mix"]


class Fault(enum.StrEnum):
    """Every kind of fault that the simulation knows."""

    # of a message
    DROP_REQUEST = "drop_request"
    DROP_ANSWER = "drop_answer"
    DUPLICATE = "duplicate"
    DELAY = "delay"  # for longer than others: so it also comes out of order
    SLOW_RENEWAL = "slow_renewal"
    LOST_NOTICE = "lost_notice"  # that a life is over: until the world heals
    STALE_VIEW = "stale_view"  # of who is a member: a restarted worker goes by its old incarnation and endpoint
    # of a copy, by whoever makes it
    FLIP_BIT = "flip_bit"
    TEAR = "tear"
    DROP_READ = "drop_read"
    DELAY_READ = "delay_read"
    LATE_WRITE = "late_write"  # after its answer a writer writes again
    # of a process, or of the way between two
    CRASH = "crash"
    CRASH_AT_AWAIT = "crash_at_await"
    PAUSE = "pause"
    CLOCK_JUMP = "clock_jump"
    SUSPECT = "suspect"  # a life that goes on is declared over
    BREAK_LINK = "break_link"
    PARTITION = "partition"
    PARTITION_ONE_WAY = "partition_one_way"
    CANCEL = "cancel"  # by the client


PROCESS_FAULTS = (
    Fault.CRASH,
    Fault.CRASH_AT_AWAIT,
    Fault.PAUSE,
    Fault.CLOCK_JUMP,
    Fault.SUSPECT,
    Fault.BREAK_LINK,
    Fault.PARTITION,
    Fault.PARTITION_ONE_WAY,
    Fault.CANCEL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request to come."""

    tenant: str
    token_ids: tuple[int, ...]
    max_tokens: int
    arrives: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """One seed's world. `rates`: of messages and copies, the share that is hit; of process faults, how many."""

    lease: Duration
    latency: Duration
    pace: Pace
    order: Order
    transport: TransportKind
    mode: TriggerMode
    sole_tenant: bool
    skewed: bool
    producers: tuple[Form, ...]
    consumers: tuple[Form, ...]
    producer_blocks: int
    consumer_blocks: int
    images_staged: int
    chunk_bytes: int
    prompts: tuple[Prompt, ...]
    faulty: Duration
    rates: Mapping[Fault, float]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, the probe of the healed world among them."""
        return _longest(self.prompts)

    def rate(self, fault: Fault) -> float:
        return self.rates.get(fault, 0.0)


def draw_mix(chance: Chance) -> Mix:
    """A world."""
    lease = Duration.of_ms(chance.pick((200, 400, 1000, 2000)))
    faulty = lease * chance.between(1, 4)
    tenants = chance.pick((1, 1, 2))
    prompts = _prompts(chance, tenants, faulty)
    forms = FORMS if chance.happens(0.7) else FORMS[:1]
    longest = _longest(prompts)
    return Mix(
        lease=lease,
        latency=lease / chance.pick((20, 50, 200)),
        pace=Pace(
            step=lease / chance.pick((4, 10, 30, 100)),
            prefill_tokens=chance.pick((2, 4, 8)),
            convert_tokens=chance.pick((4, 20)),
        ),
        order=chance.pick(tuple(Order)),
        transport=chance.pick(_TRANSPORTS),
        mode=chance.pick(_MODES),
        sole_tenant=tenants == 1 and chance.happens(0.6),
        skewed=chance.happens(0.5),
        producers=tuple(chance.pick(forms) for _ in range(chance.pick((1, 1, 2, 3)))),
        consumers=tuple(chance.pick(forms) for _ in range(chance.pick((1, 1, 2, 3)))),
        producer_blocks=-(-longest // 2) + chance.pick((0, 2, 6, 12)),
        consumer_blocks=-(-longest // 2) + chance.pick((0, 2, 6, 12)),
        images_staged=chance.pick((1, 2, 4)),
        chunk_bytes=chance.pick((128, 512, 4096)),
        prompts=prompts,
        faulty=faulty,
        rates=_rates(chance),
    )


def _longest(prompts: tuple[Prompt, ...]) -> int:
    return max(8, *(len(prompt.token_ids) + prompt.max_tokens for prompt in prompts))


_MODES = (TriggerMode.PULL, TriggerMode.PULL, TriggerMode.PUSH, TriggerMode.SEND)
_TRANSPORTS = (TransportKind.MEMORY, TransportKind.SHM, TransportKind.SHM, TransportKind.TCP)


def _prompts(chance: Chance, tenants: int, faulty: Duration) -> tuple[Prompt, ...]:
    shared = tuple(chance.below(100) for _ in range(chance.pick((0, 0, 3, 8))))
    return tuple(
        Prompt(
            tenant=f"tenant-{chance.below(tenants)}",
            token_ids=(*shared, *(chance.below(100) for _ in range(1 + chance.below(8)))),
            max_tokens=chance.pick((1, 2, 3, 6)),
            arrives=faulty * chance.share(),
        )
        for _ in range(chance.pick((2, 2, 2, 3, 3, 5)))
    )


def _rates(chance: Chance) -> dict[Fault, float]:
    """One world in ten is without faults; in the others each kind is on in one of three."""
    rates: dict[Fault, float] = {}
    if chance.happens(0.1):
        return rates
    for fault in Fault:
        if not chance.happens(0.33):
            continue
        if fault in PROCESS_FAULTS:
            rates[fault] = float(1 + chance.below(2))
        else:
            rates[fault] = chance.pick((0.03, 0.1, 0.3))
    return rates
