"""Network namespaces without a name: each lives as long as a descriptor of it, or a thread or process in it.

So none outlives its driver, whatever ends that: nothing is left to be found and removed, and the host's own network is
never touched. A namespace is a thread's own: other threads of the process stay where they are, and what a thread
starts, a process or a socket, is born where the thread is then.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Namespace", "enter", "here"]

CLONE_NEWNET = 0x40000000
HERE = Path("/proc/thread-self/ns/net")


class Namespace:
    """A new one, with nothing in it but a loopback that is down. Raises OSError where that is not permitted."""

    def __init__(self) -> None:
        with _coming_back():
            _call("unshare", CLONE_NEWNET)
            self._handle = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> Path:
        """For `enter` in any process of this host, and for `ip link set ... netns`, while this one is not closed."""
        return Path(f"/proc/{os.getpid()}/fd/{self._handle}")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside while the body runs. A body that awaits takes all of its event loop with it."""
        with _coming_back():
            _call("setns", self._handle, CLONE_NEWNET)
            yield

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)
        self._handle = -1  # whoever comes late is refused, rather than let into what has that number next


def enter(path: Path) -> None:
    """Move this thread into a namespace for good. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", handle, CLONE_NEWNET)
    finally:
        os.close(handle)


def here() -> str:
    """The kernel's name for the namespace that this thread is in."""
    return str(HERE.readlink())


@contextmanager
def _coming_back() -> Iterator[None]:
    before = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _call("setns", before, CLONE_NEWNET)
        finally:
            os.close(before)


def _call(function: str, *arguments: int) -> None:
    """A call of the C library: Python has these from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
