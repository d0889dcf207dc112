"""`serve all` keeps what it started: real processes that end, each started anew under its name, within bounds."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import Lost
from isthmus.core.units import Duration
from isthmus.serve import launcher
from isthmus.serve.config import parse_config
from isthmus.serve.launcher import Deployment, Running

CONFIG = {"pools": [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}]}
SLEEPS = "import signal; signal.pause()"


class Starts:
    """Starts `programs[name]` in turn, the last one again and again, and remembers what it started."""

    def __init__(self, programs: dict[str, list[str]]) -> None:
        self._programs = programs
        self.started: list[str] = []
        self.count = asyncio.Condition()

    async def __call__(self, name: str, arguments: Sequence[str], log: Path) -> Running:
        programs = self._programs.get(name, [SLEEPS])
        program = programs[min(self.started.count(name), len(programs) - 1)]
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", program, stderr=sink)
        self.started.append(name)
        async with self.count:
            self.count.notify_all()
        return process

    async def until(self, count: int, name: str) -> None:
        async with asyncio.timeout(30), self.count:
            await self.count.wait_for(lambda: self.started.count(name) >= count)


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(launcher, "RESTART_PAUSE", Duration.of_ms(1))


def deployment_of(starts: Starts, folder: Path) -> Deployment:
    config = parse_config(CONFIG, where="test")
    return Deployment(config, folder / "deployment.yaml", folder / "logs", SystemClock(), spawn=starts)


async def test_what_ends_is_started_anew_and_the_others_are_left_alone(quickly, tmp_path):
    starts = Starts({"decode-0": ["raise SystemExit(1)", "raise SystemExit(1)", SLEEPS]})
    async with deployment_of(starts, tmp_path) as deployment:
        keeping = asyncio.create_task(deployment.keep())
        await starts.until(3, "decode-0")
        assert deployment.children["decode-0"].process.returncode is None
        assert starts.started.count("gateway") == starts.started.count("prefill-0") == 1
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_one_that_refuses_its_input_is_not_tried_again(quickly, tmp_path):
    refuses = "import sys; sys.stderr.write('model: not there'); sys.exit(2)"
    starts = Starts({"decode-0": [refuses]})
    async with deployment_of(starts, tmp_path) as deployment:
        async with asyncio.timeout(30):
            with pytest.raises(Lost, match="decode-0 ended with status 2:\nmodel: not there"):
                await deployment.keep()
        assert starts.started.count("decode-0") == 1


async def test_one_that_ends_again_and_again_ends_all(quickly, tmp_path):
    starts = Starts({"gateway": ["raise SystemExit(1)"]})
    async with deployment_of(starts, tmp_path) as deployment:
        async with asyncio.timeout(60):
            with pytest.raises(Lost, match="gateway ended 8 times within"):
                await deployment.keep()
        assert starts.started.count("gateway") == launcher.RESTARTS_MAX + 1
