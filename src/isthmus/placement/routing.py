"""The routing policy: which producer prefills and which consumer decodes one request. Pure, and used wherever requests
are routed.

Least outstanding work first (tokens of requests under way), then fewest requests ever assigned, so that idle workers
take turns. Workers to avoid (they have just failed this request) come last; a pair must be able to exchange KV.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from isthmus.core.ids import WorkerId

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker as the policy sees it."""

    worker: WorkerId
    outstanding_tokens: int
    assigned: int


def choose(
    producers: Sequence[Candidate],
    consumers: Sequence[Candidate],
    compatible: Callable[[WorkerId, WorkerId], bool],
    *,
    avoid: Collection[WorkerId] = (),
) -> tuple[WorkerId, WorkerId] | None:
    """(producer, consumer), or None where no two can exchange KV."""

    def order(candidate: Candidate) -> tuple[bool, int, int, str]:
        return (candidate.worker in avoid, candidate.outstanding_tokens, candidate.assigned, candidate.worker)

    for consumer in sorted(consumers, key=order):
        for producer in sorted(producers, key=order):
            if compatible(producer.worker, consumer.worker):
                return producer.worker, consumer.worker
    return None
