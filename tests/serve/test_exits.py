"""Who is certainly gone: processes watched by their pidfd, and names that the dead no longer hold."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from isthmus.serve.processes import ProcessIdentity, ended, has_exited, is_here, this_process
from isthmus.serve.worker import exits
from isthmus.serve.worker.exits import Exits


class Life:
    """What `Exits` looks at of a `Member`; a whole one holds a model's identity."""

    def __init__(self, worker: str, incarnation: str, process: ProcessIdentity) -> None:
        self.worker, self.incarnation, self.process = worker, incarnation, process


def identity_of(pid: int) -> ProcessIdentity:
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return replace(this_process(), pid=pid, started=started)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_we_are_here_and_have_not_exited():
    assert is_here(this_process())
    assert not has_exited(this_process())


def test_a_killed_process_has_exited_whether_it_was_reaped_or_not(child):
    process = identity_of(child.pid)
    assert not has_exited(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_exited(process)
    child.wait()
    assert has_exited(process)


def test_a_stopped_process_has_not_exited(child):
    process = identity_of(child.pid)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert not has_exited(process)


def test_a_pid_with_another_start_is_another_process(child):
    assert has_exited(replace(identity_of(child.pid), started=1))


def test_nothing_is_certain_of_another_host(child):
    elsewhere = replace(identity_of(child.pid), host="0" * 32)
    child.kill()
    child.wait()
    assert not has_exited(elsewhere)


async def test_an_end_is_told_as_it_happens(child):
    waiting = asyncio.create_task(ended(identity_of(child.pid)))
    child.kill()
    async with asyncio.timeout(10):
        await waiting


async def test_a_lifes_end_is_told_once(child):
    told: list[tuple[str, str]] = []
    came = asyncio.Event()
    watching = Exits(lambda worker, life: (told.append((worker, life)), came.set()))
    life = Life("decode-0", "a" * 32, identity_of(child.pid))
    watching.watch(life)
    watching.watch(life)
    child.kill()
    async with asyncio.timeout(10):
        await came.wait()
    assert told == [("decode-0", "a" * 32)]


async def test_another_life_of_the_same_worker_in_the_same_process_ends_the_one_before():
    """A fenced worker becomes another process image: its pid stays, its mappings do not."""
    told: list[tuple[str, str]] = []
    watching = Exits(lambda worker, life: told.append((worker, life)))
    watching.watch(Life("decode-0", "a" * 32, this_process()))
    watching.watch(Life("decode-1", "b" * 32, this_process()))
    assert told == []
    watching.watch(Life("decode-0", "c" * 32, this_process()))
    assert told == [("decode-0", "a" * 32)]


async def test_of_too_many_the_first_are_not_watched_on(monkeypatch, child):
    monkeypatch.setattr(exits, "PROCESSES_WATCHED_MAX", 2)
    told: list[str] = []
    came = asyncio.Event()
    watching = Exits(lambda _, life: (told.append(life), came.set() if len(told) == 2 else None))
    for number in range(3):
        watching.watch(Life(f"decode-{number}", str(number) * 32, identity_of(child.pid)))
    child.kill()
    async with asyncio.timeout(10):
        await came.wait()
    assert sorted(told) == ["1" * 32, "2" * 32]
