"""One hand-off, in order. If you read one function of Isthmus, read `hand_off`."""

from collections.abc import Callable

from isthmus.handoff.consumer import ConsumerSide
from isthmus.handoff.describe import describe
from isthmus.handoff.orders import PrefillReply
from isthmus.handoff.seams import Producer
from isthmus.handoff.stages import Placed, Released
from isthmus.handoff.watch import Watch

__all__ = ["hand_off"]


async def hand_off(
    placed: Placed,
    producer: Producer,
    consumer: ConsumerSide,
    *,
    watch: Watch,
    on_token: Callable[[PrefillReply], None],
) -> Released:
    """Bring a request's KV from `producer` into `consumer`'s pool, ready to decode, or leave nothing behind.

    `on_token` is told of the token that prefill sampled as soon as it is there. However this ends, every block, lease
    and byte of staging is accounted for: what cannot be confirmed is not installed, and what was reserved is given up.

    Raises:
        Rejected: one side refuses: no room, another model, a representation no plan resolves, a grant that has ended.
        Lost: a peer died, a lease or deadline ran out, or the bytes are in doubt: prefill again, here or elsewhere.
    """
    with watch.stage("reserve"):
        reserved = await consumer.reserve(placed)
    async with consumer.giving_up(reserved, producer):
        with watch.stage("prefill"):
            filled = await consumer.ask_prefill(reserved, producer)
        on_token(filled.reply)
        if filled.reply.finish_reason is not None:
            return await consumer.release_unused(filled)
        with watch.stage("plan"):
            offered = describe(filled)
            planned = consumer.plan(offered)
        async with consumer.renewing(planned, producer):
            with watch.stage("transfer"):
                arrived = await consumer.transfer(planned, producer)
            with watch.stage("verify"):
                verified = await consumer.convert_and_verify(arrived)
            with watch.stage("commit"):
                installed = await consumer.commit(verified, producer)
    return consumer.release(installed)
