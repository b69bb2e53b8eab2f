"""Options that several commands share, and what their text means."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.errors import DataError, InputError, ModelError, UnitError

if TYPE_CHECKING:
    from advisor.probes import Normalisation

FEWEST = "fewest"  # what a bare --flops-budget stands for

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .pt/.pth or .safetensors file, torchvision:NAME, timm:NAME or package.module:factory.",
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="The architecture of a bare state dict: torchvision:NAME, timm:NAME or package.module:factory."
    ),
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
BatchSize = Annotated[int, typer.Option(help="Images in one update.")]
Ram = Annotated[str | None, typer.Option(help="Most that one update may hold, such as 512MB, 64MiB.")]
FlopsBudget = Annotated[
    str | None,
    typer.Option(
        metavar="[FLOPS]",
        help="Most FLOPs of one update, such as 2GFLOPs; bare: among the methods as accurate as the "
        "best, the one with the fewest.",
    ),
]
Storage = Annotated[str | None, typer.Option(help="Most bytes to ship, such as 1MB.")]
Methods = Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these methods; default: all.")]
Ranks = Annotated[str, typer.Option(metavar="R,R,...", help="Ranks of the low-rank methods.")]
Optimizer = Annotated[
    str, typer.Option(metavar="adam|adamw|momentum|sgd", help="The optimizer of every candidate.")
]
JsonPath = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - prints it alone.")
]
StorePath = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FILE",
        help="Where finished probes and costs are kept; default: in the user's cache folder.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the data split, the batches and every initialisation.")]


def usable_store(text: str | None) -> Path | None:
    """The path that was given, or the default one where a store can be there: else a warning and None.

    Raises InputError where the path that was given can't be used.
    """
    from advisor.store import Store, default_path

    try:
        path = default_path() if text is None else Path(text)
        with Store(path) as store:
            if store.trouble:
                typer.echo(f"peft-advisor: warning: {store.trouble}", err=True)
    except (InputError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        if text is not None:
            raise
        typer.echo(f"peft-advisor: warning: nothing is remembered: {error}", err=True)
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
    names = tuple(name.strip() for name in text.split(","))
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise InputError(
            f"--classes names {', '.join(map(repr, repeated))} more than once; give one name for each of the "
            "model's outputs, all different"
        )
    if not all(names):
        raise InputError(
            f"--classes {text!r} has an empty name; give one name for each of the model's outputs"
        )
    return names


def parse_probe_time(text: str) -> float:
    """`5m` -> 300.0. Raises UnitError; none at all is another option."""
    from advisor.units import parse_seconds

    if re.fullmatch(r"\s*[+-]?0*\.?0*\s*[a-z]*\s*", text, re.IGNORECASE) and "0" in text:
        raise UnitError(f"--probe-time {text!r}: probes need time; to train nothing, give --no-probe instead")
    return parse_seconds(text)


def check_model(text: str) -> None:
    """Tell of a missing file what `load_model` would, without the seconds that its imports take.

    What may be a name - of an architecture, of a factory, of torchvision's without its prefix - is left
    to `load_model`. Raises ModelError.
    """
    library, _, name = text.partition(":")
    named = (library in ("torchvision", "timm") and name) or re.fullmatch(
        r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text
    )
    if named or text.isidentifier():
        return
    if not os.path.lexists(text):
        raise ModelError(
            f"{text}: does not exist; give a file, torchvision:NAME, timm:NAME or package.module:factory"
        )


def check_data(text: str | None) -> None:
    """Likewise of missing data what `load_data` would. Raises DataError."""
    if text is None or text == "digits" or text.startswith("torchvision:"):
        return
    try:
        if text.strip() and Path(text).expanduser().exists():
            return
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home
        pass
    raise DataError(f"data {text!r}: no such file or folder; check the path")


def parse_methods(text: str | None) -> tuple[str, ...] | None:
    """Method names, checked. Raises InputError on an unknown one, or on none."""
    names = parse_names(text)
    if names is None:
        return None
    from advisor.methods import get_method

    for name in names:
        get_method(name)
    if not names:
        raise InputError("--methods names no method; `peft-advisor methods` lists them")
    return names


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
    known = ("adam", "adamw", "momentum", "sgd")
    if text.lower() not in known:
        raise InputError(f"--optimizer {text!r} is not known; use one of {', '.join(known)}")
    return text.lower()


def parse_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """Per-channel values of images in [0, 1]. Raises InputError."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std go together, such as --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5")
    from advisor.probes import Normalisation

    try:
        means, stds = (tuple(float(part) for part in text.split(",")) for text in (mean, std))
    except ValueError as error:
        raise InputError(
            f"--mean {mean} --std {std}: not lists of numbers, such as 0.485,0.456,0.406"
        ) from error
    if len(means) != len(stds) or min(stds) <= 0:
        raise InputError("--mean and --std need one value for each channel, and every std above 0")
    return Normalisation(means, stds)
