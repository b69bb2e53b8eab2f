"""Finished work, kept on disk: what was probed and measured is not probed and measured again.

An SQLite file in write-ahead mode: each result is in it at once and whole, whenever a run is killed, and
several runs may share it. What can't be read is set aside, never trusted and never fatal.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from advisor.errors import InputError
from advisor.system.files import parse_json

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x70656674  # tells our databases from other programs'
_BUSY_SECONDS = 30.0
_ALONE_SECONDS = 2.0  # that others get to let go of a damaged file
_LONGEST_SECONDS = 5.0  # of one statement's work: what a file brings along, a trigger say, may never end
_LARGEST = 10**8  # bytes of one value
_STEPS = 100_000  # of SQLite's machine, between two looks at the clock
_TABLE = (
    "CREATE TABLE IF NOT EXISTS results ("
    "id TEXT PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, "
    "created REAL NOT NULL, digest TEXT NOT NULL)"
)
_SELECT = "SELECT id, kind, key, value, created, digest FROM results"
_COLUMNS = _SELECT.removeprefix("SELECT ").removesuffix(" FROM results").split(", ")

Key = Mapping[str, Any]  # plain values, as in JSON
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class StoredResult:
    """One finished piece of work."""

    kind: str
    key: dict[str, Any]
    value: dict[str, Any]
    created: float  # seconds since 1970


class Store:
    """Results by kind and key. A key names all that the result depends on."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, made where it is missing; None: remember for this run only.

        Raises:
            InputError: the file can't be written where it is, or is another program's database.
        """
        self._path = path
        self._lock: _Lock | None = None
        self._opened_file: tuple[int, int] | None = None
        self.set_aside: Path | None = None  # where a file that could not be read was moved to
        self.trouble = ""  # what could not be read or kept, in words
        self._database = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def get(self, kind: str, key: Key) -> dict[str, Any] | None:
        """The value that was put under such a key, if one was."""
        name = _id(kind, key)

        def read(database: sqlite3.Connection) -> dict[str, Any] | None:
            row = database.execute(f"{_SELECT} WHERE id = ?", (name,)).fetchone()
            found = _result(row) if row is not None and row[0] == name else None
            return found.value if found is not None else None

        return self._tried(read, None)

    def put(self, kind: str, key: Key, value: Mapping[str, Any]) -> None:
        """Keep the value; an earlier one under the same key is replaced."""
        row = (_id(kind, key), kind, json.dumps(key, sort_keys=True), json.dumps(value), time.time())

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                new = (*row, _digest(row))
                database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)", new)
                if database.execute(f"{_SELECT} WHERE id = ?", new[:1]).fetchone() != new:
                    raise _LostError(f"{kind} was put and is not there")

        self._tried(write, None)

    def remembered(self, kind: str, key: Key, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value that was put under such a key, else what is found now, which is kept."""
        found = self.get(kind, key)
        if found is None:
            found = find()
            self.put(kind, key, found)
        return found

    def __iter__(self) -> Iterator[StoredResult]:
        """Every result, oldest first."""

        def read(database: sqlite3.Connection) -> list[Any]:
            return database.execute(f"{_SELECT} ORDER BY created, id").fetchall()

        rows: list[Any] = self._tried(read, [])
        yield from filter(None, map(_result, rows))

    def clear(self) -> int:
        """Forget everything; how many results there were."""
        count = self._tried(lambda database: database.execute("DELETE FROM results").rowcount, 0, math.inf)
        self._tried(lambda database: database.execute("VACUUM"), None, math.inf)
        return count

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            return _connected(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = Path(f"{self._path}.lock")
            was_store = lock.exists()
            self._lock = _Lock(lock)
            try:
                self._lock.share()
                return self._connect(self._path)
            except (sqlite3.DatabaseError, UnicodeDecodeError, _OtherVersionError) as error:
                if not _is_unreadable(error):
                    raise
                if not was_store:  # a slip of the hand: nobody else's file is moved
                    self._lock.remove(lock)
                    raise InputError("it is no store") from error
                return self._anew_or_in_memory()
        except (OSError, sqlite3.Error, InputError) as error:
            if self._lock is not None:
                self._lock.close()
            raise InputError(
                f"the store {self._path} can't be used: {error}; give another --store, or --no-store"
            ) from error

    def _connect(self, path: Path) -> sqlite3.Connection:
        # Noted before it is opened: it may be an older file's, never that of one that came later.
        self._opened_file = _file_at(path)
        return _connected(str(path))

    def _tried(
        self,
        work: Callable[[sqlite3.Connection], _Found],
        otherwise: _Found,
        seconds: float = _LONGEST_SECONDS,
    ) -> _Found:
        """What the work finds; otherwise where that can't be read or kept, which must not end a run."""
        for _ in range(2):  # once more where a damaged file had to be replaced
            try:
                with _bounded(self._database, seconds):
                    return work(self._database)
            except (sqlite3.OperationalError, sqlite3.DataError) as error:  # locked for too long, a full disk
                self.trouble = f"the store {self._path} can't be used: {error}"
                return otherwise
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_unreadable(error):
                    raise
                self._database.close()
                self._database = self._anew_or_in_memory()
        return otherwise

    def _anew_or_in_memory(self) -> sqlite3.Connection:
        assert self._path is not None  # noqa: S101 - what is in memory
        assert self._lock is not None  # noqa: S101 - has no file that could be damaged
        try:
            return self._anew(self._path, self._lock)
        except (OSError, sqlite3.Error, InputError, _OtherVersionError) as error:
            self.trouble = f"the store {self._path} can't be read, nor set aside: {error}"
            return _connected(":memory:")

    def _anew(self, path: Path, lock: _Lock) -> sqlite3.Connection:
        """Move the damaged file away and begin another one, unless another process already has.

        Never while another process has it open: SQLite finds a file's log by name, so that one's last
        writes would end up in, or delete, the log of the new file.
        """
        damaged, end = self._opened_file, time.monotonic() + _ALONE_SECONDS
        while True:
            alone = lock.alone()
            try:
                if alone and _file_at(path) == damaged:
                    self._move_away(path)
                if alone or _file_at(path) != damaged:
                    return self._connect(path)
            finally:
                lock.share()
            if time.monotonic() > end:
                raise sqlite3.OperationalError("another run has it open")
            time.sleep(0.02)

    def _move_away(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.set-aside-{time.time_ns()}")
        path.rename(aside)
        with suppress(FileNotFoundError):
            Path(f"{path}-wal").rename(f"{aside}-wal")
        Path(f"{path}-shm").unlink(missing_ok=True)
        self.set_aside = aside
        self.trouble = f"the store could not be read; it was set aside as {aside}"


def default_path() -> Path:
    """Where results are kept unless `--store` says otherwise: the platform's folder for caches."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "peft-advisor" / "store.sqlite"


def set_aside_files(path: Path) -> list[Path]:
    """The files that were once at the path and could not be read."""
    found = path.parent.glob(f"{glob.escape(path.name)}.set-aside-*")
    return sorted(file for file in found if not file.name.endswith("-wal"))


class _OtherVersionError(Exception):
    pass


class _LostError(sqlite3.DatabaseError):
    """In a file whose pages point elsewhere, which SQLite doesn't notice as it writes."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class _Lock:
    """Shared by all who have a store open; for one alone while the store's file is moved away.

    An empty SQLite database: its locks are there on every platform, and end with their process.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)

    def share(self) -> None:
        """Until it is let go of, nobody has it alone."""
        self._let_go()
        self._database.execute("BEGIN")
        self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on

    def alone(self) -> bool:
        """Whether nobody else has it; then nobody gets it."""
        self._let_go()
        self._database.execute("PRAGMA busy_timeout = 100")
        try:
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        finally:
            self._database.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
        return True

    def close(self) -> None:
        """Let go of it for good."""
        self._database.close()

    def remove(self, path: Path) -> None:
        """Take away the file that was made for it."""
        self.close()
        path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")


def _connected(path: str) -> sqlite3.Connection:
    # Without Python's own transactions, each statement is one.
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
    database.text_factory = lambda text: text.decode(errors="replace")  # what is damaged has a wrong digest
    try:
        if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            _write_ahead(database)
            database.execute("BEGIN IMMEDIATE")
            database.execute(_TABLE)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("COMMIT")
        if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise InputError("it is another program's database")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise _OtherVersionError(f"schema version {version}")
        database.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; a power cut may
        kind = database.execute("SELECT type FROM sqlite_schema WHERE name = 'results'").fetchone()
        columns = [row[1] for row in database.execute("PRAGMA table_info(results)")]
        if kind != ("table",) or columns != _COLUMNS:
            raise _OtherVersionError("other tables")
        database.execute("SELECT count(*) FROM results").fetchone()
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _bounded(database: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """A statement within it that works for longer is an OperationalError."""
    end = time.monotonic() + seconds
    database.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        yield
    finally:
        database.set_progress_handler(None, 0)


def _write_ahead(database: sqlite3.Connection) -> None:
    """Change the file's mode. Where others do so at the same time, SQLite gives up at once."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _is_unreadable(error: Exception) -> bool:
    """Whether the file itself is what is wrong."""
    if not isinstance(error, sqlite3.DatabaseError):
        # SQLite's own message may quote bytes of a damaged file, which Python then can't decode.
        return isinstance(error, _OtherVersionError | UnicodeDecodeError)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what it is extended by
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever it is called; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _id(kind: str, key: Key) -> str:
    return hashlib.sha256(json.dumps([kind, key], sort_keys=True).encode()).hexdigest()


def _digest(row: Sequence[object]) -> str:
    return hashlib.sha256("\0".join(map(str, row)).encode()).hexdigest()


def _result(row: Sequence[Any]) -> StoredResult | None:
    """What was put; None where it is not as it was: SQLite doesn't notice changed bytes inside a value."""
    try:
        if row[-1] != _digest(row[:-1]):
            return None
        return StoredResult(row[1], parse_json(row[2]), parse_json(row[3]), row[4])
    except (TypeError, ValueError):
        return None
