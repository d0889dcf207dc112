"""A disk that is soon full: a tmpfs of a few kilobytes, for the journal and the log of one member.

Mounting takes rights that not everybody has; without them there is none, and the run says so.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Self

from isthmus.core.units import KIB

__all__ = ["TinyDisk"]

SIZE_BYTES = 48 * KIB


class TinyDisk:
    """Mounted at `at` while the context lasts; what was on it is copied to `kept` at its end."""

    def __init__(self, at: Path, kept: Path) -> None:
        self.at = at
        self.mounted = False
        self._kept = kept

    async def __aenter__(self) -> Self:
        self.at.mkdir(parents=True)
        self.mounted = await _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "isthmus-chaos", str(self.at))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.mounted:
            await asyncio.to_thread(shutil.copytree, self.at, self._kept)
            await _run("umount", str(self.at))


async def _run(*command: str) -> bool:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return False
    return await process.wait() == 0
