"""A producer in another process, as `seams.Producer`: orders go out, and every answer's type is checked."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from isthmus.core.errors import FrameInvalid
from isthmus.core.units import Duration
from isthmus.handoff.orders import (
    AbortOrder,
    Ack,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)

__all__ = ["Order", "RemoteProducer"]

Order = PrefillOrder | RegisterOrder | WrittenOrder | ConfirmOrder | RenewOrder | AbortOrder
Answer = TypeVar("Answer", PrefillReply, ConfirmReply, Ack)


class RemoteProducer:
    """`call` sends an order and returns what the producer answers within the deadline, or raises what it says, or
    DeadlineExceeded; how is its own matter.
    """

    def __init__(self, call: Callable[[Order, Duration], Awaitable[object]]) -> None:
        self._call = call

    async def prefill(self, order: PrefillOrder, deadline: Duration) -> PrefillReply:
        return await self._ask(order, PrefillReply, deadline)

    async def register(self, order: RegisterOrder, deadline: Duration) -> None:
        await self._ask(order, Ack, deadline)

    async def written(self, order: WrittenOrder, deadline: Duration) -> None:
        await self._ask(order, Ack, deadline)

    async def confirm(self, order: ConfirmOrder, deadline: Duration) -> ConfirmReply:
        return await self._ask(order, ConfirmReply, deadline)

    async def renew(self, order: RenewOrder, deadline: Duration) -> None:
        await self._ask(order, Ack, deadline)

    async def abort(self, order: AbortOrder, deadline: Duration) -> None:
        await self._ask(order, Ack, deadline)

    async def _ask(self, order: Order, kind: type[Answer], deadline: Duration) -> Answer:
        answer = await self._call(order, deadline)
        if not isinstance(answer, kind):
            raise FrameInvalid(f"answer: got {type(answer).__name__}, wanted {kind.__name__}", field="answer")
        return answer
