"""A disk that is soon full: a tmpfs of a few kilobytes, for the journal and the log of one member.

It is mounted in a mount namespace of its own, which a process holds that ends when its input does. So the host's mounts
never show it, and it is gone when the driver is, whatever ends that. Mounting takes rights that not everybody has;
without them there is no such disk, and the run says so.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Self

from isthmus.core.units import KIB

__all__ = ["TinyDisk"]

SIZE_BYTES = 48 * KIB
HOLDER = f'mount -t tmpfs -o size={SIZE_BYTES} isthmus-chaos "$0" && echo mounted && exec cat'


class TinyDisk:
    """There while the context lasts, at `at` if `mounted`; what was on it is copied to `kept` at its end."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.at = folder.absolute()
        self.mounted = False
        self._kept = kept
        self._holder: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.at.mkdir(parents=True)
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            self._holder = await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "sh", "-c", HOLDER, str(self.at)),
                stdin=pipe,
                stdout=pipe,
                stderr=nothing,
                start_new_session=True,  # an interrupt of the driver is not its end
            )
        except OSError:
            return self
        self.mounted = self._holder.stdout is not None and await self._holder.stdout.readline() == b"mounted\n"
        if self.mounted:  # who may look at the holder gets into its mounts this way
            self.at = Path(f"/proc/{self._holder.pid}/root{self.at}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.mounted:
            await asyncio.to_thread(shutil.copytree, self.at, self._kept)
        if self._holder is not None:
            await self._holder.communicate(b"")  # the end of its input, and then of it
