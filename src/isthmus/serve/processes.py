"""Processes of this host, named so that nobody else is ever meant, and the proof that one has ended.

A pid alone is given to another process one day; with the instant of its start, in one boot and pid namespace, it is
not. Owns the evidence `PROCESS_EXITED`: only the kernel's word counts, and only for a process of this host. A worker
states its own process in its registration, and is believed as it is in everything else that it registers.
"""

import asyncio
import os
import select
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from isthmus.state.structs import Token, WireStruct
from isthmus.transport.shm import host_identity

__all__ = ["ProcessIdentity", "ended", "has_exited", "is_here", "this_process"]

START_TIME_FIELD = 22  # proc(5): in clock ticks after boot


class ProcessIdentity(WireStruct, frozen=True, kw_only=True):
    """One process: its host (one boot, pid namespace and user), its pid, and when it started, in ticks after boot."""

    host: Token
    pid: Annotated[int, Meta(ge=1, le=1 << 22)]
    started: Annotated[int, Meta(ge=0)]


def this_process() -> ProcessIdentity:
    """Who we are."""
    started = _started(os.getpid())
    return ProcessIdentity(host=host_identity(), pid=os.getpid(), started=0 if started is None else started)


def is_here(process: ProcessIdentity) -> bool:
    """Whether the kernel that we ask is the one that the process runs on."""
    return process.host == host_identity()


def has_exited(process: ProcessIdentity) -> bool:
    """Whether it is certain that the process has ended. False for one of another host: nothing is certain there."""
    if not is_here(process):
        return False
    try:
        handle = _open(process)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # no handle to be had; not a word about the process
    try:
        watch = select.poll()
        watch.register(handle, select.POLLIN)
        return bool(watch.poll(0))
    finally:
        os.close(handle)


async def ended(process: ProcessIdentity) -> None:
    """Return when the process of this host has ended, or has ended already.

    Raises:
        OSError: it cannot be watched.
    """
    try:
        handle = _open(process)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_reader(handle, done.set_result, None)
    done.add_done_callback(lambda _: loop.remove_reader(handle))
    try:
        await done
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _open(process: ProcessIdentity) -> int:
    """A pidfd of exactly this process. Raises ProcessLookupError where it is no more, OSError where there is none."""
    handle = os.pidfd_open(process.pid)
    # Looked at once the handle is ours: from here on the handle's process and the pid's are one.
    if _started(process.pid) == process.started:
        return handle
    os.close(handle)
    raise ProcessLookupError(process.pid)


def _started(pid: int) -> int | None:
    """When the pid's process started; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets, which may itself hold brackets and spaces.
    return int(text.rpartition(")")[2].split()[START_TIME_FIELD - 3])
