"""The files that a command was asked for: refused before the work, written as far as possible after it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advisor.cli import talk
from advisor.errors import DEBUG, EXIT_WRONG_INPUT, AdvisorError, InputError
from advisor.system.files import check_writable, kept_name, write_whole

if TYPE_CHECKING:
    from advisor.records import Compared, Recommendation


class Outputs:
    """By option, such as `--report`; a `--format` that is none of the terminal's is one to stdout."""

    def __init__(self, paths: Mapping[str, str | None], form: str = "terminal") -> None:
        """Check that each can be written, and say which old file will be kept under another name.

        Raises InputError.
        """
        self._form = form
        self._paths = {option: path for option, path in paths.items() if path}
        if form != "terminal":
            self._paths["--format"] = "-"
        self.failed = False
        seen: dict[str, str] = {}
        for option, path in self._paths.items():
            check_writable(path)
            same = seen.setdefault(path if path == "-" else os.path.realpath(path), option)
            if same != option and option == "--format":
                raise InputError(f"{same} - and --format {form} both print; give {same} a file's name")
            if same != option and Path(path).name != os.devnull:
                raise InputError(f"{same} and {option} both name {path}; give two names")
        for path in self._paths.values():
            say_what_is_kept(path)

    @property
    def to_stdout(self) -> bool:
        """Whether one of them takes the standard output for itself."""
        return "-" in self._paths.values()

    def write(self, option: str, content: Callable[[], str]) -> bool:
        """Write what was asked for; one line says why it can't be, and the others are still written."""
        path = self._paths.get(option)
        if path is None:
            return False
        try:
            write_whole(path, content(), keep_old=True)
        except BrokenPipeError:
            raise
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            if talk.is_verbose():
                traceback.print_exc()
            reason = str(error)
            if not isinstance(error, AdvisorError):
                first_line = (reason.strip() or "no message").splitlines()[0]
                reason = f"{path}: unexpected {type(error).__name__}: {first_line}; please report it"
            typer.echo(f"peft-advisor: error: {reason}", err=True)
            self.failed = True
            return False
        return True

    def write_form(self, renders: Mapping[str, Callable[[], str]]) -> bool:
        """Print it as `--format` asks; False where that is the terminal's own."""
        return self.write("--format", renders.get(self._form, str))

    def write_recommendation_form(self, recommendation: Recommendation) -> bool:
        """The same of an answer."""
        from advisor.report import dumps, render_csv, render_html, render_markdown

        render = {"json": dumps, "markdown": render_markdown, "html": render_html, "csv": render_csv}
        return self.write("--format", lambda: render[self._form](recommendation))

    def write_compared_form(self, compared: Sequence[Compared]) -> bool:
        """The same of several answers."""
        from advisor.report import csv_of_compared, json_of_compared, markdown_of_compared, render_comparison

        render = {
            "json": json_of_compared,
            "markdown": markdown_of_compared,
            "html": render_comparison,
            "csv": csv_of_compared,
        }
        return self.write("--format", lambda: render[self._form](compared))

    def end(self, exit_code: int = 0) -> None:
        """End the command with this exit code; what couldn't be written makes it 2."""
        if self.failed or exit_code:
            raise typer.Exit(EXIT_WRONG_INPUT if self.failed else exit_code)


def say_what_is_kept(path: str | Path) -> None:
    """Nothing is overwritten in silence."""
    kept = kept_name(path)
    if kept is not None:
        talk.notice(f"{path} is there already; if it changes, it is kept as {kept.name}")
