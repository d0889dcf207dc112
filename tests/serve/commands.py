"""The command line as a user runs it."""

import asyncio
import os
import sys
from dataclasses import dataclass

__all__ = ["Ended", "isthmus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


async def isthmus(*arguments: str, seconds: float = 60, environment: dict[str, str] | None = None) -> Ended:
    """Run `isthmus ...` to its end; one that does not end is killed, and fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "isthmus",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(code=process.returncode, out=out.decode(), err=err.decode())
