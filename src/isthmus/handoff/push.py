"""Push and send at the producer: what consumers have registered meets what has been filled, and is written.

    push   fill ─► wait for the registration, if it has not come yet ─► write
    send   the registration comes with the order ─► fill, and write what is filled meanwhile

Either way one task writes for a hand-off, block by block as far as is filled, from `begin` to `sent`; `stop` ends it
and returns once it touches neither our blocks nor the consumer's image any more. Where the consumer's memory is comes
from the registry, by the name of the transport that it registered; a consumer never says an address.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from isthmus.core.clock import Clock
from isthmus.core.errors import Lost, NotAuthorised, Rejected, TransferFailed
from isthmus.core.ids import BlockId, HandoffId, Incarnation, WorkerId
from isthmus.core.limits import GRANTS_PER_WORKER_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, within
from isthmus.handoff.orders import Registration
from isthmus.handoff.seams import WatchFill
from isthmus.ownership.producer import SourceOwner
from isthmus.ownership.protocol.states import SourceHandoff
from isthmus.state.fields import RegionShape
from isthmus.transport.base import BlockWrite, Lender, Target, Writer
from isthmus.transport.select import Route

__all__ = ["Holder", "Pusher", "RouteTo"]

RouteTo = Callable[[WorkerId, Incarnation, str], Route[Writer]]
"""The way into a consumer's memory by a transport; raises PeerLost, Unsupported."""

Holder = tuple[HandoffId, WorkerId, Incarnation]
"""A hand-off, and the consumer's life that it is for."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Push:
    """One hand-off's writing. `filled`: how many of `blocks` may be written now; all but the last until `whole`."""

    target: Target
    route: Route[Writer]
    blocks: tuple[BlockId, ...]
    filled: int = 0
    written: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def grow(self, filled: int) -> None:
        if filled > self.filled:
            self.filled = filled
            self.more.set()


class Pusher:
    """Writes what this worker fills into what its consumers register."""

    def __init__(
        self,
        owner: SourceOwner,
        lender: Lender,
        route_to: RouteTo,
        clock: Clock,
        *,
        write: Duration,
        lease: Duration,
        filling: WatchFill | None = None,
    ) -> None:
        """`write` is how long one write may take. `lease` is how long a consumer may take after the last one.

        `filling` is the engine, where it says how far it is: without it all is sent at the end.
        """
        self._filling = filling
        self._owner = owner
        self._lender = lender
        self._route_to = route_to
        self._clock = clock
        self._write = write
        self._lease = lease
        self._registered: dict[Holder, asyncio.Future[Registration]] = {}
        self._pushes: dict[HandoffId, _Push] = {}

    # what consumers register

    def register(self, holder: Holder, registration: Registration) -> None:
        """A consumer has memory ready. It may come before or after the order to prefill, and counts once.

        Raises:
            PeerLost, Unsupported: there is no way there by that transport.
        """
        self._route_to(holder[1], holder[2], registration.transport)
        coming = self._coming(holder)
        if not coming.done():
            coming.set_result(registration)

    async def registration(self, holder: Holder, wait: Duration) -> Registration:
        """What this consumer has registered for this hand-off. Raises DeadlineExceeded; TransferFailed: given up."""
        return await within(self._clock, wait, _result(self._coming(holder)), "registration")

    def forget(self, holder: Holder) -> None:
        """The hand-off has begun or ended: no registration is awaited any more."""
        coming = self._registered.pop(holder, None)
        if coming is not None and not coming.done():
            coming.set_exception(TransferFailed("hand-off: given up meanwhile", field="handoff"))
            coming.exception()  # looked at, whether or not somebody waits

    def forget_peer(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A consumer's life is over."""
        for holder in [holder for holder in self._registered if holder[1:] == (worker, incarnation)]:
            self.forget(holder)

    def _coming(self, holder: Holder) -> "asyncio.Future[Registration]":
        if holder not in self._registered:
            if len(self._registered) >= GRANTS_PER_WORKER_MAX:
                self.forget(next(iter(self._registered)))  # the oldest: its order to prefill never came
            self._registered[holder] = asyncio.get_running_loop().create_future()
        return self._registered[holder]

    # writing

    def begin(
        self,
        source: SourceHandoff,
        registration: Registration,
        regions: tuple[RegionShape, ...],
        blocks: Sequence[BlockId],
        fill: Duration,
    ) -> SourceHandoff:
        """Write `blocks` as they are filled, which may take `fill` more. The state returned carries our own grant.

        Raises:
            PeerLost, Unsupported: there is no way there. TransferFailed: the hand-off was given up meanwhile.
            NotAuthorised: something else is registered already.
        """
        route = self._route_to(source.holder, source.holder_incarnation, registration.transport)
        self._owner.register(
            source.handoff,
            grant=registration.grant_id(),
            epoch=registration.fence(),
            holder=source.holder,
            holder_incarnation=source.holder_incarnation,
        )
        target = Target(
            grant=registration.grant_id(),
            epoch=registration.fence(),
            writer=self._owner.worker,
            regions=regions,
            num_blocks=len(blocks),
        )
        push = _Push(target=target, route=route, blocks=tuple(blocks))
        lease = Duration(fill.ns + self._write.ns + self._lease.ns)
        published = self._owner.publish(source.handoff, lease)  # from here on `sent` is owed
        self._pushes[source.handoff] = push
        push.task = asyncio.create_task(self._run(push))
        push.task.add_done_callback(lambda task: self._ended(source.handoff, push, task))
        return published

    def watch(self, handoff: HandoffId, block_size: int, have_tokens: int, prefix_blocks: int) -> None:
        """Write whole blocks as they are filled, those of the prefix at once, and the last of all when all are."""

        def filled(tokens: int) -> None:
            push = self._pushes.get(handoff)
            if push is not None:
                push.grow(min(tokens // block_size - have_tokens // block_size, len(push.blocks) - 1))

        filled(prefix_blocks * block_size)
        if self._filling is not None:
            self._filling.watch_fill(handoff, filled)

    def whole(self, handoff: HandoffId) -> None:
        """All is filled."""
        push = self._pushes.get(handoff)
        if push is not None:
            push.grow(len(push.blocks))

    async def written(self, holder: Holder) -> None:
        """Return once the last byte is in the consumer's image.

        Raises:
            NotAuthorised: it is not this consumer's.
            TransferFailed: it never will be.
        """
        handoff, worker, incarnation = holder
        state = self._owner.state(handoff)
        if (state.holder, state.holder_incarnation) != (worker, incarnation):
            raise NotAuthorised("the hand-off is of another worker or incarnation", field="holder")
        push = self._pushes.get(handoff)
        if push is not None and push.task is not None:
            await asyncio.wait({push.task})
            self._ended(handoff, push, push.task)
            if not push.task.cancelled():
                push.task.result()
        if not self._owner.state(handoff).sent:
            raise TransferFailed("write: given up", field="handoff")

    async def stop(self, handoff: HandoffId) -> None:
        """End a hand-off's writing; return once nothing of it touches our blocks."""
        push = self._pushes.get(handoff)
        if push is not None and push.task is not None:
            push.task.cancel()
            await settle(push.task)

    async def close(self) -> None:
        """End all writing."""
        for handoff in tuple(self._pushes):
            await self.stop(handoff)

    async def _run(self, push: _Push) -> None:
        while push.written < len(push.blocks):
            while push.filled <= push.written:
                push.more.clear()
                await push.more.wait()
            start, stop = push.written, push.filled
            request = BlockWrite(target=push.target, start=start, stop=stop)
            blocks, route = push.blocks[start:stop], push.route
            await route.mover.write(request, route.endpoint, self._lender, blocks, self._write)
            push.written = stop

    def _ended(self, handoff: HandoffId, push: _Push, task: "asyncio.Task[None]") -> None:
        """Whoever notices first that the writing has ended tells the owner. Also where it was ended before it began."""
        if self._pushes.get(handoff) is not push:
            return
        del self._pushes[handoff]
        error = None if task.cancelled() else task.exception()
        self._owner.sent(handoff, ok=error is None and push.written == len(push.blocks))
        if error is not None and not isinstance(error, Rejected | Lost):
            asyncio.get_running_loop().call_exception_handler({"message": "a push failed", "exception": error})


async def _result(coming: "asyncio.Future[Registration]") -> Registration:
    return await asyncio.shield(coming)
