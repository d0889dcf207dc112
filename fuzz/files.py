"""Files for parsers that take a path: in memory, one for each name, written anew each time."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path

__all__ = ["file_of"]


def file_of(data: bytes, name: str) -> Path:
    """A file of these bytes. Valid until the next call with the same name."""
    path = _folder() / name
    path.write_bytes(data)
    return path


@lru_cache(maxsize=1)
def _folder() -> Path:
    """Gone with the process's temporary folder; on a file system in memory where there is one."""
    memory = "/dev/shm"
    holder = tempfile.TemporaryDirectory(
        prefix=f"isthmus-fuzz-{os.getpid()}-", dir=memory if Path(memory).is_dir() else None
    )
    _holders.append(holder)
    return Path(holder.name)


_holders: list["tempfile.TemporaryDirectory[str]"] = []
