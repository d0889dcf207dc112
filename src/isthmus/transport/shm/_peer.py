"""Other processes of this host: a handle on one that tells when it ends, and its memory, opened with suspicion."""

import fcntl
import os
import select
import stat

from isthmus.core.errors import PeerLost, TransferFailed
from isthmus.core.limits import SHM_HEADER_BYTES
from isthmus.transport.base import ShmEndpoint
from isthmus.transport.shm._memory import FILE_NAME, SEALS

__all__ = ["F_GET_SEALS", "has_ended", "open_memory", "open_process"]

F_GET_SEALS = 1034


def open_process(pid: int) -> int:
    """A pidfd: it stays that process's even if its pid is given to another.

    Raises:
        PeerLost: there is none. TransferFailed: the kernel gives none.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise PeerLost(f"endpoint.pid: no process {pid}", field="endpoint.pid") from error
    except OSError as error:
        raise TransferFailed(f"endpoint.pid: cannot watch process {pid}: {error}", field="endpoint.pid") from error


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended. From any thread."""
    watch = select.poll()  # a new one each time: one object does not serve two threads
    watch.register(pidfd, select.POLLIN)
    return bool(watch.poll(0))


def open_memory(endpoint: ShmEndpoint) -> int:
    """A read-only descriptor of the file behind an endpoint, once it is known to be a sealed memfd of ours.

    Raises:
        PeerLost: it is closed, or another file. TransferFailed: it is not as it should be.
    """
    path = f"/proc/{endpoint.pid}/fd/{endpoint.fd}"
    try:
        # Looked at before it is opened: opening some other kind of file can have effects.
        if not os.readlink(path).startswith(f"/memfd:{FILE_NAME} "):
            raise PeerLost("endpoint.fd: another file than the one that was registered", field="endpoint.fd")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PeerLost("endpoint.fd: the owner has closed its memory", field="endpoint.fd") from error
    except OSError as error:
        raise TransferFailed(f"endpoint: cannot open the owner's memory: {error}", field="endpoint") from error
    try:
        status = os.fstat(fd)
        # Without the seals the owner could shrink the file under us, which kills whoever reads its mapping.
        if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(fd, F_GET_SEALS) & SEALS != SEALS:
            raise TransferFailed("endpoint.fd: not a sealed memory file", field="endpoint.fd")
        if status.st_size < SHM_HEADER_BYTES:
            raise TransferFailed("endpoint.fd: the file is shorter than its header", field="endpoint.fd")
    except BaseException:
        os.close(fd)
        raise
    return fd
