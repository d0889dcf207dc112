"""Reading files within bounds, whatever `stat` says of their size: a device says 0, and a file may grow meanwhile."""

import errno
import os
from pathlib import Path

__all__ = ["read_at_most"]


def read_at_most(path: Path, bytes_max: int) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be read, or (EFBIG) is larger than `bytes_max`.
        ValueError: it is no path.
    """
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise OSError(errno.EFBIG, f"larger than {bytes_max} bytes", os.fspath(path))
    return data
