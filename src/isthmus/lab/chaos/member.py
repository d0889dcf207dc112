"""What one forked member of a deployment runs: the gateway or a worker, as `isthmus serve` does.

Only the end differs: a worker that finds itself fenced exits with `FENCED_STATUS` instead of becoming another process
image, and whoever started it starts it anew. A fork shares its memory with others, so there is no image to become.
"""

import contextlib
import sys
from pathlib import Path

from isthmus.core.errors import BadInput, IncarnationFenced, IsthmusError, Rejected
from isthmus.core.ids import WorkerId
from isthmus.serve.config import load_config
from isthmus.serve.logs import start_logging
from isthmus.serve.models import model_path
from isthmus.serve.running import run_until_told

__all__ = ["FENCED_STATUS", "run_member"]

FENCED_STATUS = 75


def run_member(name: str, config_path: Path) -> int:
    """Serve until told to stop; returns the exit status, by the table of `cli.main`."""
    start_logging()
    try:
        _serve(name, config_path)
    except IncarnationFenced as error:
        return _said(error, FENCED_STATUS)
    except Rejected as error:
        return _said(error, 2)
    except IsthmusError as error:
        return _said(error, 1)
    return 0


def _serve(name: str, config_path: Path) -> None:
    config = load_config(config_path)
    if name == "gateway":
        from isthmus.serve.gateway.main import serve_gateway

        run_until_told(serve_gateway(config, model_path(config.model)))
        return
    if WorkerId(name) not in dict(config.workers()):
        raise BadInput(f"name: no worker {name!r} in {config_path}", field="name")
    from isthmus.serve.worker.main import serve_worker

    run_until_told(serve_worker(config, WorkerId(name), model_path(config.model)))


def _said(error: IsthmusError, status: int) -> int:
    with contextlib.suppress(OSError):  # the disk that the log is on may be full
        sys.stderr.write(f"isthmus: {error.code}: {error}\n")
        sys.stderr.flush()
    return status
