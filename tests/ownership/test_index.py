"""What is in the files survives `kill -9`, and what is torn is never served."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from isthmus.core.clock import ManualClock
from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.core.units import Duration
from isthmus.ownership.index import DurableIndex
from isthmus.ownership.index_file import FileKey, Torn, file_name, read_file
from isthmus.ownership.index_rows import SCHEMA_VERSION
from isthmus.ownership.retention import LeastFrequent, LeastRecent

ROUNDS = 12


def key(number: int, *, tenant: bytes = b"tenant-0") -> FileKey:
    return FileKey(prefix=number.to_bytes(16, "little"), tenant=tenant, identity=b"model", representation=b"form")


def payload_of(number: int, size: int = 3000) -> bytes:
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(size)


def chance(clock: ManualClock, below: int) -> int:
    return int(clock.token(), 16) % below


def opened(folder: Path, *, bytes_max: int = 1 << 20, clock: ManualClock | None = None, **more) -> DurableIndex:
    more.setdefault("retention", LeastRecent())
    return DurableIndex(folder, bytes_max=bytes_max, clock=clock or ManualClock(), **more)


def put(index: DurableIndex, number: int, size: int = 3000) -> bool:
    data = payload_of(number, size)
    return index.put(key(number), data, logical_digest=xxhash.xxh3_64_intdigest(data), recompute_ms=10.0)


def served(index: DurableIndex, number: int) -> bytes | None:
    stored = index.get(key(number))
    return None if stored is None else stored.payload


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def test_what_was_put_is_served_by_the_next_process(tmp_path) -> None:
    with opened(tmp_path) as index:
        assert put(index, 1)
        assert put(index, 2)
    with opened(tmp_path) as index:
        assert len(index) == 2
        stored = index.get(key(1))
        assert stored.payload == payload_of(1)
        assert stored.header.logical_digest == xxhash.xxh3_64_intdigest(payload_of(1))
        path = tmp_path / file_name(key(1))
        assert path.read_bytes()[stored.payload_offset :].startswith(payload_of(1))
        assert served(index, 3) is None
        assert (index.counts.hits, index.counts.misses, index.counts.dropped) == (1, 1, 0)


@pytest.mark.parametrize("field", ["prefix", "tenant", "identity", "representation"])
def test_every_part_of_the_key_counts(tmp_path, field) -> None:
    with opened(tmp_path) as index:
        put(index, 1)
        parts = {name: getattr(key(1), name) for name in FileKey.__struct_fields__}
        assert index.get(FileKey(**parts)) is not None
        assert index.get(FileKey(**parts | {field: b"another"})) is None


WRITER = """
import sys
from pathlib import Path
from tests.ownership.test_index import opened, put
with opened(Path(sys.argv[1]), bytes_max=40_000) as index:
    number = int(sys.argv[2])
    while True:
        number += 1
        put(index, number, size=1000 + number % 4000)
        index.get(__import__("tests.ownership.test_index", fromlist=["key"]).key(number - number % 7))
        print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_entries(tmp_path) -> None:
    """Twelve lives of a writer that puts, looks up and evicts, each killed at another moment."""
    clock, number, survived = ManualClock(4), 0, 0
    for _ in range(ROUNDS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(1 + chance(clock, 40)):
            said = writer.stdout.readline()
            assert said, "the writer died by itself"
        for _ in range(chance(clock, 4000)):
            pass  # a moment within a write, not only between two
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        number = int(rest[-1]) if rest else int(said)
        with opened(tmp_path, bytes_max=40_000) as index:
            assert index.counts.dropped <= 1  # the one that was being written
            assert index.size_bytes <= 40_000
            survived += len(index)
            for candidate in range(max(0, number - 60), number + 2):
                found = served(index, candidate)
                assert found is None or found == payload_of(candidate, 1000 + candidate % 4000)
            assert len(files(tmp_path)) == len(index)
            assert not list(tmp_path.glob("*.part"))
            # What was acknowledged last is the last to be evicted, and it is there.
            assert served(index, number) == payload_of(number, 1000 + number % 4000)
    assert survived > ROUNDS


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "short":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "long":
        data += b"\0"
    elif how == "header":
        data[20] ^= 1
    elif how == "checksum":
        data[-1] ^= 128
    else:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)


HOW = ["short", "empty", "long", "header", "checksum", "payload"]


@pytest.mark.parametrize("how", HOW)
def test_a_torn_file_is_dropped_when_the_index_is_opened(tmp_path, how) -> None:
    with opened(tmp_path) as index:
        put(index, 1)
        put(index, 2)
    damage(tmp_path / file_name(key(1)), how)
    with opened(tmp_path) as index:
        assert (len(index), index.counts.dropped) == (1, 1)
        assert served(index, 1) is None
        assert served(index, 2) == payload_of(2)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("how", HOW)
def test_a_file_torn_under_an_open_index_is_not_served(tmp_path, how) -> None:
    with opened(tmp_path) as index:
        put(index, 1)
        damage(tmp_path / file_name(key(1)), how)
        assert served(index, 1) is None
        assert (index.counts.dropped, index.size_bytes, len(index)) == (1, 0, 0)
        assert put(index, 1)
        assert served(index, 1) == payload_of(1)


def test_every_single_flipped_bit_of_a_file_is_found(tmp_path) -> None:
    with opened(tmp_path) as index:
        put(index, 1, size=64)
    path = tmp_path / file_name(key(1))
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(Torn):
            read_file(path)


def test_a_whole_file_under_another_name_is_not_served_for_it(tmp_path) -> None:
    """An index with a wrong row, or a meddling hand, cannot make one prefix of another."""
    with opened(tmp_path) as index:
        put(index, 1)
        put(index, 2)
        (tmp_path / file_name(key(2))).write_bytes((tmp_path / file_name(key(1))).read_bytes())
        assert served(index, 2) is None
        assert served(index, 1) == payload_of(1)


def test_a_damaged_database_costs_no_payload(tmp_path) -> None:
    with opened(tmp_path) as index:
        for number in range(5):
            put(index, number)
    database = tmp_path / "index.sqlite"
    data = bytearray(database.read_bytes())
    for place in range(0, len(data), 50):
        data[place] ^= 255
    database.write_bytes(data)
    with opened(tmp_path) as index:
        assert (len(index), index.counts.adopted) == (5, 5)
        assert all(served(index, number) == payload_of(number) for number in range(5))


def test_a_database_with_flipped_bits_never_makes_a_wrong_answer(tmp_path) -> None:
    with opened(tmp_path) as index:
        for number in range(4):
            put(index, number)
    database, clock = tmp_path / "index.sqlite", ManualClock(7)
    whole = database.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(3):
            data[chance(clock, len(data))] ^= 1 << chance(clock, 8)
        database.write_bytes(data)
        with opened(tmp_path) as index:
            assert all(served(index, number) in (None, payload_of(number)) for number in range(4))
            put(index, 9, size=100)
            assert served(index, 9) == payload_of(9, 100)


def test_a_database_of_another_schema_is_made_anew(tmp_path) -> None:
    with opened(tmp_path) as index:
        put(index, 1)
    database = sqlite3.connect(tmp_path / "index.sqlite")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.execute("DROP TABLE entries")
    database.commit()
    database.close()
    with opened(tmp_path) as index:
        assert served(index, 1) == payload_of(1)


def test_a_row_whose_file_is_gone_is_dropped(tmp_path) -> None:
    with opened(tmp_path) as index:
        put(index, 1)
    files(tmp_path)[0].unlink()
    with opened(tmp_path) as index:
        assert (len(index), index.counts.dropped) == (0, 1)


def test_the_index_stays_within_its_bytes_and_gives_up_what_was_used_least_recently(tmp_path) -> None:
    clock = ManualClock()
    with opened(tmp_path, bytes_max=9000, clock=clock) as index:
        for number in (1, 2, 3):
            put(index, number)
            clock.advance(Duration.of_seconds(1))
        assert served(index, 1) is not None
        put(index, 4)
        assert [served(index, number) is not None for number in (1, 2, 3, 4)] == [True, False, True, True]
        assert (index.size_bytes, index.counts.evicted, len(files(tmp_path))) == (9000, 1, 3)


def test_how_often_and_in_what_order_entries_were_used_outlives_the_process(tmp_path) -> None:
    with opened(tmp_path) as index:
        for number in (1, 2, 3):
            put(index, number)
        served(index, 2)
        served(index, 2)
        served(index, 1)
    with opened(tmp_path, bytes_max=6000, retention=LeastFrequent()) as index:
        assert [served(index, number) is not None for number in (1, 2, 3)] == [True, True, False]
    with opened(tmp_path, bytes_max=3000) as index:
        assert [served(index, number) is not None for number in (1, 2)] == [False, True]


def test_the_number_of_entries_is_bounded_too(tmp_path) -> None:
    with opened(tmp_path, entries_max=2) as index:
        for number in (1, 2, 3):
            put(index, number)
        assert len(index) == 2


def test_what_is_larger_than_the_whole_index_is_not_kept(tmp_path) -> None:
    with opened(tmp_path, bytes_max=2000) as index:
        put(index, 1, size=1500)
        assert put(index, 2, size=2001) is False
        assert served(index, 1) is not None
        with pytest.raises(BadInput, match="payload"):
            index.put(key(3), b"", logical_digest=0, recompute_ms=0.0)


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path) -> None:
    with (
        opened(tmp_path),
        pytest.raises(ConfigInvalid, match="in use"),
        opened(tmp_path),
    ):
        pass
    with opened(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="folder"), opened(tmp_path / "file" / "index"):
        pass
