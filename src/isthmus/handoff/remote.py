"""A producer in another process, as `seams.Producer`: orders go out, and every answer's type is checked."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from isthmus.core.errors import FrameInvalid
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
    """`call` sends an order and returns what the producer answers, or raises what it says; how is its own matter."""

    def __init__(self, call: Callable[[Order], Awaitable[object]]) -> None:
        self._call = call

    async def prefill(self, order: PrefillOrder) -> PrefillReply:
        return await self._ask(order, PrefillReply)

    async def register(self, order: RegisterOrder) -> None:
        await self._ask(order, Ack)

    async def written(self, order: WrittenOrder) -> None:
        await self._ask(order, Ack)

    async def confirm(self, order: ConfirmOrder) -> ConfirmReply:
        return await self._ask(order, ConfirmReply)

    async def renew(self, order: RenewOrder) -> None:
        await self._ask(order, Ack)

    async def abort(self, order: AbortOrder) -> None:
        await self._ask(order, Ack)

    async def _ask(self, order: Order, kind: type[Answer]) -> Answer:
        answer = await self._call(order)
        if not isinstance(answer, kind):
            raise FrameInvalid(f"answer: got {type(answer).__name__}, wanted {kind.__name__}", field="answer")
        return answer
