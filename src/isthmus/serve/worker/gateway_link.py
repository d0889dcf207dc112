"""A worker's connection to its gateway: register, serve, pulse; and again, when the gateway comes back."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import CapacityExceeded, FrameInvalid, Lost, PeerLost
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.serve.channel import Channel, Handler, connect
from isthmus.serve.messages import CancelRequest, Fenced, Hello, Member, Members, Message, Pulse, Welcome
from isthmus.serve.running import supervised
from isthmus.serve.tls import GATEWAY
from isthmus.serve.worker.membership import Membership
from isthmus.state.manifest import SCHEMA_VERSIONS_SPOKEN
from isthmus.transport.tls import Tls

__all__ = ["GatewayLink"]

log = structlog.get_logger(__name__)

CONNECT_DEADLINE = Duration.of_seconds(5)
BACKOFF_FIRST = Duration.of_ms(100)
BACKOFF_MAX = Duration.of_seconds(2)


class GatewayLink:
    """Dials the gateway and stays with it. When it is gone, its requests are given up: Channel cancels them."""

    def __init__(
        self,
        member: Member,
        membership: Membership,
        clock: Clock,
        *,
        host: str,
        port: int,
        handler: Handler,
        on_cancel: Callable[[CancelRequest], None],
        pulse: Callable[[], Pulse],
        name_wait: Duration,
        tls: Tls | None = None,
    ) -> None:
        """`name_wait`: how long to ask again where the name is still held by a life before this one."""
        self._member = member
        self._membership = membership
        self._clock = clock
        self._host = host
        self._port = port
        self._handler = handler
        self._on_cancel = on_cancel
        self._say = pulse
        self._name_wait = name_wait
        self._tls = tls
        self._channel: Channel | None = None

    def post(self, message: Message) -> None:
        """Say something to the gateway. Raises PeerLost where there is none now."""
        if self._channel is None:
            raise PeerLost("gateway: not connected", field="gateway")
        self._channel.post(message)

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            IncarnationFenced: the gateway has declared this life over: start anew.
            Rejected: the gateway refuses this worker; the message says what would be right.
        """
        backoff = BACKOFF_FIRST
        refused_at: Instant | None = None
        while True:
            try:
                await self._session()
                backoff, refused_at = BACKOFF_FIRST, None
            except Lost as error:
                log.info("gateway_unreachable", reason=str(error), retry_ms=backoff.ms)
            except CapacityExceeded as error:
                refused_at = self._clock.now() if refused_at is None else refused_at
                if error.retry_after is None or self._clock.now() - refused_at > self._name_wait.ns:
                    raise
                log.info("gateway_refused_for_now", reason=str(error), retry_ms=error.retry_after.ms)
                backoff = error.retry_after
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MAX)

    async def _session(self) -> None:
        channel = await connect(
            self._host,
            self._port,
            self._clock,
            handler=self._handler,
            posted=self._posted,
            peer=GATEWAY,
            deadline=CONNECT_DEADLINE,
            tls=self._tls,
        )
        running = asyncio.create_task(channel.run())
        try:
            hello = Hello(member=self._member, schema_versions=SCHEMA_VERSIONS_SPOKEN)
            welcome = await within(self._clock, CONNECT_DEADLINE, channel.call(hello), "hello to the gateway")
            if not isinstance(welcome, Welcome):
                raise FrameInvalid(f"hello: answered {type(welcome).__name__}, wanted Welcome", field="hello")
            self._channel = channel
            log.info("registered", gateway=f"{self._host}:{self._port}")
            async with supervised(self._pulse(channel, welcome)):
                await asyncio.wait({running})
            log.warning("gateway_lost")
        finally:
            self._channel = None
            channel.close()
            await asyncio.wait({running})

    async def _pulse(self, channel: Channel, welcome: Welcome) -> None:
        """Say that we live, and notice when the gateway does not."""
        timeout = Duration.of_ms(welcome.timeout_ms)
        while not channel.closed:
            with contextlib.suppress(PeerLost):
                channel.post(self._say())
            await self._clock.sleep(Duration.of_ms(welcome.heartbeat_ms))
            if self._clock.now() - channel.heard_at > timeout.ns:
                channel.close(f"silent for more than {timeout}")

    def _posted(self, channel: Channel, message: Message) -> None:
        if isinstance(message, Members):
            self._membership.update(message)
        elif isinstance(message, Fenced):
            self._membership.fenced(message)
        elif isinstance(message, CancelRequest):
            self._on_cancel(message)
        elif not isinstance(message, Pulse):
            raise FrameInvalid(f"post: a gateway does not post {type(message).__name__}", field="post")
