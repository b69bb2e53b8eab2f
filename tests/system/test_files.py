"""Files are written whole or not at all, and read where they are files."""

from __future__ import annotations

import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from advisor.errors import InputError
from advisor.system.files import opened, parse_json, read_text, write_whole


def test_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("a much longer text than the new one")
    write_whole(path, "new \u2192")
    assert path.read_text(encoding="utf-8") == "new \u2192"
    assert list(tmp_path.iterdir()) == [path]


def test_follows_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_keeps_devices() -> None:
    write_whole(os.devnull, "text")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("name", ["missing/report.html", ".", "file/report.html"])
def test_one_line_where_it_cannot(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written") as caught:
        write_whole(tmp_path / name, "text")
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_it_midway_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: BaseException
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def end(_: int) -> None:
        raise fails

    monkeypatch.setattr(os, "fsync", end)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_whole(path, "new", keep_old=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="not a regular file"):
            read_text(tmp_path / name)


def test_text_of_a_size_that_nobody_writes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "text").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="too large"):
        read_text(tmp_path / "text")


def test_json_that_is_nested_without_an_end_is_no_json() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_reading_takes_memory_for_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"png" * 50_000)
    tracemalloc.start()
    try:
        with opened(tmp_path / "image.png") as file:
            assert len(file.read(100_000)) == 100_000
            assert len(file.read(2**32)) == 50_000
            assert file.read(2**32) == b""
            file.seek(0)
            assert len(file.read()) == 150_000
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
