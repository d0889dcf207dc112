"""Which tokens the next step computes. Knows requests and rows, not tensors.

Decode rows come first and take turns when there are more than fit. Prefill fills what is left, first come first
served, in chunks of any size. So that neither starves, a waiting prefill is left a quarter of the step.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from isthmus.core.ids import RequestId
from isthmus.engines.embedded.request import EngineRequest

__all__ = ["Active", "Chunk", "Scheduler"]


@dataclass(slots=True, kw_only=True)
class Active:
    """A request in the engine, between steps: tokens so far, how many have their KV, and digests of what was filled."""

    request: EngineRequest
    tokens: list[int]
    computed: int
    sampled: int
    decoding: bool
    digests: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, request: EngineRequest) -> "Active":
        return cls(
            request=request,
            tokens=list(request.token_ids),
            computed=request.computed_tokens,
            sampled=request.sampled_before,
            decoding=request.start == "decode",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens [start, stop) of one request, to be computed in the next step."""

    active: Active
    start: int
    stop: int

    @property
    def samples(self) -> bool:
        """Whether the chunk holds the last known token, whose logits give the next."""
        return self.stop == len(self.active.tokens)

    def __len__(self) -> int:
        return self.stop - self.start


class Scheduler:
    """Requests by id, and two queues. One thread."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._held: dict[RequestId, Active] = {}
        self._prefill: deque[Active] = deque()
        self._decode: deque[Active] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._held

    def __iter__(self) -> Iterator[Active]:
        return iter(tuple(self._held.values()))

    def add(self, active: Active) -> None:
        self._held[active.request.request_id] = active
        (self._decode if active.decoding else self._prefill).append(active)

    def remove(self, request_id: RequestId) -> None:
        """Forget a request; no later step names it. Unknown ids are ignored."""
        active = self._held.pop(request_id, None)
        if active is None:
            return
        queue = self._decode if active.decoding else self._prefill
        queue.remove(active)

    def to_decode(self, active: Active) -> None:
        """The prompt is computed: from now on the request takes one row a step."""
        self._prefill.remove(active)
        active.decoding = True
        self._decode.append(active)

    def next_step(self) -> tuple[Chunk, ...]:
        """At most `step_tokens` tokens; empty when there is nothing to do."""
        room = self._step_tokens
        decode_rows = room - room // 4 if self._prefill else room
        chunks: list[Chunk] = []
        for _ in range(min(decode_rows, len(self._decode))):
            active = self._decode.popleft()
            self._decode.append(active)
            chunks.append(Chunk(active=active, start=active.computed, stop=active.computed + 1))
        room -= len(chunks)
        for active in self._prefill:
            if not room:
                break
            stop = min(len(active.tokens), active.computed + room)
            chunks.append(Chunk(active=active, start=active.computed, stop=stop))
            room -= stop - active.computed
        return tuple(chunks)
