"""The gateway's process: an HTTP server for clients and a control server for workers."""

import errno
import socket
from pathlib import Path

import structlog
import uvicorn

from isthmus.core.clock import SystemClock
from isthmus.core.errors import ConfigInvalid
from isthmus.core.units import Duration
from isthmus.engines.embedded.shape import read_model_shape
from isthmus.engines.text import load_tokenizer
from isthmus.serve.config import ServeConfig
from isthmus.serve.gateway.addresses import Addresses
from isthmus.serve.gateway.answers import Answerer
from isthmus.serve.gateway.app import build_app
from isthmus.serve.gateway.control import Control
from isthmus.serve.gateway.dispatch import Dispatcher
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.registry import Registry
from isthmus.serve.gateway.retries import RetryBudget
from isthmus.serve.running import supervised
from isthmus.serve.tls import GATEWAY, load_tls

__all__ = ["serve_gateway"]

log = structlog.get_logger(__name__)


async def serve_gateway(config: ServeConfig, model: Path) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigInvalid: a port is taken, or the model directory is not one.
    """
    settings, clock, metrics = config.gateway, SystemClock(), Metrics()
    shape = read_model_shape(model)
    registry = Registry()
    dispatcher = Dispatcher(
        registry,
        clock,
        metrics,
        attempts_max=settings.attempts_max,
        worker_wait=Duration.of_ms(settings.worker_wait_ms),
        request_deadline=Duration.of_ms(config.deadlines.request_ms),
        retries=RetryBudget(
            clock,
            ratio=settings.retry_ratio,
            floor_per_second=settings.retry_floor_per_second,
            burst=settings.retry_burst,
        ),
    )
    control = Control(
        registry,
        clock,
        metrics,
        dispatcher.on_token,
        heartbeat=Duration.of_ms(settings.heartbeat_ms),
        timeout=Duration.of_ms(settings.heartbeat_timeout_ms),
        addresses=Addresses(config),
        tls=load_tls(config.tls, GATEWAY),
    )
    lengths = [pool.context_length or shape.max_position_embeddings for pool in config.pools]
    answerer = Answerer(
        dispatcher,
        load_tokenizer(model),
        clock,
        metrics,
        model=config.served_model_name or shape.lineage.base_model,
        context_length=min(*lengths, shape.max_position_embeddings),
        vocab_size=shape.vocab_size,
        max_tokens_default=settings.max_tokens_default,
        allow_pins=settings.allow_pins,
    )
    app = build_app(answerer, control, metrics, requests_in_flight_max=settings.requests_in_flight_max)
    listening = _bind(settings.host, settings.port, "gateway.port")
    control_listening = _bind(config.control_host, settings.control_port, "gateway.control_port")
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, lifespan="off", access_log=False)
    )
    log.info("gateway_listening", host=settings.host, port=settings.port, control_port=settings.control_port)
    async with supervised(control.serve(control_listening)):
        await server.serve(sockets=[listening])


def _bind(host: str, port: int, field: str) -> socket.socket:
    """A bound socket. Raises ConfigInvalid where the port is taken or the address is not ours."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # two that are bound and do not listen yet may share a port; that must not show only later
    except OSError as error:
        bound.close()
        said = (
            "is in use; stop what listens there or choose another"
            if error.errno == errno.EADDRINUSE
            else error.strerror
        )
        raise ConfigInvalid(f"{field}: {host}:{port} {said}", field=field) from None
    return bound
