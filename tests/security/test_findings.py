"""What fuzzing and reading have found, each once: the input that did it, and what is answered now."""

import msgspec
import pytest
from fuzz.targets.journal import mended

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.engines.launch.describe import describe
from isthmus.ownership.journal import FRAME, FRAMES_START, LOST, MAGIC
from isthmus.ownership.trace import validate
from isthmus.serve.config import load_config
from isthmus.serve.gateway.control import Control
from isthmus.serve.messages import Snapshot, SnapshotOrder
from tests.security.journals import a_journal


def journal_with(header_change: dict[str, object]) -> bytes:
    frames = a_journal(ManualClock(1))[FRAMES_START:]
    header = frames[FRAME.size : FRAME.size + int.from_bytes(frames[:4], "big")]
    changed = msgspec.msgpack.encode(msgspec.msgpack.decode(header) | header_change)
    rest = frames[FRAME.size + len(header) :]
    return MAGIC + LOST.pack(0) + mended(len(changed).to_bytes(4, "big") + bytes(FRAME.size - 4) + changed + rest)


@pytest.mark.parametrize("blocks", [-8, 0, 1 << 40])
def test_a_journal_of_an_impossible_pool_is_a_gap_and_not_a_bug(tmp_path, blocks):
    path = tmp_path / "w.journal"
    path.write_bytes(journal_with({}))
    assert validate([path]).gaps == []
    path.write_bytes(journal_with({"num_blocks": blocks}))
    assert "header" in validate([path]).gaps[0]


def test_a_journal_with_text_that_is_not_utf8_is_a_gap_and_not_an_exception(tmp_path):
    path = tmp_path / "w.journal"
    path.write_bytes(journal_with({}).replace(b"block_bytes", b"\x80lock_bytes"))
    path.write_bytes(MAGIC + LOST.pack(0) + mended(path.read_bytes()[FRAMES_START:]))
    assert "header" in validate([path]).gaps[0]


async def test_a_worker_that_answers_with_endless_nesting_is_only_that_workers_error():
    """JSON's decoder in C runs out of stack, which is not a ValueError."""

    class Channel:
        async def call(self, _: object) -> Snapshot:
            return Snapshot(json=b"[" * 200_000)

    class Seat:
        channel = Channel()

    control = Control.__new__(Control)
    control._clock = SystemClock()
    assert await control._snapshot(Seat(), SnapshotOrder()) == {"error": "answered something that is not JSON"}


def test_a_file_that_says_it_is_empty_and_never_ends_is_refused(tmp_path):
    """`stat` says 0 bytes of a device."""
    for name in ("side.yaml", "side.json", "deployment.yaml"):
        (tmp_path / name).symlink_to("/dev/zero")
    for name in ("side.yaml", "side.json"):
        with pytest.raises(BadInput, match="larger than"):
            describe(str(tmp_path / name))
    with pytest.raises(ConfigInvalid, match="larger than"):
        load_config(tmp_path / "deployment.yaml")
