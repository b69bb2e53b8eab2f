"""Fuzzing of what reads files: real ones are mutated for a bounded time, guided by coverage where atheris is.

    python -m tests.hostile.fuzz pickle --seconds 60     # a line of JSON: how many runs, what went wrong

Without atheris, mutations are drawn at random. In either case an exception that is no refusal, an event that
no loader causes (see `bounded`), and a run of over 10 s count as faults; the input is kept beside the result.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import saved
from tests.hostile.bounded import LOADERS, forbidden

MOST_BYTES = 20_000
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord("["), ord("{"), ord("."), ord("R"), ord("c"), ord("("), ord("t"))


@dataclass(frozen=True)
class Target:
    """What is opened, as which kind, and what mutation begins with."""

    kind: str  # of `bounded.LOADERS`
    file: str
    seeds: tuple
    wrap: object = bytes  # what is mutated becomes the file's bytes


def _within(name, ending):
    """The part of a real archive that ends so, and what puts another in its place."""
    with zipfile.ZipFile(io.BytesIO(saved.model(name))) as archive:
        records = {each: archive.read(each) for each in archive.namelist()}
    (place,) = [each for each in records if each.endswith(ending)]

    def wrap(content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            for each, value in records.items():
                made.writestr(each, content if each == place else value)
        return file.getvalue()

    return records[place], wrap


def _pickled(*names):
    parts = [_within(name, "data.pkl") for name in names]
    return Target("model", "model.pt", tuple(seed for seed, _ in parts), parts[0][1])


def _described(ending):
    seed, wrap = _within("program.pt2", ending)
    return Target("model", "model.pt2", (seed,), wrap)


def _adapter(file):
    recipe, tensors = saved.adapter()
    unsigned = json.dumps(json.loads(recipe) | {"adapter_sha256": ""}).encode()
    return Target("adapter", file, (tensors if file.endswith(".safetensors") else unsigned,))


_TOML = b'[tool.peft-advisor]\nmodel = "a"\nram = "64MB"\n[tool.peft-advisor.check]\n'
# Each makes its target: what real files are like takes a while to make.
TARGETS = {
    "pickle": lambda: _pickled("small.pt", "module.pt", "protocol4.pt"),
    "scripted": lambda: _pickled("script.pt"),
    "older": lambda: Target("model", "model.pth", (saved.model("older.pth"),)),
    "zip": lambda: Target("model", "model.pt", (saved.model("small.pt"), saved.model("script.pt"))),
    "safetensors": lambda: Target("model", "m.safetensors", (saved.model("weights.safetensors"),)),
    "program": lambda: _described("model.json"),
    "program's weights": lambda: _described("model_weights_config.json"),
    "arrays": lambda: Target("data", "data.npz", (saved.arrays(),)),
    "images": lambda: Target(
        "picture", "a.png", tuple(saved.picture(**how) for how in saved.PICTURES.values())
    ),
    "answer": lambda: Target("answer", "advice.json", (saved.answer().encode(),)),
    "baseline": lambda: Target("baseline", "baseline.json", (saved.baseline().encode(),)),
    "recipe": lambda: _adapter("recipe.json"),
    "adapter": lambda: _adapter("adapter.safetensors"),
    "store": lambda: Target("store", "store.sqlite", (saved.store(),)),
    "configuration": lambda: Target(
        "configuration", "pyproject.toml", (b'[tool.peft-advisor]\nmodel = "a"\n',)
    ),
}


class Fuzzing:
    """Runs one target, and keeps what went wrong."""

    def __init__(self, name, kept):
        self.target = TARGETS[name]()
        self.runs, self.faults = 0, {}
        self._name, self._kept = name, kept
        self._folder = Path(tempfile.mkdtemp())
        self._events = []
        self._is_open = False
        sys.addaudithook(self._note)
        signal.signal(signal.SIGPROF, _too_long)

    def one(self, content):
        """Open one file; the same fault is kept once."""
        self.runs += 1
        path = self._folder / self.target.file
        path.write_bytes(self.target.wrap(content[:MOST_BYTES]))
        if self.target.kind == "adapter":
            self._complete(path)
        opened = path.parent if self.target.kind == "adapter" else path
        fault = ""
        signal.setitimer(signal.ITIMER_PROF, 10)  # of a processor
        self._is_open = True
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                LOADERS[self.target.kind](str(opened))
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            trace = error.__traceback__
            while trace.tb_next:
                trace = trace.tb_next
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            fault = f"{type(error).__name__}: {str(error)[:200]} ({where})"
        finally:
            self._is_open = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        fault = fault or ", ".join(self._events)
        self._events.clear()
        if fault and fault not in self.faults:
            self.faults[fault] = str(self._kept / f"{self._name}-{len(self.faults)}")
            Path(self.faults[fault]).write_bytes(content)
        for left in self._folder.iterdir():  # a store's are several
            left.unlink()

    def _complete(self, path):
        recipe, tensors = saved.adapter()
        if path.name == "recipe.json":
            (path.parent / "adapter.safetensors").write_bytes(tensors)
        else:
            unsigned = json.loads(recipe) | {"adapter_sha256": ""}
            (path.parent / "recipe.json").write_text(json.dumps(unsigned))

    def _note(self, event, arguments):
        if self._is_open and (said := forbidden(self.target.kind, event, arguments)):
            self._events.append(said)


def _too_long(number, frame):
    raise TimeoutError("it took over 10 s")


def mutated(seeds, randomness):
    """One of them, with some of its bytes changed, left out, doubled or taken from another."""
    content = bytearray(randomness.choice(seeds))
    for _ in range(randomness.choice([1, 1, 2, 4, 16])):
        at = randomness.randrange(len(content) + 1)
        end = min(at + randomness.choice([1, 1, 2, 4, 8, 64]), len(content))
        kind = randomness.randrange(5)
        if kind == 0:
            content[at:end] = bytes(randomness.choices(_INTERESTING, k=end - at))
        elif kind == 1:
            del content[at:end]
        elif kind == 2:
            content[at:at] = content[at:end] * randomness.choice([1, 2, 100])
        elif kind == 3:
            other = randomness.choice(seeds)
            begin = randomness.randrange(len(other))
            content[at:end] = other[begin : begin + randomness.randrange(1, 65)]
        elif end > at:
            content[at] ^= 1 << randomness.randrange(8)
    return bytes(content)


def _guided(fuzzing, seconds, folder):
    """With atheris: it ends the process, so what was found is told before."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(fuzzing.target.seeds):
        (corpus / str(number)).write_bytes(seed[:MOST_BYTES])
    options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", "-rss_limit_mb=8000", "-verbosity=0"]
    end = time.monotonic() + seconds

    def one(content):
        fuzzing.one(content)
        if time.monotonic() > end:
            _tell(fuzzing, guided=True)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    _tell(fuzzing, guided=True)


def _tell(fuzzing, *, guided):
    answer = {"runs": fuzzing.runs, "faults": fuzzing.faults, "guided": guided}
    os.write(_ANSWERS, (json.dumps(answer) + "\n").encode())
    os._exit(0)


def _instrumented():
    """What is imported within it tells atheris which of its branches are taken."""
    if importlib.util.find_spec("atheris") is None:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=["advisor"])


def main():
    """Fuzz one target for a while."""
    parser = argparse.ArgumentParser(description="Fuzz what reads files.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with _instrumented():
        fuzzing = Fuzzing(given.target, given.kept)
        for seed in fuzzing.target.seeds:
            fuzzing.one(seed)  # with whatever it imports
    if importlib.util.find_spec("atheris") is not None:
        _guided(fuzzing, given.seconds, Path(tempfile.mkdtemp()))
    randomness = random.Random(0)
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        fuzzing.one(mutated(fuzzing.target.seeds, randomness))
    _tell(fuzzing, guided=False)


if __name__ == "__main__":
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    main()
