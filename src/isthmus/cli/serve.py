"""`isthmus serve`: the gateway, one worker, or a whole deployment, from one file."""

import contextlib
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from isthmus.core.errors import BadInput, IncarnationFenced

if TYPE_CHECKING:
    from isthmus.serve.config import ServeConfig

__all__ = ["serve"]

serve = App(name="serve", help="Run the gateway, a worker, or a whole deployment, from one YAML file.")

ConfigFile = Annotated[Path, Parameter(name=["--config", "-c"], help="The deployment's YAML file.")]
Name = Annotated[str, Parameter(help="The worker's name: <pool>-<index>.")]
PrintConfig = Annotated[bool, Parameter(name="--print-config", negative="", help="Print the effective file and stop.")]


@serve.command
def gateway(config: ConfigFile, print_config: PrintConfig = False) -> None:
    """Serve OpenAI's API, and keep the registry of workers."""
    from isthmus.serve.config import load_config
    from isthmus.serve.gateway.main import serve_gateway
    from isthmus.serve.models import model_path

    loaded = load_config(config)
    if _printed(loaded, print_config):
        return
    _start_logging()
    _run(serve_gateway(loaded, model_path(loaded.model)))


@serve.command
def prefill(config: ConfigFile, name: Name, print_config: PrintConfig = False) -> None:
    """Run one prefill worker."""
    _worker(config, name, "prefill", print_config)


@serve.command
def decode(config: ConfigFile, name: Name, print_config: PrintConfig = False) -> None:
    """Run one decode worker."""
    _worker(config, name, "decode", print_config)


@serve.command(name="all")
def serve_all(
    config: ConfigFile,
    log_folder: Annotated[Path, Parameter(help="Where each process's log goes.")] = Path(".isthmus/logs"),
    print_config: PrintConfig = False,
) -> None:
    """Run the gateway and every worker of the file, until interrupted. What ends is started anew."""
    from isthmus.serve.config import load_config

    loaded = load_config(config)
    if _printed(loaded, print_config):
        return
    _start_logging()
    _run(_all(loaded, config, log_folder))


async def _all(loaded: "ServeConfig", config: Path, log_folder: Path) -> None:
    from isthmus.core.clock import SystemClock
    from isthmus.core.units import Duration
    from isthmus.serve.launcher import Deployment

    async with Deployment(loaded, config, log_folder, SystemClock()) as deployment:
        await deployment.ready(Duration.of_seconds(300))
        _say(f"ready: {deployment.url}/v1 (logs in {log_folder})")
        await deployment.keep()


def _worker(config: Path, name: str, role: str, print_config: bool) -> None:
    from isthmus.core.ids import WorkerId
    from isthmus.serve.config import load_config
    from isthmus.serve.models import model_path

    loaded = load_config(config)
    if _printed(loaded, print_config):
        return
    pool = dict(loaded.workers()).get(WorkerId(name))
    if pool is None or pool.role != role:
        named = [worker for worker, pool in loaded.workers() if pool.role == role]
        raise BadInput(f"name: no {role} worker {name!r} in {config}; there is {', '.join(named)}", field="name")
    from isthmus.serve.worker.main import serve_worker  # the engine, and so torch: only for who means it

    _start_logging()
    try:
        _run(serve_worker(loaded, WorkerId(name), model_path(loaded.model)))
    except IncarnationFenced as error:
        # Stopped for so long that we were declared dead. Nothing of this life may go on: become another process image.
        _say(f"isthmus: {error}; starting anew")
        os.execv(sys.executable, sys.orig_argv)


def _run(service: Coroutine[Any, Any, None]) -> None:
    from isthmus.serve.running import run_until_told

    run_until_told(service)


def _printed(loaded: "ServeConfig", print_config: bool) -> bool:
    if print_config:
        import yaml

        _out(yaml.safe_dump(loaded.model_dump(mode="json", exclude_unset=False), sort_keys=False))
    return print_config


def _start_logging() -> None:
    from isthmus.serve.logs import start_logging

    start_logging()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk for logs must not keep a worker from starting anew
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _out(text: str) -> None:
    print(text, end="", flush=True)  # noqa: T201
