"""The fork server: a process that has imported torch and isthmus once, and forks a member of a deployment per line.

    driver ── {"id", "name", "config", "log", "environment", "network"} ──► zygote ── fork ──► member
           ◄─ {"id", "pid"}, later {"pid", "status"} ─────────────────────

Starting a worker costs tens of milliseconds instead of seconds of imports, so that hundreds of kills fit into minutes.
Members are real processes: they get real signals, die alone, and die with this process. It has one thread, always:
a fork of several would copy locks that nobody will ever release.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from isthmus.core.errors import Bug
from isthmus.lab.chaos.member import run_member
from isthmus.lab.chaos.namespaces import enter

__all__ = ["serve"]

PR_SET_PDEATHSIG = 1


Run = Callable[[str, Path], int]
"""What a member runs: its name and the deployment's file to its exit status."""


def serve(run: Run) -> None:
    """Fork what is asked for on stdin, and tell of every end on stdout; until stdin closes."""
    _warm_up()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise Bug(f"zygote: {threads} threads after the imports, wanted 1", field="threads")
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when this ends
    _tell({"ready": True})
    pending = b""
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            _reap()
        if 0 in readable:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _start(json.loads(line), run)


def _warm_up() -> None:
    """Import what any member needs, and load what is compiled; nothing of it starts a thread."""
    import torch
    import transformers  # noqa: F401
    import uvicorn  # noqa: F401
    from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import isthmus.engines.embedded.adapter
    import isthmus.serve.gateway.main
    import isthmus.serve.worker.main  # noqa: F401
    from isthmus.kernels.torch_digest import warm_up

    warm_up(torch.device("cpu"))


def _start(order: dict[str, object], run: Run) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(order, parent, run)
    _tell({"id": order["id"], "pid": pid})


def _become(order: dict[str, object], parent: int, run: Run) -> None:
    """Never returns: the child is a member from here on."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        sink = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
            os.dup2(source, target)
        environment = order["environment"]
        if isinstance(environment, dict):
            os.environ.update(environment)
        if order["network"]:
            enter(Path(str(order["network"])))
        status = run(str(order["name"]), Path(str(order["config"])))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _tell(what: dict[str, object]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    serve(run_member)
