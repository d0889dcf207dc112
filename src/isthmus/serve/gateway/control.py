"""The gateway's side of its workers: they dial in, register, pulse, and are dropped when silent or gone."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from isthmus.core.clock import Clock
from isthmus.core.errors import (
    BadInput,
    FrameInvalid,
    IsthmusError,
    NotAuthorised,
    PeerLost,
    Rejected,
    UnknownHandoff,
)
from isthmus.core.limits import CONNECTIONS_PER_EXPORTER_MAX, HANDOFFS_LOGGED_MAX, HANDOFFS_REMEMBERED_MAX
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.serve.channel import Channel
from isthmus.serve.gateway.addresses import Addresses
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.registry import Registry, Seat
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import (
    HandoffReport,
    Hello,
    Message,
    Pulse,
    Snapshot,
    SnapshotOrder,
    TokenEvent,
    Welcome,
)
from isthmus.state.manifest import negotiate_version
from isthmus.state.plan import TransformPlan
from isthmus.transport.tls import Tls

__all__ = ["Control"]

log = structlog.get_logger(__name__)

SNAPSHOT_DEADLINE = Duration.of_seconds(2)


class Control:
    """Accepts workers. `on_token` is told of every token they post."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        on_token: Callable[[TokenEvent, Seat], None],
        *,
        heartbeat: Duration,
        timeout: Duration,
        addresses: Addresses,
        tls: Tls | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._on_token = on_token
        self._heartbeat = heartbeat
        self._timeout = timeout
        self._addresses = addresses
        self._tls = tls
        self._seats: dict[Channel, Seat] = {}
        self._connections = 0
        self._reports: dict[str, HandoffReport] = {}

    async def serve(self, listening: socket.socket) -> None:
        """Accept workers on a bound socket, and watch them, until cancelled."""
        server = await listen(self._accept, sock=listening, tls=self._tls)
        try:
            await self._watch()
        finally:
            server.close()
            for seat in self._registry.seats():
                seat.channel.close("the gateway stops")

    async def _accept(self, link: Link) -> None:
        channel = Channel(link, self._clock, handler=self._handle, posted=self._posted)
        if self._connections >= CONNECTIONS_PER_EXPORTER_MAX:
            channel.close("too many connections")
            return
        self._connections += 1
        try:
            await channel.serve()
        finally:
            self._connections -= 1
            seat = self._seats.pop(channel, None)
            if seat is not None:
                self._registry.drop(seat, "its connection closed")

    async def _handle(self, channel: Channel, message: Message) -> Message:
        if not isinstance(message, Hello) or channel in self._seats:
            raise FrameInvalid(f"call: got {type(message).__name__}, wanted one Hello, first", field="call")
        version = negotiate_version(message.schema_versions)
        channel.peer, channel.greeted = message.member.worker, True
        try:
            channel.prove(self._tls, message.member.worker)
            self._addresses.check(message.member, channel.remote_host)
            self._seats[channel] = self._registry.admit(message.member, channel)
        except Rejected as error:
            log.warning("worker_refused", worker=message.member.worker, field=error.field, reason=str(error))
            raise
        return Welcome(
            schema_version=version, heartbeat_ms=round(self._heartbeat.ms), timeout_ms=round(self._timeout.ms)
        )

    def _posted(self, channel: Channel, message: Message) -> None:
        seat = self._seats.get(channel)
        if seat is None:
            raise FrameInvalid(f"post: {type(message).__name__} before Hello", field="post")
        if isinstance(message, TokenEvent):
            self._on_token(message, seat)
        elif isinstance(message, Pulse):
            seat.blocks = message.blocks
            if seat.unhealthy != message.unhealthy:
                log.warning("worker_health", worker=seat.worker, unhealthy=message.unhealthy)
            seat.unhealthy = message.unhealthy
        elif isinstance(message, HandoffReport):
            if message.consumer != seat.worker:
                raise NotAuthorised(f"consumer: {seat.worker} reports for {message.consumer}", field="consumer")
            self._metrics.on_handoff(message)
            self._reports[message.handoff] = message
            while len(self._reports) > HANDOFFS_REMEMBERED_MAX:
                del self._reports[next(iter(self._reports))]
        else:
            raise FrameInvalid(f"post: a worker does not post {type(message).__name__}", field="post")

    async def _watch(self) -> None:
        """Pulse every member, and drop those that have been silent for too long."""
        while True:
            await self._clock.sleep(self._heartbeat)
            for seat in self._registry.seats():
                silent = self._clock.now() - seat.channel.heard_at
                if silent > self._timeout.ns:
                    self._registry.drop(seat, f"silent for {silent / 1e6:.0f} ms")
                    continue
                with contextlib.suppress(PeerLost):
                    seat.channel.post(Pulse())

    def missing_roles(self) -> list[str]:
        """Roles that no member has that takes anything new."""
        return [
            role
            for role in ("prefill", "decode")
            if all(seat.unhealthy is not None for seat in self._registry.seats(role))
        ]

    def worker_count(self) -> int:
        return len(self._registry.seats())

    def measure(self, metrics: Metrics) -> None:
        """Bring the gauges up to date."""
        metrics.blocks.clear()
        for role in ("prefill", "decode"):
            seats = self._registry.seats(role)
            metrics.workers.labels(role).set(len(seats))
            metrics.unhealthy.labels(role).set(sum(seat.unhealthy is not None for seat in seats))
        for seat in self._registry.seats():
            for state, count in seat.blocks.items():
                metrics.blocks.labels(seat.worker, state).set(count)

    def workers(self) -> list[dict[str, Any]]:
        """Members, as JSON."""
        return [
            {
                "worker": seat.worker,
                "role": seat.member.role,
                "pid": seat.member.process.pid,
                "incarnation": seat.member.incarnation,
                "num_blocks": seat.member.num_blocks,
                "blocks": seat.blocks,
                "unhealthy": seat.unhealthy,
                "context_length": seat.member.context_length,
                "outstanding_tokens": seat.outstanding_tokens,
                "transports": list(seat.member.transports),
                "representation": msgspec.to_builtins(seat.member.representation),
                "identity": msgspec.to_builtins(seat.member.identity),
            }
            for seat in self._registry.seats()
        ]

    def pairs(self) -> list[dict[str, Any]]:
        """The verdict on every producer and consumer."""
        found = []
        for producer in self._registry.seats("prefill"):
            for consumer in self._registry.seats("decode"):
                verdict = self._registry.verdict(producer.worker, consumer.worker)
                found.append(
                    {
                        "producer": producer.worker,
                        "consumer": consumer.worker,
                        "outcome": verdict.outcome.value,
                        "lossless": verdict.lossless,
                        "assumptions": msgspec.to_builtins(verdict.gate.assumptions),
                        "differences": [
                            {
                                "field": d.field,
                                "producer": d.producer,
                                "consumer": d.consumer,
                                "resolution": d.resolution,
                            }
                            for d in verdict.differences
                        ],
                        "plans": [_plan(plan) for plan in verdict.plans],
                        "producer_bytes_per_token": verdict.producer_bytes_per_token,
                        "consumer_bytes_per_token": verdict.consumer_bytes_per_token,
                    }
                )
        return found

    async def handoffs(self, request_id: str, limit: int) -> dict[str, Any]:
        """Who owns what now, by every worker's own ledger, and the hand-offs that were installed lately."""
        installed = [report for report in self._reports.values() if request_id in ("", report.request_id)]
        return {
            "workers": await self._snapshots(SnapshotOrder(limit=limit)),
            "installed": [msgspec.to_builtins(report) for report in installed[-limit:]],
        }

    async def handoff(self, beginning: str) -> dict[str, Any]:
        """One hand-off, by its id or the beginning of it: each side's row with its timeline, and the report.

        Raises:
            UnknownHandoff: nobody knows it, or nobody does any more.
            BadInput: more than one begins so.
        """
        answers = await self._snapshots(SnapshotOrder(handoff=beginning))
        rows = [row for answer in answers.values() for row in _rows(answer, beginning)]
        reports = [report for id_, report in self._reports.items() if id_.startswith(beginning)]
        found = sorted({*(str(row["handoff"]) for row in rows), *(report.handoff for report in reports)})
        silent = {worker: str(answer["error"]) for worker, answer in answers.items() if "error" in answer}
        if not found:
            missing = f"; not asked: {', '.join(silent)}, which did not answer" if silent else ""
            raise UnknownHandoff(
                f"handoff: no worker knows {beginning}; each remembers what is live and the last "
                f"{HANDOFFS_LOGGED_MAX} that ended{missing}",
                field="handoff",
            )
        if len(found) > 1:
            raise BadInput(f"handoff: {len(found)} begin with {beginning}: {', '.join(found[:4])}", field="handoff")
        return {
            "handoff": found[0],
            "sides": sorted(rows, key=lambda row: str(row.get("side")), reverse=True),  # the producer's first
            "installed": msgspec.to_builtins(reports[0]) if reports else None,
            "unanswered": silent,
        }

    async def _snapshots(self, order: SnapshotOrder) -> dict[str, dict[str, Any]]:
        seats = self._registry.seats()
        answers = await asyncio.gather(*(self._snapshot(seat, order) for seat in seats))
        return {seat.worker: answer for seat, answer in zip(seats, answers, strict=True)}

    async def _snapshot(self, seat: Seat, order: SnapshotOrder) -> dict[str, Any]:
        try:
            answer = await within(self._clock, SNAPSHOT_DEADLINE, seat.channel.call(order), "snapshot")
        except IsthmusError as error:
            return {"error": str(error)}
        if not isinstance(answer, Snapshot):
            return {"error": f"answered {type(answer).__name__}"}
        try:
            found = json.loads(answer.json)
        except (ValueError, RecursionError):
            return {"error": "answered something that is not JSON"}
        return found if isinstance(found, dict) else {"error": "answered something that is not an object"}


def _rows(answer: dict[str, Any], beginning: str) -> list[dict[str, Any]]:
    """The rows of a worker's answer; it is a peer's JSON, whatever is in it."""
    listed = [rows for rows in (answer.get("live"), answer.get("ended")) if isinstance(rows, list)]
    return [
        row
        for rows in listed
        for row in rows
        if isinstance(row, dict) and str(row.get("handoff", "")).startswith(beginning)
    ]


def _plan(plan: TransformPlan) -> dict[str, Any]:
    return {
        "fingerprint": plan.fingerprint,
        "outcome": plan.outcome.value,
        "parts": len(plan.parts),
        "ops": sorted({op.__struct_config__.tag for conversion in plan.conversions for op in conversion.ops}),
        "loss": {
            conversion.component: msgspec.to_builtins(conversion.loss)
            for conversion in plan.conversions
            if not conversion.lossless
        },
    }
