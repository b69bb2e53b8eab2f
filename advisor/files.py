"""Files appear whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advisor.errors import InputError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes through a temporary file beside `path`, so no reader sees half of it.

    `-` is stdout. A symbolic link is followed; a device or a pipe is written to directly.
    Raises InputError where the file can't be written.
    """
    if path == "-":
        sys.stdout.write(content if isinstance(content, str) else content.decode())
        return
    target = Path(os.path.realpath(path))
    # A path may hold bytes that aren't UTF-8; a report is still worth having then.
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
            return
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: can't be written ({reason}); give a file in a folder you can write to"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path`, which takes its place in the end; nothing of it is left where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
