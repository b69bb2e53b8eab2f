"""Files and folders that are needed for a while, of which nothing stays behind, however a process ends.

Whoever makes one holds a lock on it, which the kernel lets go of with the process: those whose lock is free
were left behind by one that was killed, and go as the next one is made beside them. With a folder goes what
joblib made for its process's workers: it leaves that behind where it is killed together with them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from itertools import chain
from pathlib import Path

_PREFIX = "peft-advisor-"
_SHARED = Path("/dev/shm")  # noqa: S108 - where Linux has it
_OF_WORKERS = ("sem.loky-{}-*", "joblib_memmapping_folder_{}_*")
_NO_LOCKS = -1  # of this platform, in place of a descriptor
_made: weakref.WeakSet[TemporaryFolder] = weakref.WeakSet()


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A `tempfile.TemporaryDirectory` that is held, and outlives no process by long."""

    def __init__(self, beside: Path | None = None) -> None:
        """Make one; what others left behind there is removed.

        Args:
            beside: the folder that it is in; None: that of temporary files.
        """
        remove_left_behind(Path(beside or tempfile.gettempdir()))
        while True:
            super().__init__(prefix=f"{_PREFIX}{os.getpid()}-", dir=beside)
            lock = _locked(self.name)
            if lock is not None and Path(self.name).exists():
                break
            super().cleanup()  # another process took it for one that was left behind
        self._unlock = weakref.finalize(self, _close, lock)
        _made.add(self)

    def cleanup(self) -> None:
        """Remove it, and all that is in it."""
        super().cleanup()
        self._unlock()


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """A name for a file that is to take the place of `path`; what is there in the end, is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_left_behind(path.parent, f".{escape(path.name)}.*.tmp")
    lock = None
    with suppress(OSError):  # whoever writes to it meets the same, and says so
        temporary.touch()
        lock = _locked(temporary)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _close(lock)


def remove_all() -> None:
    """Remove this process's folders, where it ends without doing what is done at an end."""
    for folder in list(_made):
        with suppress(OSError):
            folder.cleanup()


def remove_left_behind(folder: Path, names: str = f"{_PREFIX}*") -> None:
    """Remove those of processes that are gone.

    Args:
        names: a pattern of theirs; of folders, or of files where it says so.
    """
    with suppress(OSError):
        for found in folder.glob(names):
            lock = _locked(found)
            if lock is None or lock == _NO_LOCKS:
                continue
            with suppress(OSError):
                if found.is_dir():
                    shutil.rmtree(found, ignore_errors=True)
                    _remove_of_workers(found.name.removeprefix(_PREFIX).partition("-")[0])
                elif names.endswith(".tmp"):
                    found.unlink()
            _close(lock)


def _remove_of_workers(process: str) -> None:
    """What joblib names after the process that started workers, once there is none of that number."""
    if not process.isdecimal() or Path("/proc", process).exists():
        return
    for found in chain.from_iterable(_SHARED.glob(each.format(process)) for each in _OF_WORKERS):
        with suppress(OSError):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def _locked(path: str | Path) -> int | None:
    """The descriptor that holds the lock; None: it is another's, or what is there is, or it has gone."""
    try:
        import fcntl
    except ImportError:
        return _NO_LOCKS
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if os.fstat(opened).st_uid == os.geteuid():
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return opened
    except OSError:
        pass
    os.close(opened)
    return None


def _close(lock: int | None) -> None:
    if lock is not None and lock != _NO_LOCKS:
        os.close(lock)
