"""Is it the world that has shifted, or are the images read otherwise than in training?

The model as it is classifies some of the images, read in each of the usual ways. Where it is surely right
far oftener in one of them, no fine-tuning is what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from advisor.data.deferred import Deferred
from advisor.data.loading import LabelledImages, default_normalisation
from advisor.data.pixels import Frame, Normalisation
from advisor.data.pools import Found, Pool
from advisor.data.splits import sample
from advisor.data.survey import Oddity
from advisor.models.blocks import evaluating
from advisor.models.fingerprint import fingerprint
from advisor.models.layers import logits
from advisor.names import RESIZES
from advisor.probes.scenarios import Situation
from advisor.probes.train import key_of
from advisor.records import Finding
from advisor.store import Store
from advisor.training.loop import images_at_once

_IMAGES = 128
_GOOD = 0.95  # so many right: they are read as they should be
_GAIN = 0.1  # in accuracy: less is no other world
_SURE = 1e-4  # the sign test's probability that one way is no better than another; there are ten of them


@dataclass(frozen=True, slots=True)
class _Way:
    """How images may be read, and the options that say so."""

    options: str
    frame: Frame
    normalisation: Normalisation


def misread(
    model: nn.Module,
    found: Found,
    frame: Frame,
    normalisation: Normalisation,
    situation: Situation,
    seed: int,
    store: Store | None,
) -> Finding | None:
    """The finding that the model is right far oftener where the images are read otherwise.

    Args:
        model: as loaded, with its own head.
        found: the images; a sample of them is read.
        frame: as they would be read.
        situation: how the data's classes are the model's outputs; images of new ones are left aside.
    """
    known = situation.classes - situation.new_classes
    if situation.head_replaced or known < 2:
        return None
    outputs = np.asarray(situation.label_map)[found.train.labels]
    among = np.flatnonzero(outputs < known)
    indices = among[sample(outputs[among], _IMAGES, seed)]
    labels = torch.from_numpy(outputs[indices])

    def read(way: Frame) -> torch.Tensor:
        return found.train.read(indices, way)[0]

    def tell() -> str:
        files = found.train.contents
        return repr(files(indices)) if files is not None else fingerprint("", [("", read(frame))])

    seen = LabelledImages(Deferred((len(indices), *frame.size), lambda: read(frame), tell), labels)

    def find() -> Finding | None:
        images = seen.images
        answers = _answers(model, images, normalisation)
        right = answers == labels
        if right.float().mean() >= _GOOD:
            return None
        finding, gain = _permuted(answers, labels, found.class_names, situation, known)
        for way in _ways(frame, normalisation, found.train):
            other = images if way.frame == frame else read(way.frame)
            better = _answers(model, other, way.normalisation) == labels
            won = float(better.float().mean() - right.float().mean())
            if won >= gain and _surely(better, right):
                gain = won
                finding = _finding(right, gain, way.options, "read otherwise than in training")
        return finding

    if store is None:
        return find()
    key = key_of(model, normalisation, seen) | {"frame": repr(frame)}
    kept = store.remembered("misread", key, lambda: {"text": told.text if (told := find()) else ""})
    return Finding("misread", "error", kept["text"]) if kept["text"] else None


def _ways(frame: Frame, own: Normalisation, pool: Pool) -> Iterator[_Way]:
    """All usual ones, but that in which the images are read."""
    channels = frame.size[0]
    for normalisation in (
        default_normalisation(channels),
        Normalisation((0.5,), (0.5,)),
        Normalisation((0.0,), (1.0,)),
        Normalisation((0.0,), (round(1 / 255, 8),)),
    ):
        if normalisation != own:
            mean, std = (
                ",".join(f"{value:g}" for value in (values * channels if len(values) == 1 else values))
                for values in (normalisation.mean, normalisation.std)
            )
            yield _Way(f"--mean {mean} --std {std}", frame, normalisation)
    framed = frame.framing
    if channels == 3:
        framing = replace(framed, order="rgb" if framed.order == "bgr" else "bgr")
        yield _Way(f"--channels {framing.order}", replace(frame, framing=framing), own)
    if pool.oddities.get(Oddity.TURNED):
        framing = replace(framed, orientation="stored" if framed.orientation == "exif" else "exif")
        yield _Way(f"--orientation {framing.orientation}", replace(frame, framing=framing), own)
    if {tuple(size[1:]) for size in pool.sizes(None)} != {frame.size[1:]}:
        for typed, mode in RESIZES.items():
            if mode != framed.mode:
                framing = replace(framed, mode=mode)  # type: ignore[arg-type]
                yield _Way(f"--resize {typed}", replace(frame, framing=framing), own)


def _permuted(
    answers: torch.Tensor, labels: torch.Tensor, names: Sequence[str], situation: Situation, known: int
) -> tuple[Finding | None, float]:
    """The finding that the model calls the classes by each other's names: found on half, told by the rest.

    Returns:
        The finding, and the gain that anything else must surpass.
    """
    from scipy.optimize import linear_sum_assignment

    if situation.new_classes or len(names) != known:
        return None, _GAIN
    half = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():  # every second of each class: their order may go by class
        half[(labels == label).nonzero()[::2]] = True
    counts = np.zeros((known, known))
    np.add.at(counts, (labels[half].numpy(), answers[half].numpy()), 1)
    called = torch.from_numpy(linear_sum_assignment(counts, maximize=True)[1])  # by output that it should be
    right, better = (answers == labels)[~half], (answers == called[labels])[~half]
    gain = float(better.float().mean() - right.float().mean())
    if gain < _GAIN or not _surely(better, right):
        return None, _GAIN
    output_of = called[torch.tensor(situation.label_map)]
    in_order = [names[place] for place in output_of.argsort().tolist()]
    options = f"--classes {','.join(in_order)}"
    return _finding(right, gain, options, "called by each other's names"), gain


def _finding(right: torch.Tensor, gain: float, options: str, how: str) -> Finding:
    now = float(right.float().mean())
    text = (
        f"the images seem to be {how}: with {options} the model as it is gets {100 * (now + gain):.0f} % of "
        f"{len(right)} right, {100 * now:.0f} % without; try that before any fine-tuning"
    )
    return Finding("misread", "error", text)


def _answers(model: nn.Module, images: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(N,): the output that is highest."""
    whole = LabelledImages(images, torch.zeros(len(images), dtype=torch.int64))
    with torch.inference_mode(), evaluating(model):
        parts = torch.arange(len(images)).split(images_at_once(images.shape[1:]))
        return torch.cat([logits(model(whole.batch(part, normalisation)[0])).argmax(1) for part in parts])


def _surely(better: torch.Tensor, worse: torch.Tensor) -> bool:
    """The one-sided sign test of paired answers."""
    from scipy.special import bdtrc

    won, lost = int((better & ~worse).sum()), int((worse & ~better).sum())
    return bool(bdtrc(won - 1, won + lost, 0.5) < _SURE)
