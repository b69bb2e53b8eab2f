"""Finished work, kept on disk: what was probed and measured is not probed and measured again.

An SQLite file in write-ahead mode: each result is in it at once and whole, whenever a run is killed, and
several runs may share it. What can't be read is set aside, never trusted and never fatal.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.errors import InputError

SCHEMA_VERSION = 1
_BUSY_SECONDS = 30
_TABLE = (
    "CREATE TABLE IF NOT EXISTS results ("
    "id TEXT PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, created REAL NOT NULL)"
)

Key = Mapping[str, Any]  # plain values, as in JSON


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
            InputError: the file can't be written where it is.
        """
        self._path = path
        self.set_aside: Path | None = None  # where a file that could not be read was moved to
        self._database = self._opened()

    def get(self, kind: str, key: Key) -> dict[str, Any] | None:
        """The value that was put under such a key, if one was."""
        with self._mended():
            row = self._database.execute("SELECT value FROM results WHERE id = ?", (_id(kind, key),))
            found = row.fetchone()
            if found is not None:
                value = json.loads(found[0])
                return value if isinstance(value, dict) else None
        return None

    def put(self, kind: str, key: Key, value: Mapping[str, Any]) -> None:
        """Keep the value; an earlier one under the same key is replaced."""
        row = (_id(kind, key), kind, json.dumps(key, sort_keys=True), json.dumps(value), time.time())
        with self._mended(), self._database:
            self._database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", row)

    def __iter__(self) -> Iterator[StoredResult]:
        """Every result, oldest first."""
        rows: list[Any] = []
        with self._mended():
            query = "SELECT kind, key, value, created FROM results ORDER BY created, id"
            rows = self._database.execute(query).fetchall()
        for kind, key, value, created in rows:
            with suppress(ValueError):
                yield StoredResult(kind, json.loads(key), json.loads(value), created)

    def clear(self) -> int:
        """Forget everything; how many results there were."""
        count = 0
        with self._mended():
            with self._database:
                count = self._database.execute("DELETE FROM results").rowcount
            self._database.execute("VACUUM")
        return count

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _opened(self) -> sqlite3.Connection:
        if self._path is None:
            return _connected(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return _connected(str(self._path))
        except (OSError, sqlite3.OperationalError) as error:
            raise InputError(
                f"the store {self._path} can't be used: {error}; give another --store, or --no-store"
            ) from error
        except (sqlite3.DatabaseError, _OtherVersionError):
            return self._anew()

    def _anew(self) -> sqlite3.Connection:
        """Move the file away and begin another one."""
        assert self._path is not None  # noqa: S101 - what is in memory has no file that could be damaged
        aside = self._path.with_name(f"{self._path.name}.set-aside-{time.time_ns()}")
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self.set_aside = aside
        return _connected(str(self._path))

    @contextmanager
    def _mended(self) -> Iterator[None]:
        """While it lasts, what can't be read or kept is given up; a damaged file is set aside."""
        try:
            yield
        except (ValueError, sqlite3.OperationalError):
            pass  # a value that is no JSON; a file that is locked for too long, or a full disk
        except sqlite3.DatabaseError:
            self._database.close()
            self._database = self._anew() if self._path is not None else _connected(":memory:")


class _OtherVersionError(Exception):
    pass


def default_path() -> Path:
    """Where results are kept unless `--store` says otherwise: the platform's folder for caches."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "peft-advisor" / "store.sqlite"


def _connected(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise _OtherVersionError(f"schema version {version}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("SELECT count(*) FROM results").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _id(kind: str, key: Key) -> str:
    return hashlib.sha256(json.dumps([kind, key], sort_keys=True).encode()).hexdigest()
