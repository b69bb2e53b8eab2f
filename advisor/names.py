"""What may be typed for a model, a method or an option, told without importing it; and what was meant.

The names are read from the sources: torch alone takes seconds to import, and a shell that completes a word,
or a line about a mistyped one, should not wait for it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from advisor.errors import InputError

NAMED_FORMS = "torchvision:NAME, timm:NAME, FILE.py:FUNCTION or package.module:factory"
OPTIMIZERS = ("adam", "adamw", "momentum", "sgd")
RESIZES = {"crop": "center", "squash": "squash", "pad": "border"}  # as typed -> as a `Framing` has it
METRICS = ("accuracy", "balanced", "recall:CLASS")
AUGMENTS = ("none", "flip", "standard")
SCENARIOS = ("auto", "shift", "new-classes")
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps")
EXECUTORS = ("here", "local", "local:", "dask://", "ray", "ray://")  # as they begin
_EXECUTOR = re.compile(r"here|local(:0*[1-9]\d*)?|dask://.*|ray(://.*)?")
# What `--rehearse` takes: the keys of `advisor.data.corruptions`.
CORRUPTIONS = (
    *("gaussian-noise", "shot-noise", "speckle-noise", "impulse-noise"),
    *("defocus-blur", "gaussian-blur", "glass-blur", "motion-blur", "zoom-blur"),
    *("fog", "snow", "frost", "spatter"),
    *("elastic-transform", "saturate", "brightness", "contrast", "pixelate", "jpeg"),
)
_CODE = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.]*")
_NEAR = 0.6  # difflib's similarity from which on a name may have been meant
_LISTED = 5000  # entries of a folder that are looked at
_SHORTEST = 3  # letters from which on a part of a name tells it
_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)


def near(typed: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Those of the known names that may have been meant, the nearest first; case, - and _ don't count."""
    alike = {_plain(name): name for name in known}
    word = _plain(typed)
    found = difflib.get_close_matches(word, alike, n=most, cutoff=_NEAR)
    if len(word) >= _SHORTEST and not any(name.startswith(word) for name in found):
        found = [*sorted((name for name in alike if name.startswith(word)), key=len), *found]
    if not found:
        found = [
            name
            for name in alike
            if min(len(word), len(name)) >= _SHORTEST and (word in name or name in word)
        ]
    return [alike[name] for name in found[:most]]


def did_you_mean(typed: str, known: Iterable[str], most: int = 1) -> str:
    """`; did you mean lora?`, to end a message with; empty where nothing is near."""
    found = near(typed, known, most)
    return f"; did you mean {' or '.join(map(_shown, found))}?" if found else ""


def parse_metric(text: str) -> str:
    """As a `Budget` has it: `accuracy`, `balanced` or `recall:CLASS`. Raises InputError."""
    kind, colon, called = text.partition(":")
    if colon and kind.strip().lower() == "recall" and called.strip():
        return f"recall:{called.strip()}"
    return one_of("--metric", text, METRICS)


def answered(accuracy: str, samples: int, metric: str) -> str:
    """`71.3 % of 250 held-out images right`, and the like, in the metric.

    Args:
        accuracy: in words.
        samples: that it was judged on.
    """
    kind, _, called = metric.partition(":")
    if kind == "recall":
        return f"{accuracy} of {samples:,} held-out images of {called!r} found"
    if kind == "balanced":
        return f"{accuracy} balanced accuracy on {samples:,} held-out images"
    return f"{accuracy} of {samples:,} held-out images right"


def achieved_text(accuracy: str, metric: str) -> str:
    """`71.3 % right on new images`, and the like, in the metric: for a title."""
    kind, _, called = metric.partition(":")
    if kind == "recall":
        return f"{accuracy} of new {called!r} images found"
    if kind == "balanced":
        return f"{accuracy} balanced accuracy on new images"
    return f"{accuracy} right on new images"


def check_at_least_one(option: str, value: int) -> None:
    """Raises InputError where the option's value is below 1."""
    if value < 1:
        raise InputError(f"{option} {value} must be at least 1")


def check_device(text: str) -> str:
    """What `--device` names, as torch does. Raises InputError where it can be no device."""
    word = text.strip().lower()
    if not _DEVICE.fullmatch(word):
        raise InputError(f"--device {text!r} is not known; use auto, cpu, cuda, cuda:N or mps")
    return word


def one_of(option: str, text: str, known: Sequence[str]) -> str:
    """The known word that the text is, in whatever case. Raises InputError."""
    word = text.strip().lower()
    if word not in known:
        meant = did_you_mean(text, known)
        others = f"{' It takes' if meant else '; use'} {', '.join(known[:-1])} or {known[-1]}"
        raise InputError(f"{option} {text!r} is not known{meant}{others}".strip())
    return word


def told_apart(texts: Sequence[str]) -> list[str]:
    """Short names of models or files, such as `resnet18`, or as they were typed where two would be alike."""
    short = [text.rpartition(":")[2] if ":" in text else Path(text).stem or text for text in texts]
    return short if len(set(short)) == len(short) else list(texts)


def near_files(text: str, suffixes: tuple[str, ...], *, folders: bool = False) -> list[str]:
    """Files beside a missing one whose names are near to its, as they would be typed.

    Args:
        suffixes: of the files that count.
        folders: whether these count, too.
    """
    folder, name = os.path.split(text)
    try:
        with os.scandir(folder or ".") as entries:
            beside = {  # by what differs: an ending that is alike makes no name alike
                os.path.splitext(entry.name)[0]: entry.name  # noqa: PTH122 - text, as it was typed
                for entry in islice(entries, _LISTED)
                if entry.name.endswith(suffixes) or (folders and entry.is_dir())
            }
    except (OSError, ValueError):  # no such folder, a null byte
        return []
    stem = os.path.splitext(name)[0]  # noqa: PTH122
    return [os.path.join(folder, beside[found]) for found in near(stem, beside)]  # noqa: PTH118


def names_code(text: str) -> bool:
    """Whether it is of the form `package.module:name` or `file.py:name`."""
    return _CODE.fullmatch(text) is not None


def missing_model(text: str) -> str:
    """Of a model that is no file: why it can't be loaded, and what may have been meant."""
    for library, models in (("torchvision", torchvision_models), ("timm", timm_models)):
        if text.isidentifier() and text in models():
            return f"does not exist; for {library}'s network write {library}:{text}"
    found = near_files(text, (".pt", ".pth", ".safetensors"))
    if not found and text.isidentifier():
        found = [f"torchvision:{name}" for name in near(text, torchvision_models())]
    if found:
        return f"does not exist; did you mean {_shown(found[0])}?"
    return f"does not exist; give a file, {NAMED_FORMS}"


def unknown_model(library: str, name: str, known: Iterable[str]) -> str:
    """Of a name that a library of networks doesn't have."""
    kind = "classification model" if library == "torchvision" else "model"
    return f"{library} has no {kind} {name!r}{did_you_mean(name, known, most=3)}"


def check_executor(spec: str) -> None:
    """Raises InputError where `--executor` takes no such thing."""
    if not _EXECUTOR.fullmatch(spec):
        meant = did_you_mean(spec.partition(":")[0], ("here", "local", "dask", "ray"))
        forms = "here, local, local:N, dask://HOST:PORT, ray or ray://HOST:PORT"
        raise InputError(
            f"--executor {spec!r} is not known{meant}{' It takes' if meant else '; use'} {forms}"
        )


def unknown_method(name: str, known: Sequence[str]) -> str:
    """Of a name that no method has."""
    return f"unknown method {name!r}" + (did_you_mean(name, known) or f"; known: {', '.join(known)}")


def missing_data(text: str) -> str:
    """Of images that are nowhere, with what may have been meant."""
    found = near_files(text, (".npz",), folders=True)
    hint = f"did you mean {_shown(found[0])}?" if found else "check the path"
    return f"data {text!r}: no such file or folder; {hint}"


def missing_report(text: str) -> str:
    """Of a saved recommendation that is nowhere."""
    found = near_files(text, (".json",))
    hint = f"did you mean {_shown(found[0])}?" if found else "give a file written with --json"
    return f"{text}: can't be read (No such file or directory); {hint}"


@cache
def method_names() -> tuple[str, ...]:
    """This package's own methods: each is a file of its name. Third parties' are not among them."""
    folder = Path(__file__).parent / "methods"
    stems = {path.stem for path in folder.glob("[a-z]*.py")} - {"base"}
    return tuple(sorted(stem.replace("_", "-") for stem in stems))


@cache
def torchvision_models() -> tuple[str, ...]:
    """torchvision's classification models; none where it is not installed."""
    return _registered("torchvision")


@cache
def timm_models() -> tuple[str, ...]:
    """timm's models; none where it is not installed."""
    return _registered("timm")


def _registered(library: str) -> tuple[str, ...]:
    """The functions that `register_model` decorates, in the files of the library's folder of models."""
    found = find_spec(library)  # imports nothing: it is no name with a dot
    folders = found.submodule_search_locations if found else None
    sources = sorted(path for folder in folders or () for path in Path(folder, "models").glob("*.py"))
    names = (name for path in sources for name in _REGISTERED.findall(path.read_text(encoding="utf-8")))
    return tuple(sorted(names))


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few, and how many others there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _shown(name: str) -> str:
    """A file's name may hold anything, a terminal's control codes included."""
    return "".join(character for character in name if character.isprintable())
