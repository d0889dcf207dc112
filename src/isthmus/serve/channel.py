"""A duplex channel of msgpack frames between two processes: calls with answers, and posts without.

A frame of its link (`serve/link.py`) is a msgpack `[kind, id, message]`. One that is too large or does not parse closes
the channel. When the channel closes, every call under way fails with PeerLost, and every handler of a peer's
call is cancelled: a peer that is gone wants nothing any more.
"""

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import (
    Bug,
    CapacityExceeded,
    DeadlineExceeded,
    FrameInvalid,
    IsthmusError,
    ManifestInvalid,
    NotAuthorised,
    PeerLost,
    error_named,
)
from isthmus.core.limits import (
    CALL_BYTES_IN_FLIGHT_MAX,
    CALLS_IN_FLIGHT_MAX,
    CONTROL_FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    HELLO_MS_MAX,
    OFFER_BYTES_MAX,
    WRITE_BUFFER_BYTES_MAX,
)
from isthmus.core.units import Duration
from isthmus.core.waiting import begin, within
from isthmus.serve.answer import Answer
from isthmus.serve.link import Link
from isthmus.serve.messages import LARGE, Failure, Message
from isthmus.serve.running import report_bug
from isthmus.serve.versions import PROTOCOL_VERSION, Conversation
from isthmus.transport.tls import HANDSHAKE_FAILED, Proof, Tls

__all__ = ["Channel", "connect"]

log = structlog.get_logger(__name__)

_CALL, _ANSWER, _POST = 0, 1, 2


class _Frame(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    kind: int
    id: int
    message: Message


class _Unread(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A frame of a version that is not ours, or not known yet."""

    kind: int
    id: int
    message: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)
_unread_decoder = msgspec.msgpack.Decoder(_Unread)


def decode_frame(body: bytes, conversation: Conversation | None = None) -> _Frame:
    """A frame without its length. Raises FrameInvalid; ManifestInvalid where it greets in no version of ours."""
    try:
        if conversation is None or conversation.version == PROTOCOL_VERSION:
            frame = _decoder.decode(body)
        else:
            unread = _unread_decoder.decode(body)
            frame = _Frame(unread.kind, unread.id, conversation.read(unread.message))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameInvalid(f"frame: {error}", field="frame") from error
    if len(body) > CONTROL_FRAME_BYTES_MAX and not isinstance(frame.message, LARGE):
        raise FrameInvalid(
            f"frame: {len(body)} bytes of {type(frame.message).__name__}, wanted at most {CONTROL_FRAME_BYTES_MAX}",
            field="frame",
        )
    return frame


Handler = Callable[["Channel", Message], Awaitable[Message]]
Posted = Callable[["Channel", Message], None]


class Channel:
    """One connection. `run` reads until it closes; `call` and `post` write. Of one event loop."""

    def __init__(self, link: Link, clock: Clock, *, handler: Handler, posted: Posted) -> None:
        """A connection that was accepted has not greeted yet, and may say little until it has."""
        self._link = link
        self._ended: asyncio.Future[None] | None = None
        self._clock = clock
        self._handler = handler
        self._posted = posted
        self._calls: dict[int, Answer[Message]] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._bytes_handling = 0
        self._next_id = 0
        self._closed: str | None = None
        self.heard_at: Instant = clock.now()
        self.peer = ""
        self.greeted = False
        self.conversation = Conversation()

    @property
    def closed(self) -> bool:
        return self._closed is not None

    async def run(self) -> None:
        """Read and dispatch until the channel closes; then wait for what was cancelled by that."""
        reason = "the peer closed the connection"
        self._ended = asyncio.get_running_loop().create_future()
        self._link.receive(self)
        try:
            await self._ended
        except (FrameInvalid, NotAuthorised) as error:
            reason = str(error)
            log.warning("frame_refused", peer=self.peer, reason=reason)
        finally:
            self.close(reason)
            if self._handling:
                await asyncio.wait(set(self._handling))

    async def serve(self) -> None:
        """As `run`, for a connection that was accepted: one that has not said who it is in time is closed."""
        timer = self._clock.call_later(Duration.of_ms(HELLO_MS_MAX), self._expect_hello)
        try:
            await self.run()
        finally:
            timer.cancel()

    def _expect_hello(self) -> None:
        if not self.greeted:
            self.close(f"no hello within {HELLO_MS_MAX} ms")

    async def call(self, message: Message, deadline: Duration | None = None) -> Message:
        """Send, and return the answer.

        Raises:
            PeerLost: the channel is or becomes closed.
            DeadlineExceeded: none has come by then.
            IsthmusError: as the peer says, by name.
        """
        self._next_id += 1
        id_ = self._next_id
        answer: Answer[Message] = Answer()
        self._calls[id_] = answer
        timer = None
        try:
            self._write(_CALL, id_, message)
            if deadline is not None:
                late = DeadlineExceeded(f"{type(message).__name__}: no answer within {deadline}", field="deadline")
                timer = self._clock.call_later(deadline, functools.partial(answer.give_up, late))
            return await answer
        finally:
            del self._calls[id_]
            if timer is not None:
                timer.cancel()

    def post(self, message: Message) -> None:
        """Send without an answer. Raises PeerLost where the channel is closed."""
        self._write(_POST, 0, message)

    def close(self, reason: str = "closed here") -> None:
        """Close, now. Calls under way fail, handlers are cancelled."""
        if self._closed is not None:
            return
        self._closed = reason
        for answer in self._calls.values():
            answer.give_up(self._lost())
        for task in self._handling:
            task.cancel()
        self._link.close()

    def _lost(self) -> PeerLost:
        return PeerLost(f"{self.peer or 'peer'}: {self._closed}", field="channel")

    def prove(self, tls: Tls | None, claimed: str) -> Proof | None:
        """What the peer's certificate says, which must be for the name it claims; None where TLS is off.

        Raises:
            NotAuthorised: it is for another name, or of another deployment.
        """
        return None if tls is None else tls.check_name(self._link, claimed)

    @property
    def remote_host(self) -> str:
        """The address that the peer connected from."""
        name = self._link.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    # the link's

    @property
    def frame_bytes_max(self) -> int:
        """As `Receiver` has it: who has not said who it is may not say much."""
        return OFFER_BYTES_MAX if self.greeted else HELLO_BYTES_MAX

    def received(self, body: bytes) -> None:
        """A frame has come. Raises FrameInvalid, NotAuthorised: it ends the channel."""
        if self._closed is not None:
            return
        self.heard_at = self._clock.now()
        try:
            frame = decode_frame(body, self.conversation)
        except ManifestInvalid as error:  # who speaks no version of ours is told which those are
            self._answer(_unread_decoder.decode(body).id, _failure_of(error))
            raise FrameInvalid(str(error), field=error.field) from error
        self._dispatch(frame, len(body))

    def ended(self, error: Exception | None) -> None:
        """No frame comes any more: `run` ends, with what the last one raised."""
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    # inside

    def _dispatch(self, frame: _Frame, size: int) -> None:
        if frame.kind == _POST:
            self._posted(self, frame.message)
        elif frame.kind == _ANSWER:
            answer = self._calls.get(frame.id)
            if answer is None or answer.done:
                return  # the caller gave up waiting
            if isinstance(frame.message, Failure):
                answer.set_exception(_error_of(frame.message))
            else:
                answer.set_result(frame.message)
        elif frame.kind == _CALL:
            full = len(self._handling) >= CALLS_IN_FLIGHT_MAX or self._bytes_handling + size > CALL_BYTES_IN_FLIGHT_MAX
            self._bytes_handling += size
            waiting = begin(self._handle(frame, size, full=full))  # most are answered at once, and take no task
            if waiting is not None:
                self._handling.add(waiting)
        else:
            raise FrameInvalid(f"frame.kind: got {frame.kind}, wanted 0, 1 or 2", field="frame.kind")

    async def _handle(self, frame: _Frame, size: int, *, full: bool) -> None:
        try:
            if full:
                raise CapacityExceeded(
                    f"calls: more than {CALLS_IN_FLIGHT_MAX}, or {CALL_BYTES_IN_FLIGHT_MAX} bytes of them, are under "
                    "way on one channel",
                    field="calls",
                )
            answer = await self._handler(self, frame.message)
        except Bug as bug:
            answer = _failure_of(bug)
            report_bug(bug)
        except IsthmusError as error:
            answer = _failure_of(error)
        except Exception as error:
            log.error("handler_failed", call=type(frame.message).__name__, exc_info=True)
            answer = Failure(code="Lost", message=f"{type(error).__name__}: {error}"[:4096])
        finally:
            self._bytes_handling -= size
            task = asyncio.current_task()
            if task is not None:
                self._handling.discard(task)
        self._answer(frame.id, answer)

    def _answer(self, id_: int, message: Message) -> None:
        if self._closed is not None:
            return
        try:
            self._write(_ANSWER, id_, message)
        except FrameInvalid as error:  # too large: the caller is answered all the same
            self._write(_ANSWER, id_, _failure_of(error))

    def _write(self, kind: int, id_: int, message: Message) -> None:
        if self._closed is not None:
            raise self._lost()
        if self.conversation.version == PROTOCOL_VERSION:
            body = _encoder.encode(_Frame(kind, id_, message))
        else:
            body = _encoder.encode(_Unread(kind, id_, msgspec.Raw(self.conversation.written(message))))
        bound = OFFER_BYTES_MAX if isinstance(message, LARGE) else CONTROL_FRAME_BYTES_MAX
        if len(body) > bound:
            raise FrameInvalid(
                f"{type(message).__name__}: {len(body)} bytes, wanted at most {bound}", field=type(message).__name__
            )
        if self._link.write(body) > WRITE_BUFFER_BYTES_MAX:
            self.close(f"the peer is too slow: more than {WRITE_BUFFER_BYTES_MAX} bytes wait for it")


async def connect(
    host: str,
    port: int,
    clock: Clock,
    *,
    handler: Handler,
    posted: Posted,
    peer: str,
    deadline: Duration,
    tls: Tls | None = None,
    version: int = PROTOCOL_VERSION,
) -> Channel:
    """Open a channel to `peer`, which speaks `version`. The caller runs it.

    Raises:
        PeerLost: nobody listens there in time, or not with TLS.
        NotAuthorised: who listens there proves another name than `peer`, or none that we believe.
    """
    secure = tls.client if tls is not None else None
    opening = asyncio.get_running_loop().create_connection(Link, host, port, ssl=secure)
    try:
        _, link = await within(clock, deadline, opening, f"connect to {peer}")
    except ssl.SSLCertVerificationError as error:
        raise NotAuthorised(f"{peer} at {host}:{port}: {error.verify_message}", field="certificate") from error
    except ssl.SSLError as error:
        raise PeerLost(f"{peer} at {host}:{port}: {HANDSHAKE_FAILED}: {error.reason}", field="channel") from error
    except OSError as error:
        raise PeerLost(f"{peer} at {host}:{port}: {error.strerror or error}", field="channel") from error
    channel = Channel(link, clock, handler=handler, posted=posted)
    channel.peer, channel.greeted = peer, True  # it was we who chose whom to call
    channel.conversation.version = version
    try:
        channel.prove(tls, peer)
    except NotAuthorised:
        channel.close("it is not who was called")
        raise
    return channel


def _failure_of(error: IsthmusError) -> Failure:
    retry = getattr(error, "retry_after", None)
    return Failure(
        code=error.code,
        message=str(error)[:4096],
        field=error.field[:4096],
        retry_after_ms=retry.ms if retry is not None else None,
    )


def _error_of(failure: Failure) -> IsthmusError:
    error = error_named(failure.code, failure.message, field=failure.field)
    if isinstance(error, CapacityExceeded) and failure.retry_after_ms is not None:
        error.retry_after = Duration.of_ms(failure.retry_after_ms)
    return error
