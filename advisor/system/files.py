"""Files appear whole or not at all, what was there before is kept where asked; only plain files are read."""

from __future__ import annotations

import errno
import filecmp
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advisor.errors import InputError
from advisor.system.temporary import file_beside

_MOST_TEXT = 10**8  # bytes of what people or this package write; a report has a few of 10^6
_LARGE = 2**16  # bytes: whoever asks for more is asked in turn whether there are so many


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file to be read. Raises OSError where it is none: a pipe may be waited for, a device may not end."""
    # Making 50,000 Paths takes a second.
    file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return _Reader(file)


class _Reader(io.BufferedReader):
    """Takes memory for what there is to read alone: Pillow asks for all that a PNG says is there."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Like any file's."""
        if size is not None and size > _LARGE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), _LARGE))
        return super().read(size)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """What a text file holds. Raises OSError, also where it is far too large; UnicodeDecodeError."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST_TEXT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        return file.read().decode(encoding).replace("\r\n", "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. Raises OSError; ValueError where it is not JSON."""
    return parse_json(read_text(path))


def parse_json(text: str | bytes, **how: Any) -> Any:
    """What JSON says. Raises ValueError, also where it is nested without an end."""
    try:
        return json.loads(text, **how)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_whole(
    path: str | os.PathLike[str], content: str | bytes | Iterator[bytes], *, keep_old: bool = False
) -> None:
    """Write text, as UTF-8, or bytes through a temporary file beside `path`, so no reader sees half of it.

    `-` is stdout. A symbolic link is followed; a device or a pipe is written to directly.

    Args:
        keep_old: a file with another content that is there already is kept as `path~`.

    Raises:
        InputError: the file can't be written.
    """
    if isinstance(content, str) and path == "-":
        sys.stdout.write(content)
        return
    target = Path(os.path.realpath(path))
    # A path may hold bytes that aren't UTF-8; a report is still worth having then.
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    parts = (content,) if isinstance(content, bytes) else content
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(b"".join(parts))
            return
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                file.writelines(parts)
            kept = kept_name(target) if keep_old else None
            if kept is not None and not filecmp.cmp(target, temporary, shallow=False):
                with replacing(kept) as copy:
                    shutil.copy2(target, copy)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: str | os.PathLike[str] | None) -> None:
    """Refuse a file that `write_whole` couldn't write: before the work, not after it. Raises InputError."""
    if path is None or path == "-":
        return
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise InputError(f"{path} is a folder; give a file name to write to")
        if not target.parent.is_dir():
            raise InputError(f"{path}: the folder {target.parent} does not exist; make it first")
        if target.exists() and not target.is_file():
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        with file_beside(target) as temporary:
            temporary.touch()
        kept = kept_name(target)
        if kept is not None and kept.is_dir():
            raise InputError(
                f"{path} is there already and can't be kept as {kept.name}, which is a folder; "
                "give another name"
            )
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise _unwritable(path, error) from error


def make_folder(path: Path) -> None:
    """Make the folder if need be. Raises InputError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: can't be written to ({reason}); give another folder") from error


def kept_name(path: str | os.PathLike[str]) -> Path | None:
    """Under which name the file that is there now is kept; None where there is none to keep."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}~") if target.is_file() else None


def _unwritable(path: str | os.PathLike[str], error: OSError | ValueError) -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return InputError(f"{path}: can't be written ({reason}); give a file in a folder you can write to")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path`, which takes its place in the end; nothing of it is left where that fails.

    Once it has the name, it is whole, even where the power is cut then.
    """
    with file_beside(path) as temporary:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
