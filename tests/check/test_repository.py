"""A small repository with a check: green, a wider layer, a flip, a broken limit, a leaner layer.

The same in every format, through the command, GitHub's action and the pre-commit hook.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from advisor.cli import main
from tests.processes import run_command

ROOT = Path(__file__).parents[2]
NETS = """
from torch import nn

WIDTHS = {"stem": 8, "middle": 16, "last": 16}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        stem, middle, last = WIDTHS.values()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1), nn.BatchNorm2d(stem), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(stem, middle, 3, padding=1), nn.BatchNorm2d(middle), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(middle, last, 1), nn.BatchNorm2d(last), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(last, 5)

    def forward(self, x):
        return self.head(self.pool(self.last(self.middle(self.stem(x)))))
"""


class Repository:
    """A folder under git, in which commands run."""

    def __init__(self, folder):
        self.folder = folder
        self.write("nets.py", NETS)
        self.write(".gitignore", "__pycache__\n*.sarif\n*.xml\n*.md\n")
        self.git("init", "-q")
        self.commit("A network")

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def replace(self, name, old, new):
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def git(self, *arguments):
        identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def commit(self, message):
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def restore(self):
        self.git("checkout", "-q", ".")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with `init` done and committed."""
    folder = tmp_path_factory.mktemp("repository")
    repository = Repository(folder)
    arguments = ["init", "nets:Net", "--name", "net", "--input-size", "3x32x32"]
    more = ["--ram", "2MB", "--methods", "norm,full"]
    done = run_command(*arguments, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    repository.commit("What fine-tuning it may cost")
    return repository, done


@pytest.fixture
def repository(made, monkeypatch):
    monkeypatch.chdir(made[0].folder)
    yield made[0]
    made[0].restore()


def run(capsys, *arguments):
    """The command's exit code, and what it wrote to stdout and stderr."""
    with pytest.raises(SystemExit) as done:
        main(arguments)
    captured = capsys.readouterr()
    return done.value.code or 0, captured.out, captured.err


def run_in(folder, command, environment):
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def check_in_every_format(capsys, *more):
    """The exit code, and the content of every format by its name."""
    files = {"json": "check.json", "sarif": "check.sarif", "junit": "check.xml", "markdown": "check.md"}
    asked = [part for option, name in files.items() for part in (f"--{option}", name)]
    code, out, err = run(capsys, "check", "--github", *asked, *more)
    for name in files.values():
        assert Path(name).exists(), err
    content = {option: Path(name).read_text() for option, name in files.items()}
    for name in files.values():
        Path(name).unlink()
    annotations = "".join(line + "\n" for line in out.splitlines() if line.startswith("::"))
    text = "".join(line + "\n" for line in out.splitlines() if not line.startswith("::"))
    return code, content | {"text": text, "annotations": annotations}


def results(content):
    """SARIF's, by rule."""
    return {result["ruleId"]: result for result in json.loads(content["sarif"])["runs"][0]["results"]}


def test_init_writes_what_check_reads(made, repository, capsys):
    done = made[1]
    assert "pyproject.toml" in done.stderr
    assert "peft-advisor-baseline.json" in done.stderr
    (target,) = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["peft-advisor"]["models"].values()
    assert target["model"] == "nets:Net"
    assert target["ram"] == "2MB"
    baseline = json.loads(Path("peft-advisor-baseline.json").read_text())
    assert "middle.0" in baseline["models"]["net"]["default"]["layers"]

    code, content = check_in_every_format(capsys)
    assert code == 0, content["text"]
    assert results(content) == {}
    assert content["annotations"] == ""
    assert ElementTree.fromstring(content["junit"]).findall(".//failure") == []
    assert json.loads(content["json"])["exit_code"] == 0

    code, _, err = run(capsys, "init", "nets:Net", "--name", "net")
    assert code == 2
    assert "configured already" in err
    assert repository.git("status", "--short") == ""


def test_a_layer_twice_as_wide_fails_and_is_named_in_every_format(repository, capsys):
    repository.replace("nets.py", '"middle": 16', '"middle": 32')
    code, content = check_in_every_format(capsys)
    assert code == 1
    for form, text in content.items():
        assert "middle.0" in text, form
    assert "32x8x3x3" in content["text"]
    result = results(content)["cost-increased"]
    assert result["level"] == "error"
    place = result["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "pyproject.toml"
    (failure,) = ElementTree.fromstring(content["junit"]).findall(".//failure")
    assert "middle.0" in (failure.text or "") + failure.get("message", "")
    assert content["annotations"].startswith("::error ")

    # what is meant is kept, and passes from then on
    code, *_ = run(capsys, "check", "--update")
    assert code == 0
    assert run(capsys, "check", "--quiet")[0] == 0
    changed = repository.git("diff", "--unified=0", "--", "peft-advisor-baseline.json")
    assert '-          "middle.0": ["standard", "16x8x3x3"' in changed
    assert '+          "middle.0": ["standard", "32x8x3x3"' in changed


def test_formats_print_what_the_files_hold(repository, capsys):
    repository.replace("nets.py", '"middle": 16', '"middle": 32')
    code, printed, _ = run(capsys, "check", "--format", "markdown")
    assert (code, printed) == run(capsys, "check", "--markdown", "-")[:2]
    assert code == 1
    code, printed, _ = run(capsys, "check", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert (code, {row["model"] for row in rows}, {row["state"] for row in rows}) == (1, {"net"}, {"FAIL"})
    assert all(int(row["now"]) >= int(row["before"]) for row in rows)


def test_a_recommendation_that_flips_fails(repository, capsys):
    kept = json.loads(Path("peft-advisor-baseline.json").read_text())["models"]["net"]["default"][
        "recommended"
    ]
    # Without normalisation, what was recommended has nothing to train.
    repository.replace("nets.py", "nn.BatchNorm2d(stem)", "nn.Identity()")
    repository.replace("nets.py", "nn.BatchNorm2d(middle)", "nn.Identity()")
    repository.replace("nets.py", "nn.BatchNorm2d(last)", "nn.Identity()")
    code, content = check_in_every_format(capsys)
    assert code == 1
    result = results(content)["recommendation-flipped"]
    assert f"instead of {kept}" in result["message"]["text"]
    for form, text in content.items():
        assert kept in text, form
        assert "stem.1" in text, form  # a layer that is gone


def test_a_limit_that_breaks_fails(repository, capsys):
    repository.replace("nets.py", '"stem": 8', '"stem": 400')
    code, content = check_in_every_format(capsys)
    assert code == 1
    result = results(content)["budget-broken"]
    assert "2.00 MB" in result["message"]["text"]
    for form, text in content.items():
        assert "stem.0" in text, form


def test_a_leaner_layer_passes_and_the_update_is_suggested(repository, capsys):
    repository.replace("nets.py", '"middle": 16', '"middle": 8')
    code, content = check_in_every_format(capsys)
    assert code == 0
    assert results(content)["cost-decreased"]["level"] == "note"
    for form in ("text", "sarif", "annotations", "markdown", "json"):
        assert "check --update" in content[form], form
        assert "middle.0" in content[form], form


def test_the_action_runs_its_steps(repository, tmp_path):
    repository.replace("nets.py", '"middle": 16', '"middle": 32')
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {name: str(given.get("default", "")) for name, given in action["inputs"].items()}
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "check"]
    given = {
        name: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, value in step["env"].items()
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "peft-advisor"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m advisor "$@"\n')
    command.chmod(0o755)
    summary, output = tmp_path / "summary.md", tmp_path / "output.txt"
    environment = (
        os.environ
        | given
        | {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_OUTPUT": str(output),
        }
    )
    shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    done = run_in(repository.folder, shell, environment)
    assert done.returncode == 1, done.stderr
    assert output.read_text() == "exit-code=1\n"
    assert "middle.0" in summary.read_text()
    assert "::error " in done.stdout
    for name in ("sarif", "junit", "markdown"):
        path = repository.folder / inputs[name]
        assert "middle.0" in path.read_text()
        path.unlink()
    # what the other step installs is this project
    (install,) = [step for step in action["runs"]["steps"] if step["name"] == "Install"]
    assert install["env"] == {"INSTALL": "${{ inputs.install }}", "ACTION_PATH": "${{ github.action_path }}"}
    asked = subprocess.run(
        ["bash", "-c", f'python() {{ echo "$@"; }}; {install["run"]}'],
        env=os.environ | {"INSTALL": "self", "ACTION_PATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.split() == ["-m", "pip", "install", "--quiet", str(ROOT)]
    assert (ROOT / "pyproject.toml").exists()


def test_the_pre_commit_hook_stops_such_a_commit(repository, tmp_path):
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    offered = Repository(hooks)  # a repository of its own, as pre-commit asks for
    revision = offered.git("rev-parse", "HEAD").strip()
    repository.write(
        ".pre-commit-config.yaml",
        f"repos:\n- repo: {hooks}\n  rev: {revision}\n  hooks:\n  - id: peft-advisor-check\n",
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "peft-advisor").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m advisor "$@"\n')
    (folder / "peft-advisor").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
    }
    repository.replace("nets.py", '"middle": 16', '"middle": 32')
    repository.git("add", "-A")
    command = [sys.executable, "-m", "pre_commit", "run", "peft-advisor-check"]
    done = run_in(repository.folder, command, environment)
    repository.git("reset", "-q")
    (repository.folder / ".pre-commit-config.yaml").unlink()
    assert done.returncode == 1, done.stderr
    assert "fine-tuning costs" in done.stdout
    assert "Failed" in done.stdout
    assert "middle.0" in done.stdout
    assert "deprecated" not in done.stdout + done.stderr
