"""The trained network in int8, as an ONNX file, and what that costs and saves.

onnxruntime's own static quantisation: weights in int8, of which they take 7 bits, a scale for each output
channel, and activations in int8 by the ranges that some of the images show. The others, of which no range is
taken, are put to the network in float32 and in int8, by the same runtime. Where int8 loses more of them than
chance explains, layers that are known to be sensitive stay in float32.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advisor.board.program import INPUT, Trained, need_packages, trained_network, write_network
from advisor.data import Normalisation, load_data
from advisor.data.loading import LabelledImages
from advisor.data.pools import Found
from advisor.data.sources import find
from advisor.delivery.kept_sums import SUMS, KeptSums, marks_of
from advisor.delivery.recipe_images import frame_of, outputs_for
from advisor.errors import DataError, InputError, first_line
from advisor.names import listed
from advisor.probes import ACCURACY
from advisor.records import Accuracy
from advisor.solver.paired import paired_gap
from advisor.story.situation import Progress
from advisor.system.files import check_writable, replacing
from advisor.system.temporary import TemporaryFolder
from advisor.units import format_bytes, format_percent, format_seconds

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

FORMAT = "onnx-int8"
_CALIBRATING = 128  # images at most, but one of each class
_FEWEST_JUDGED, _HELD_OUT_SHARE = 20, 0.3
_MUCH = 0.01  # of the accuracy: what int8 may lose
_AT_ONCE = 32  # images
_ROUNDS, _FEWEST_ROUNDS, _SECONDS = 31, 5, 6.0  # of one image each
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the network in one of the two forms."""

    accuracy: Accuracy
    bytes: int
    seconds: float  # of one image, in onnxruntime, in one thread


@dataclass(frozen=True, slots=True)
class Left:
    """What stays in float32, since int8 throughout lost much."""

    words: str  # which layers; "" where leaving none of them helped
    throughout: Accuracy  # with every layer in int8


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was written, and what it is worth."""

    path: Path
    float32: Figures
    int8: Figures
    calibrating: int  # images that the ranges are of
    changed: int  # answers to the judged ones
    layers: int  # that have weights
    in_int8: int  # of these
    left: Left | None  # None: nothing had to be tried
    warnings: tuple[str, ...]

    @property
    def gap(self) -> tuple[float, float]:
        """The 95 % interval of what int8 loses."""
        return paired_gap(self.float32.accuracy, self.int8.accuracy)

    @property
    def loses_much(self) -> bool:
        """Whether it is more than a point, and more than chance."""
        return _loses_much(self.float32.accuracy, self.int8.accuracy)


def write_quantised(
    model: str,
    adapter: Path,
    path: Path,
    data: str,
    *,
    arch: str | None = None,
    trust: bool = False,
    progress: Progress = lambda stage, fraction, running: None,
) -> Quantised:
    """Write the model with what was trained folded into its layers, in int8, for batches of any size.

    Where the adapter came with the sums that its head was solved of, no image that is in them is judged.

    Args:
        model: the base model, as for `load_model`.
        adapter: the folder that `apply`, or a bundle's finetune.py, wrote.
        data: labelled images of classes that the trained model knows, as for `load_data`.

    Raises:
        InputError: the model, the adapter, the images or the file can't be used, or the network can't be
            written so.
    """
    check_writable(path)
    need_packages(FORMAT, "onnx", "onnxscript", "onnxruntime")
    progress("load", 0.0, "data")
    found = find(data)
    progress("load", 0.5, "model")
    trained = trained_network(model, adapter, arch=arch, trust=trust)
    images = _divided(found, trained, adapter)
    with TemporaryFolder() as folder, replacing(path) as temporary:
        progress("quantise", 0.0, "float32")
        plain = Path(folder, "float32.onnx")
        write_network(trained, plain, "onnx")
        try:
            chosen, quantised = _best(plain, path, images, progress)
        except InputError:
            raise
        except Exception as error:  # whatever onnxruntime says to this network
            raise InputError(f"{model} can't be written as {FORMAT}: {first_line(error)}") from error
        shutil.copyfile(chosen, temporary)
    progress("quantise", 1.0, "")
    return quantised


def told(quantised: Quantised) -> tuple[tuple[str, str], ...]:
    """What there is to say about it, in lines that have names."""
    before, after, left = quantised.float32, quantised.int8, quantised.left
    low, high = (-100 * each for each in reversed(quantised.gap))
    change, count = 100 * (after.accuracy.mean - before.accuracy.mean), after.accuracy.samples
    right, right_before = (format_percent(each.accuracy.mean) for each in (after, before))
    seconds, seconds_before = (format_seconds(each.seconds) for each in (after, before))
    points = f"{change:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    lines = [
        ("Wrote", f"{quantised.path}, {format_bytes(after.bytes)}; in float32 {format_bytes(before.bytes)}"),
        ("Right", f"{right} of {count:,} images; in float32 {right_before} ({points})"),
        ("Changed", f"{quantised.changed:,} of these {count:,} answers"),
        ("Time", f"{seconds} for an image; in float32 {seconds_before}: in onnxruntime here, in one thread"),
        ("Layers", f"{_layers(quantised)}; ranges of {quantised.calibrating:,} other images"),
        *(("Warning", warning) for warning in quantised.warnings),
    ]
    if quantised.loses_much:
        why = (
            "int8 loses much, whichever layers stay in float32: calibrate with more images like what it "
            "will see, or write --as onnx"
        )
        lines.append(("Warning", why))
    elif left is not None:
        right = format_percent(left.throughout.mean)
        chosen = "which ones stay in float32 was chosen by the same images"
        lines.append(("Note", f"{right} were right with all layers in int8; {chosen}"))
    return tuple(lines)


def _layers(quantised: Quantised) -> str:
    in_float32, left = quantised.layers - quantised.in_int8, quantised.left
    if not in_float32:
        return f"all {quantised.layers:,} in int8"
    why = left.words if left is not None and left.words else "onnxruntime takes no others"
    return f"{quantised.in_int8:,} in int8, {in_float32:,} in float32 ({why})"


def _loses_much(before: Accuracy, after: Accuracy) -> bool:
    return before.mean - after.mean > _MUCH and paired_gap(before, after)[0] > 0


# The images


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """Those that the ranges are taken of, and others to judge by; the labels are the model's outputs."""

    calibrating: LabelledImages
    judged: LabelledImages
    normalisation: Normalisation
    warnings: tuple[str, ...]

    def batches(self, images: LabelledImages) -> Iterator[Floats]:
        """All of them, a few at a time, as the network is called with them."""
        for places in torch.arange(len(images)).split(_AT_ONCE):
            yield images.batch(places, self.normalisation)[0].numpy()


def _divided(found: Found, trained: Trained, folder: Path) -> _Images:
    """Both parts. Raises DataError where the network doesn't know a class, or too few would be judged."""
    recipe = trained.recipe
    outputs = outputs_for(found, recipe, trained.loaded)
    present = sorted({int(label) for pool in found.pools for label in np.unique(pool.labels)})
    unknown = [found.class_names[label] for label in present if outputs[label] >= recipe.classes]
    if unknown:
        knows = listed(recipe.class_names) or f"{recipe.classes:,} numbers"
        raise DataError(
            f"{found.source}: the trained model doesn't know {listed([repr(name) for name in unknown])}, its "
            f"classes are {knows}; leave out images of others, or train on them first"
        )
    frame, normalisation = frame_of(recipe)
    dataset = load_data(
        found,
        frame.size,
        normalisation=normalisation,
        framing=frame.framing,
        max_train=_CALIBRATING,
        seed=recipe.seed,
    )
    output_of = torch.tensor(outputs)
    calibrating, judged = (
        part.labelled(output_of[part.labels]) for part in (dataset.train, dataset.validation)
    )
    warnings = dataset.warnings
    if recipe.sums_sha256 and (folder / SUMS).exists():
        known = KeptSums.read(folder / SUMS, recipe.sums_sha256).marks
        judged = judged.those(~torch.isin(marks_of(judged.images, judged.labels), known))
    elif recipe.data == found.source:
        perhaps = (
            f"it may have been trained on some of these images, as it was on {found.source}: on others int8 "
            "may lose more; give --data that it has never seen"
        )
        warnings += (perhaps,)
    if len(judged) < _FEWEST_JUDGED:
        raise DataError(
            f"{found.source}: {len(judged):,} of its images are left to judge by that were neither trained "
            f"on nor calibrated with, and {_FEWEST_JUDGED} are the least that tell anything; give "
            f"{math.ceil(_FEWEST_JUDGED / _HELD_OUT_SHARE)} new ones or more"
        )
    if recipe.rehearse:
        warnings += (f"the images trained on were corrupted ({recipe.rehearse}), these are not",)
    return _Images(calibrating, judged, normalisation, warnings)


# The network


@dataclass(frozen=True, slots=True)
class _Layer:
    """One with weights, by the name of its node."""

    name: str
    is_depthwise: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """A network in int8, and what it answers."""

    file: Path
    words: str  # which layers are left in float32
    answers: torch.Tensor
    accuracy: Accuracy


def _best(plain: Path, path: Path, images: _Images, progress: Progress) -> tuple[Path, Quantised]:
    """The file that loses no more than chance and leaves the least in float32; else the most accurate one."""
    prepared, layers = _prepared(plain)
    progress("quantise", 0.2, "judging it in float32")
    of_plain = _answers(plain, images)
    before = _accuracy(of_plain, images)
    trials: list[_Trial] = []
    for words, left in _ways(layers):
        progress("quantise", 0.4 + 0.1 * len(trials), words and f"{words} left in float32")
        file = plain.with_name(f"int8-{len(trials)}.onnx")
        _quantise(prepared, file, images, left)
        answers = _answers(file, images)
        trials.append(_Trial(file, words, answers, _accuracy(answers, images)))
        if not _loses_much(before, trials[-1].accuracy):
            chosen = trials[-1]
            break
    else:
        chosen = max(trials, key=lambda trial: trial.accuracy.mean)  # of equal ones, the first
    progress("quantise", 0.9, "timing both")
    in_float32, in_int8 = _seconds([plain, chosen.file], images)
    return chosen.file, Quantised(
        path=path,
        float32=Figures(before, plain.stat().st_size, in_float32),
        int8=Figures(chosen.accuracy, chosen.file.stat().st_size, in_int8),
        calibrating=len(images.calibrating),
        changed=int((chosen.answers != of_plain).sum()),
        layers=len(layers),
        in_int8=_in_int8(chosen.file, layers),
        left=Left(chosen.words, trials[0].accuracy) if len(trials) > 1 else None,
        warnings=images.warnings,
    )


def _prepared(plain: Path) -> tuple[Path, list[_Layer]]:
    """The network as quantisation needs it, norms folded and shapes known; its layers, first to last."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = plain.with_name("prepared.onnx")
    quant_pre_process(str(plain), str(path), skip_symbolic_shape=True)  # torch wrote all shapes there are
    model = onnx.load(path)
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    layers = []
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
        shape = shapes.get(node.input[1]) if node.op_type in _LAYERS else None
        if shape is not None:
            groups = max((each.i for each in node.attribute if each.name == "group"), default=1)
            layers.append(_Layer(node.name, node.op_type == "Conv" and groups > 1 and shape[1] == 1))
    onnx.save(model, path)
    return path, layers


def _in_int8(file: Path, layers: Sequence[_Layer]) -> int:
    """How many of them read weights that were quantised."""
    import onnx

    nodes, names = onnx.load(file).graph.node, {layer.name for layer in layers}
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.name in names and node.input[1] in dequantised for node in nodes)


def _ways(layers: Sequence[_Layer]) -> list[tuple[str, tuple[_Layer, ...]]]:
    """What may be left in float32, and in which words: nothing first, then what is known to be sensitive."""
    ends = tuple(layers[place] for place in sorted({0, len(layers) - 1})) if layers else ()
    depthwise = tuple(layer for layer in layers if layer.is_depthwise)
    both = tuple(layer for layer in layers if layer in ends or layer in depthwise)
    ways = [("the first and the last layer", ends)]
    if depthwise:
        ways += [("depthwise convolutions", depthwise)]
        ways += [("depthwise convolutions, the first and the last layer", both)]
    return [("", ()), *(way for way in ways if len(way[1]) < len(layers))]


def _quantise(prepared: Path, file: Path, images: _Images, left: Sequence[_Layer]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(prepared),
        str(file),
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,  # both signed: ARM's instructions want it
        weight_type=QuantType.QInt8,
        # Weights take 7 of the 8 bits: sums of two products overflow x86 processors without VNNI otherwise,
        # by which MobileNetV2 lost 7 points and, so, none.
        reduce_range=True,
        nodes_to_exclude=[layer.name for layer in left],
    )


class _Reader:
    """Hands the images out as onnxruntime asks for them."""

    def __init__(self, images: _Images) -> None:
        self._batches = images.batches(images.calibrating)

    def get_next(self) -> dict[str, Floats] | None:
        """A batch; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


# What it answers, and how fast


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _answers(file: Path, images: _Images) -> torch.Tensor:
    """The output that says most, for each of the judged images."""
    session = _session(file)
    scores = [session.run(None, {INPUT: batch})[0] for batch in images.batches(images.judged)]
    return torch.from_numpy(np.concatenate(scores).argmax(1))


def _accuracy(answers: torch.Tensor, images: _Images) -> Accuracy:
    return ACCURACY.of(bytes((answers == images.judged.labels).to(torch.uint8).tolist()))


def _seconds(files: Sequence[Path], images: _Images) -> list[float]:
    """The median that an image takes each of them; they take turns, so that both meet what else runs here."""
    sessions = [_session(file) for file in files]
    taken: list[list[float]] = [[] for _ in files]
    image = {INPUT: next(images.batches(images.judged))[:1]}
    end = time.perf_counter() + _SECONDS
    for count in range(1 + _ROUNDS):
        for session, seconds in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(None, image)
            seconds.append(time.perf_counter() - start)
        if count >= _FEWEST_ROUNDS and time.perf_counter() > end:
            break
    return [statistics.median(seconds[1:]) for seconds in taken]  # the first one warms up
