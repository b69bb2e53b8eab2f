"""Fine-tune the network in this folder on photos: one folder of them for each class.

    python finetune.py photos/ --output tuned/

It needs PyTorch, and Pillow to read photos. After a power cut the same command goes on from the last
whole epoch. What is recommended, and how much memory it was said to take, stands in recipe.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # PyTorch looks for it; nothing here needs it

from advisor.costs.process import GIVE_BACK, data_limit, process_bytes, return_freed_memory

# The C library and MKL read this as they start. Nothing has been done yet, so the process starts over.
if __name__ == "__main__" and sys.platform.startswith("linux") and GIVE_BACK.keys() - os.environ.keys():
    os.execve(sys.executable, sys.orig_argv, GIVE_BACK | os.environ)  # noqa: S606 - the same again

import torch
from torch import nn

from advisor.board.photos import Photos, frame_of, read_photos
from advisor.board.tensors import fill, packed, unpacked
from advisor.data.pixels import Normalisation
from advisor.device.lean import leave_compiler_out
from advisor.errors import AdvisorError
from advisor.methods import get_method
from advisor.models.layers import answers_otherwise
from advisor.parts.attachment import Trainable
from advisor.plain import decode
from advisor.probes.judging import ACCURACY
from advisor.records import Candidate, Census
from advisor.system.files import write_whole
from advisor.training.epochs import Epochs, Length
from advisor.training.loop import MOST_IN_MEMORY, FrontOutputs, Training, evaluate, head_of, reestimated
from advisor.training.update import attach, head_to_solve
from advisor.training.views import Images, Views

HERE = Path(__file__).resolve().parent
ADAPTER, RECIPE, MERGED, HISTORY = "adapter.safetensors", "recipe.json", "merged.safetensors", "history.json"
# Bytes besides tensors' own: Python and the C library take their heaps in steps, and small tensors leave gaps
# between them when they are freed: up to an eighth of what an update takes (tests/board/test_promise.py).
_STEPS, _GAPS, _MOST_GAPS = 4 * 2**20, 1 / 8, 16 * 2**20


def main() -> int:
    """Train, judge, and keep what is better. The exit code: 0 done, 2 something given is wrong."""
    options = _options()
    leave_compiler_out()
    try:
        _fine_tune(options)
    except AdvisorError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path, help="a folder with one folder of photos for each class")
    parser.add_argument("--output", type=Path, default=Path("tuned"), help="where to write (tuned)")
    parser.add_argument("--epochs", type=partial(_above_zero, int), help="default: the recipe's")
    parser.add_argument("--learning-rate", type=partial(_above_zero, float), help="default: the recipe's")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever was interrupted")
    parser.add_argument("--no-limit", action="store_true", help="take more memory than promised if need be")
    return parser.parse_args()


def _above_zero(kind: type[int] | type[float], text: str) -> float:
    if not 0 < (number := kind(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return number


def _fine_tune(options: argparse.Namespace) -> None:
    recipe = json.loads((HERE / RECIPE).read_text(encoding="utf-8"))
    board = recipe.pop("board")
    candidate, census = Candidate.parse(recipe["candidate"]), decode(Census, board["census"])
    normalisation = Normalisation(tuple(recipe["mean"]), tuple(recipe["std"]))
    rate = recipe["learning_rate"] if options.learning_rate is None else options.learning_rate
    rate = None if recipe["learning_rate"] is None else rate
    batch_size, passes, work = recipe["batch_size"], board["pass_size"], options.output / "work"
    left = [work] if options.restart else work.glob("peft-advisor-*")  # a cache that a power cut left there
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)

    names, outputs = recipe["class_names"], recipe["class_outputs"]
    train, held_out, key, unreadable = read_photos(
        options.photos, work, frame_of(recipe), dict(zip(names, outputs, strict=True)), board["split"]
    )
    _tell(train, held_out, unreadable, candidate)
    before = _judged(_former(options.output, candidate, census), held_out, normalisation, passes)

    network = _network()
    # PyTorch makes kernels for each number of images: 9 MB for 60 convolutions, which are the runtime's.
    last = len(train) % passes
    evaluate(network, train, normalisation, last, pass_size=max(last, 1))
    names_before = set(network.state_dict())  # no view: that would keep the tensors
    if candidate.levers.statistics == "reestimated":
        network = reestimated(network, census, train, batch_size, normalisation, passes)
    length = Length.of(candidate, rate, len(train), batch_size, options.epochs or recipe["epochs"])

    cached: list[torch.Tensor] = []  # in memory

    def inputs(trainable: Any) -> tuple[Views, list[Images]]:
        views = Views.of(train, candidate, census, recipe["augment"], recipe["seed"])
        if trainable.levers.cached_prefix == "no":
            return views, [held_out]
        made = partial(FrontOutputs.of, pass_size=passes, beside=work)
        on_disk = candidate.levers.cached_prefix == "disk"

        def of_view(images: Images) -> FrontOutputs:
            most = 0 if on_disk else MOST_IN_MEMORY // (views.count or 1)
            fronts = made(images, trainable, normalisation, census, in_memory=most)
            cached.extend([] if fronts.folder else [fronts.outputs])
            return fronts

        # No memory was promised for those that are held out.
        return views.run_through(of_view), [made(held_out, trainable, normalisation, census, in_memory=0)]

    training = Training(
        network,
        census,
        candidate,
        rate,
        length.updates,
        batch_size=batch_size,
        seed=recipe["seed"],
        normalisation=normalisation,
        inputs=inputs,
        pass_size=passes,
    )
    known = {"candidate": candidate.id, "learning rate": rate, "epochs": length.epochs, "photos": key}
    known |= {"augment": recipe["augment"]}
    epochs = Epochs(training, length, known, work / "checkpoint.pt")
    epochs.resume()
    correct = _trained(
        epochs,
        cached,
        None if options.no_limit else board["promised_bytes"],
        judged={min(passes, len(held_out)), len(held_out) % passes} - {0},
    )

    # Only the weights are needed from here on, and what is written must not take more than training did.
    training.optimizer = None
    cached.clear()
    shares = {"before": sum(before) / len(before), "after": sum(correct) / len(correct)}
    told = f"{sum(correct)} of {len(correct)} held-out photos right, {sum(before)} before"
    if sum(correct) < sum(before):
        print(f"{told}: the old weights are kept")
    else:
        recipe |= {
            "learning_rate": rate,
            "epochs": length.epochs,
            "epochs_run": epochs.epochs_run,
            "data": str(options.photos),
            "accuracy": _figures(correct),
            "base_accuracy": _figures(before),
            "versions": {"torch": torch.__version__},
        }
        some, _ = held_out.batch(torch.arange(min(passes, 8, len(held_out))), normalisation)
        _write(options.output, training.trainable, recipe, some, names_before)
        print(f"{told}: {options.output / ADAPTER} is written")
    peak = {"peak_resident_bytes": process_bytes("VmHWM")}
    write_whole(options.output / HISTORY, json.dumps({"losses": training.losses} | shares | peak) + "\n")
    shutil.rmtree(work)


def _tell(train: Photos, held_out: Photos, unreadable: Sequence[Path], candidate: Candidate) -> None:
    if unreadable:
        more = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
        print(f"left out, as it can't be read: {str(unreadable[0])!r}{more}", flush=True)
    print(f"{len(train):,} photos to train on, {len(held_out):,} held out; {candidate.short}", flush=True)


def _network() -> nn.Module:
    """The network as it was when this folder was made."""
    from network import build  # type: ignore[import-not-found]

    network: nn.Module = build()
    fill(network, unpacked(HERE / "base.safetensors"))
    return network.eval()


def _former(output: Path, candidate: Candidate, census: Census) -> nn.Module:
    """The network with what an earlier run wrote, if one did for the same candidate."""
    network = _network()
    recipe = json.loads((output / RECIPE).read_text(encoding="utf-8")) if (output / RECIPE).exists() else {}
    if recipe.get("candidate") == candidate.id and (output / ADAPTER).exists():
        trainable = attach(network, census, candidate)
        if head_of(candidate) is not None:
            head_to_solve(trainable, census)
        fill(network, unpacked(output / ADAPTER))
    return network.eval()


def _judged(network: nn.Module, photos: Photos, normalisation: Normalisation, passes: int) -> bytes:
    return evaluate(network, photos, normalisation, pass_size=passes)


def _trained(
    epochs: Epochs, cached: list[torch.Tensor], promised_bytes: int | None, judged: set[int]
) -> bytes:
    """Train to the end within what was promised; which held-out photos are right then.

    Args:
        epochs: to train.
        cached: the front's outputs that are in memory, which was promised.
        promised_bytes: by the advice, for an update; None: no limit.
        judged: how many held-out photos there are in a pass.
    """
    training = epochs.training
    if epochs.length.updates_per_epoch and epochs.epochs_run < epochs.length.epochs:
        # Code is loaded, threads are started and kernels made of each size of a pass, which is the runtime's.
        training.run(training.done + 1)
        for images in judged:
            training.judge(images)
    return_freed_memory()
    cap = None
    if promised_bytes is not None and sys.platform.startswith("linux"):
        gaps = min(int(_GAPS * promised_bytes), _MOST_GAPS)
        cap = process_bytes("VmData") - _held(training, cached) + promised_bytes + _STEPS + gaps
    try:
        with data_limit(cap):
            epochs.train(lambda *_: None, _say)
            return training.judge()
    except (RuntimeError, MemoryError) as error:
        if cap is None or ("alloc" not in str(error).lower() and not isinstance(error, MemoryError)):
            raise
        megabytes = (promised_bytes or 0) / 1e6
        raise AdvisorError(
            f"the {megabytes:.0f} MB that the advice promised are too little here; --no-limit takes more"
        ) from error


def _say(epoch: int, of: int, accuracy: float) -> None:
    print(f"epoch {epoch} of {of}: {100 * accuracy:.1f} % right of held-out photos", flush=True)


def _held(training: Training, cached: list[torch.Tensor]) -> int:
    """Bytes of the tensors that live from one update to the next."""
    tensors = [*training.trainable.model.parameters(), *training.trainable.model.buffers(), *cached]
    tensors += [p.grad for p in tensors if p.grad is not None]
    if training.optimizer is not None:
        states = training.optimizer.state.values()
        tensors += [each for state in states for each in state.values() if isinstance(each, torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _figures(correct: bytes) -> dict[str, float | int]:
    """The share that is right, with its 95 % interval."""
    found = ACCURACY.of(correct)
    return {"mean": found.mean, "low": found.low, "high": found.high, "samples": found.samples}


def _write(
    output: Path, trainable: Trainable, recipe: dict[str, Any], images: torch.Tensor, names: set[str]
) -> None:
    """The adapter and its recipe; and the whole network, where the method can be folded into it.

    Args:
        images: some, on which the folded network must answer the same, up to rounding.
        names: of the tensors that a plain network has.
    """
    write_whole(output / ADAPTER, packed(trainable.delta(), {"format": recipe["format"]}), keep_old=True)
    with (output / ADAPTER).open("rb") as file:
        recipe["adapter_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    write_whole(output / RECIPE, json.dumps(recipe, indent=2) + "\n", keep_old=True)
    with torch.inference_mode():
        expected = trainable.model.eval()(images)
    merged = get_method(recipe["method"]).merge(trainable.model).eval()
    if merged.state_dict().keys() != names:
        return
    with torch.inference_mode():
        found = merged(images)
    if not answers_otherwise(found, expected):
        write_whole(output / MERGED, packed(merged.state_dict(), {"format": "pt"}), keep_old=True)


if __name__ == "__main__":
    sys.exit(main())
