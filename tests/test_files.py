"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from advisor.errors import InputError
from advisor.files import write_whole


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
