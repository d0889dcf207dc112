"""Owners in processes of their own. Each test kills only what it started."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from isthmus.transport.base import Endpoint, transport_name

ROOT = Path(__file__).parents[2]


class OwnerProcess:
    """Handle on one `owner.py`, or another program that answers lines."""

    def __init__(self, program: str = "tests.transport.owner") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", program],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: object) -> object:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> object:
        return json.loads(self.process.stdout.readline())

    def open(self, seed, regions, num_blocks, stall_after=None) -> dict[str, Endpoint]:
        """The endpoints of a new pool, by transport; the one before is closed."""
        grid = [[region.id, region.outer, region.block_bytes] for region in regions]
        found = self.ask(do="open", seed=seed, regions=grid, num_blocks=num_blocks, stall_after=stall_after)
        return {transport_name(endpoint): endpoint for endpoint in msgspec.convert(found, list[Endpoint])}

    def kill(self) -> None:
        """SIGKILL, and wait until the process is no more."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def owner() -> Iterator[OwnerProcess]:
    """One owner for many worlds."""
    process = OwnerProcess()
    yield process
    process.kill()


@pytest.fixture
def mortal() -> Iterator[OwnerProcess]:
    """An owner that the test may kill."""
    process = OwnerProcess()
    yield process
    if process.process.poll() is None:
        process.kill()
