"""The rows of a durable index, in SQLite: what is remembered of each file. Nothing here is believed without the file.

WAL and synchronous=NORMAL: after `kill -9` nothing committed is lost, after a power cut perhaps the last commits, and
the database is intact either way. SQLite checks the form of its pages and not their content, so flipped bits can also
make it fail at any statement, or answer nonsense: then the database is thrown away and an empty one made, and the
files, which are checked bit by bit, say what matters when the index is opened next.
"""

import re
import sqlite3
from pathlib import Path

from isthmus.ownership.index_file import Stored, file_name

__all__ = ["SCHEMA_VERSION", "Rows"]

SCHEMA_VERSION = 1
_DATABASE = "index.sqlite"
_NAME = re.compile(rb"[0-9a-f]{32}\.kv")
_HITS_MAX = 1 << 53
_DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second where it cannot even say what is damaged
_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    name TEXT PRIMARY KEY, prefix BLOB NOT NULL, tenant BLOB NOT NULL, identity BLOB NOT NULL,
    representation BLOB NOT NULL, payload_bytes INTEGER NOT NULL, payload_offset INTEGER NOT NULL,
    logical_digest BLOB NOT NULL, checksum BLOB NOT NULL, created INTEGER NOT NULL,
    hits INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID, STRICT
"""


class Rows:
    """One open database. Of one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = self._opened()

    def close(self) -> None:
        self._database.close()

    def all(self) -> list[tuple[str, int]]:
        """Names and hits, oldest use first. What cannot be a name or a number of ours is no row."""
        try:
            rows = self._database.execute("SELECT CAST(name AS BLOB), hits FROM entries ORDER BY used").fetchall()
        except _DAMAGED:
            self._begin_anew()
            return []
        return [
            (name.decode(), hits)
            for name, hits in rows
            if isinstance(name, bytes) and _NAME.fullmatch(name) and isinstance(hits, int) and 0 <= hits < _HITS_MAX
        ]

    def insert(self, stored: Stored, *, created: int) -> None:
        header, key = stored.header, stored.header.key
        self._run(
            "INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?,?,?,?,0,"
            "(SELECT ifnull(max(used), 0) + 1 FROM entries))",
            file_name(key),
            key.prefix,
            key.tenant,
            key.identity,
            key.representation,
            header.payload_bytes,
            stored.payload_offset,
            header.logical_digest.to_bytes(8, "little"),
            stored.checksum,
            created,
        )

    def hit(self, name: str) -> None:
        """It was used, last of all."""
        self._run("UPDATE entries SET hits = hits + 1, used = (SELECT max(used) + 1 FROM entries) WHERE name = ?", name)

    def delete(self, name: str) -> None:
        self._run("DELETE FROM entries WHERE name = ?", name)

    def _run(self, statement: str, *values: str | int | bytes) -> None:
        try:
            with self._database:
                self._database.execute(statement, values)
        except _DAMAGED:
            self._begin_anew()
            with self._database:
                self._database.execute(statement, values)

    def _opened(self) -> sqlite3.Connection:
        try:
            database = self._connect()
        except _DAMAGED:
            self._remove()
            return self._connect()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return database
        database.close()
        self._remove()
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Raises one of _DAMAGED."""
        database = sqlite3.connect(self._folder / _DATABASE)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (intact,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if intact != "ok":
                raise sqlite3.DatabaseError(intact)
            if database.execute("PRAGMA user_version").fetchone() == (0,):
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except _DAMAGED:
            database.close()
            raise
        return database

    def _begin_anew(self) -> None:
        self._database.close()
        self._remove()
        self._database = self._connect()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self._folder / (_DATABASE + suffix)).unlink(missing_ok=True)
