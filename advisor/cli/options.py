"""Options that several commands share, and what their text means."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from advisor import names
from advisor.cli import talk
from advisor.errors import DataError, InputError, ModelError, UnitError

if TYPE_CHECKING:
    from advisor.data import Normalisation

FEWEST = "fewest"  # what a bare --flops-budget stands for

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .pt/.pth or .safetensors file, a hub's folder, torchvision:NAME, timm:NAME, FILE.py:FUNCTION "
        "or package.module:factory.",
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The architecture of a state dict, where it is not found: NAME, torchvision:NAME, timm:NAME, "
        "FILE.py:FUNCTION or package.module:factory.",
    ),
]
Candidate = Annotated[
    str | None, typer.Option(metavar="NAME", help="Another candidate of the report than its choice.")
]
LearningRate = Annotated[
    float | None, typer.Option(metavar="RATE", help="Default: the best one of the candidate's probes.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow the model file to run its own code; only for files you made yourself.",
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        metavar="CxHxW", help="Such as 3x224x224; default: the architecture's, or that of all images."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="TABLE|COLUMN|first|leaf",
        help="A table of file names and classes; or the column of Hugging Face's dataset that holds the "
        "classes; or which folders are the classes, where folders lie in folders (default: first).",
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="The model's class names, in the order of its outputs."),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Per channel, of images in [0, 1]; default: timm's, or ImageNet's."),
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Likewise; the two go together.")]
Strict = Annotated[bool, typer.Option("--strict", help="What is found wrong with the data ends the command.")]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.csv|PATTERN",
        help="Which images are held out together: a table with the columns file and group; or those whose "
        "names have the same part that this regular expression matches, such as 'video[0-9]+'; default: "
        "names and looks tell.",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="crop|squash|pad",
        help="How images of another shape are fitted to the input size; default: the network's own, or crop.",
    ),
]
Channels = Annotated[
    str, typer.Option(metavar="rgb|bgr", help="The order of the channels that the network was trained with.")
]
Orientation = Annotated[
    str,
    typer.Option(
        metavar="exif|stored",
        help="Turn images as their EXIF says, as viewers do, or leave them as they are stored, as "
        "torchvision's ImageFolder does.",
    ),
]
Form = Annotated[
    Literal["terminal", "json", "markdown", "html", "csv"],
    typer.Option("--format", help="Of what is printed; csv has a line for each candidate."),
]
ComparedForm = Annotated[
    Literal["terminal", "json", "markdown", "html", "csv"],
    typer.Option("--format", help="Of what is printed; csv has a line for each answer."),
]
TableForm = Annotated[
    Literal["terminal", "json", "markdown", "csv"], typer.Option("--format", help="Of what is printed.")
]
TextForm = Annotated[
    Literal["terminal", "json", "markdown"], typer.Option("--format", help="Of what is printed.")
]
BatchSize = Annotated[int, typer.Option(help="Images in one update.")]
Ram = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most that one update may hold, such as 512MB, 64MiB.")
]
RamIncludesRuntime = Annotated[
    bool | None,
    typer.Option(
        "--ram-includes-runtime/--ram-without-runtime",
        help="Whether --ram holds what Python, PyTorch and Pillow take besides the update, the target's or "
        "as measured here; default: with --target.",
    ),
]
FlopsBudget = Annotated[
    str | None,
    typer.Option(
        metavar="[FLOPS]",
        help="Most FLOPs of one update, such as 2GFLOPs; bare: among the methods as accurate as the "
        "best, the one with the fewest.",
    ),
]
Storage = Annotated[str | None, typer.Option(metavar="SIZE", help="Most bytes to ship, such as 1MB.")]
StepTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Longest that one update may take, such as 50ms: on the target, or on this machine, when run.",
    ),
]
TotalTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Longest that the fine-tune may take on the target, such as 20m."),
]
Energy = Annotated[
    str | None,
    typer.Option(
        metavar="JOULES",
        help="Most energy that the fine-tune may take on the target, such as 500J or 2Wh, where that tells "
        "its power.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.json|NAME",
        help="The device that the advice is for: what `peft-advisor device measure` printed there, or a "
        "shipped profile, such as x86-1-thread. Predicts seconds.",
    ),
]
MaxTrainable = Annotated[
    str | None, typer.Option(metavar="COUNT", help="Most parameters that are trained, such as 50k.")
]
MaxOverhead = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT|merge",
        help="Most FLOPs that an inference takes more once all that can be is merged, such as 2%; "
        "merge: none.",
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        metavar="ram|flops|storage|time",
        help="Of those as good as the best, take the one with the least of it (default: ram).",
    ),
]
Warn = Annotated[
    str | None,
    typer.Option(
        metavar="LIMIT,...",
        help="Limits that are told where they are broken and exclude nothing: ram, flops, ...",
    ),
]
Methods = Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these methods; default: all.")]
Ranks = Annotated[str, typer.Option(metavar="R,R,...", help="Ranks of the low-rank methods.")]
Augment = Annotated[
    str,
    typer.Option(
        metavar="none|flip|standard",
        help="What is trained on: images as they are; mirror images, too; or random crops, half of them "
        "mirrored (inputs up to 64 pixels: shifted by up to an eighth, as on CIFAR).",
    ),
]
Optimizer = Annotated[
    str, typer.Option(metavar="adam|adamw|momentum|sgd", help="The optimizer of every candidate.")
]
Tolerance = Annotated[
    float, typer.Option(metavar="POINTS", help="Percentage points below the best that count as as good.")
]
ReportPath = Annotated[str | None, typer.Option(metavar="FILE", help="Write the report, one HTML page.")]
JsonPath = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - prints it alone.")
]
Everything = Annotated[
    bool, typer.Option("--all", help="Print every candidate and note, not just what fits on one screen.")
]
StorePath = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FILE",
        help="Where finished probes and costs are kept; default: in the user's cache folder.",
    ),
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Neither read nor keep finished work.")]
Seed = Annotated[int, typer.Option(help="Of the data split, the batches and every initialisation.")]


def usable_store(text: str | None, *, no_store: bool = False) -> Path | None:
    """The path that was given, or the default one where a store can be there: else a warning and None.

    Raises InputError where the path that was given can't be used, or none is wanted as well.
    """
    from advisor.store import Store, default_path

    if no_store and text is not None:
        raise InputError("--store and --no-store exclude each other; leave one out")
    if no_store:
        return None
    try:
        path = default_path() if text is None else Path(text)
        with Store(path) as store:
            if store.trouble:
                talk.notice(f"warning: {store.trouble}")
    except (InputError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        if text is not None:
            raise
        talk.notice(f"warning: nothing is remembered: {error}")
        return None
    return path


def parse_input_size(text: str | None) -> tuple[int, int, int] | None:
    """`3x224x224` -> (3, 224, 224). Raises InputError."""
    if text is None:
        return None
    from advisor import units

    try:
        return units.parse_input_size(text)
    except UnitError as error:
        raise InputError(f"--input-size {error}") from error


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """`a,b` -> ("a", "b"), each once."""
    if text is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_class_names(text: str | None) -> tuple[str, ...] | None:
    """`a,b` -> ("a", "b"), as many as were given. Raises InputError on a repeated or an empty name.

    Each stands for one of the model's outputs: left out in silence, it would move all that follow.
    """
    if text is None:
        return None
    found = tuple(name.strip() for name in text.split(","))
    repeated = [name for name, count in Counter(found).items() if count > 1 and name]
    if repeated:
        raise InputError(
            f"--classes names {', '.join(map(repr, repeated))} more than once; give one name for each of the "
            "model's outputs, all different"
        )
    if not all(found):
        raise InputError(
            f"--classes {text!r} has an empty name; give one name for each of the model's outputs"
        )
    return found


def parse_probe_time(text: str) -> float | Literal["auto"]:
    """`5m` -> 300.0. Raises UnitError; none at all is another option."""
    from advisor.units import parse_seconds

    if text.strip().lower() == "auto":
        return "auto"
    if re.fullmatch(r"\s*[+-]?0*\.?0*\s*[a-z]*\s*", text, re.IGNORECASE) and "0" in text:
        raise UnitError(f"--probe-time {text!r}: probes need time; to train nothing, give --no-probe instead")
    return parse_seconds(text)


def check_model(text: str) -> None:
    """Tell of a missing file or name what `load_model` would, without the seconds that its imports take.

    What may be the name of a factory, or one of timm's many, is left to `load_model`. Raises ModelError.
    """
    if os.path.lexists(text):
        return
    library, _, name = text.partition(":")
    if library == "torchvision" and name:
        known = names.torchvision_models()
        if known and name not in known:
            raise ModelError(names.unknown_model(library, name, known))
    elif (library != "timm" or not name) and not names.names_code(text):
        raise ModelError(f"{text}: {names.missing_model(text)}")


def check_report(text: str) -> None:
    """Likewise of a missing report what `Recommendation.load` would. Raises InputError."""
    if not os.path.lexists(text):
        raise InputError(names.missing_report(text))


def check_data(text: str | None) -> None:
    """Likewise of missing data what `load_data` would. Raises DataError."""
    if text is None or text == "digits" or text.startswith("torchvision:") or names.names_code(text):
        return
    text = text.removeprefix("hf:")
    try:
        if text.strip() and Path(text).expanduser().exists():
            return
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home
        pass
    raise DataError(names.missing_data(text))


def parse_methods(text: str | None) -> tuple[str, ...] | None:
    """Method names, checked. Raises InputError on an unknown one, or on none."""
    found = parse_names(text)
    if found is None:
        return None
    if not found:
        raise InputError("--methods names no method; `peft-advisor methods` lists them")
    for name in found:
        check_method(name)
    return found


def check_method(name: str) -> None:
    """Raises InputError on an unknown one; where there are no third parties' methods, without torch."""
    from importlib.metadata import entry_points

    own = names.method_names()
    if name in own:
        return
    if not entry_points(group="peft_advisor.methods"):
        raise InputError(names.unknown_method(name, own))
    from advisor.methods import get_method

    get_method(name)


def parse_ranks(text: str) -> tuple[int, ...]:
    """`2,4,8` -> (2, 4, 8), ascending. Raises InputError."""
    try:
        ranks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        ranks = []
    if not ranks or ranks[0] < 1:
        raise InputError(f"--ranks {text!r} is not a list of positive whole numbers, such as 2,4,8")
    return tuple(ranks)


def parse_optimizer(text: str) -> str:
    """Adam, adamw, momentum or sgd. Raises InputError."""
    return names.one_of("--optimizer", text, names.OPTIMIZERS)


def parse_augment(text: str) -> Literal["none", "flip", "standard"]:
    """As typed. Raises InputError."""
    found: Literal["none", "flip", "standard"]
    found = names.one_of("--augment", text, names.AUGMENTS)  # type: ignore[assignment]
    return found


def parse_resize(text: str | None) -> Literal["center", "squash", "border"] | None:
    """As a `Framing` calls it. Raises InputError."""
    if text is None:
        return None
    found: Literal["center", "squash", "border"]
    found = names.RESIZES[names.one_of("--resize", text, tuple(names.RESIZES))]  # type: ignore[assignment]
    return found


def parse_channels(text: str) -> Literal["rgb", "bgr"]:
    """Rgb or bgr. Raises InputError."""
    return "bgr" if names.one_of("--channels", text, ("rgb", "bgr")) == "bgr" else "rgb"


def parse_orientation(text: str) -> Literal["exif", "stored"]:
    """Exif or stored. Raises InputError."""
    return "stored" if names.one_of("--orientation", text, ("exif", "stored")) == "stored" else "exif"


def parse_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """Per-channel values of images in [0, 1]. Raises InputError."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std go together, such as --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5")
    from advisor.data import Normalisation

    try:
        means, stds = (tuple(float(part) for part in text.split(",")) for text in (mean, std))
    except ValueError as error:
        raise InputError(
            f"--mean {mean} --std {std}: not lists of numbers, such as 0.485,0.456,0.406"
        ) from error
    if len(means) != len(stds) or min(stds) <= 0:
        raise InputError("--mean and --std need one value for each channel, and every std above 0")
    return Normalisation(means, stds)
