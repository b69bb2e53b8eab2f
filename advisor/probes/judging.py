"""What held-out answers say: how many are right, in the metric that was asked for, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from advisor.errors import InputError
from advisor.names import listed
from advisor.records import Z95, Accuracy

_BORDER = 0.8  # of the usual margin, a standard deviation: measurements/smoothing.py
_PARTS = 255  # that an answer is told in, when it counts in part


@dataclass(frozen=True, slots=True)
class Metric:
    """What a share of right answers is a share of: of all images, or some count more than others."""

    name: str = "accuracy"
    weights: tuple[float, ...] | None = None  # of each held-out sample; None: all count alike

    def of(
        self, correct: bytes, *, seeds: int = 1, learning_rate: float | None = None, updates: int = 0
    ) -> Accuracy:
        """The share of right answers with its 95 % Wilson score interval.

        Several seeds make the mean surer, not the interval narrower: it speaks of other images. Samples
        that count differently say as much as fewer that count alike (Kish, Survey Sampling, 1965).

        Args:
            correct: one byte per sample, the first ones: how many of the seeds got it right.

        Raises:
            ValueError: there is no sample, or none that counts, so no share of them either.
        """
        if not correct:
            raise ValueError("the accuracy on no samples is unknown; judge one or more")
        samples, effective = len(correct), None
        mean = sum(correct) / (samples * seeds)
        if self.weights is not None:
            weights = self.weights[: len(correct)]
            total, squares = math.fsum(weights), math.fsum(weight**2 for weight in weights)
            if not total:
                raise ValueError(f"no sample of {self.name} was judged")
            samples = sum(weight > 0 for weight in weights)
            effective = max(round(total**2 / squares), 1)
            mean = math.fsum(w * right for w, right in zip(weights, correct, strict=True)) / (total * seeds)
            mean = min(max(mean, 0.0), 1.0)  # but for rounding it is a share
        low, high = _interval(mean, effective or samples)
        return Accuracy(
            mean=mean,
            low=low,
            high=high,
            samples=samples,
            correct=correct,
            weights=self.weights,
            seeds=seeds,
            learning_rate=learning_rate,
            updates=updates,
            effective_samples=effective,
        )

    def smoothed(self, margins: bytes) -> float:
        """The share of right answers, each counting for as much as it is clear.

        The smoothed estimate of a classifier's accuracy (Glick 1978): which side of the border an image near
        it falls on is chance, so it counts for about a half on either. How wide the border is, the network's
        own usual margin tells, as outputs of one are no measure for those of another. What that width takes
        from the share is given back as if margins were normal.

        Args:
            margins: float32 each, of the first samples: the right class's output less the highest other.
        """
        # A copy, as torch wants to be able to write what it reads.
        each = torch.frombuffer(bytearray(margins), dtype=torch.float32).double()
        border = _BORDER * float(each.abs().median())
        shares = torch.special.ndtr(each / border) if 0 < border < math.inf else (each > 0).double()
        parts = (_PARTS * shares.nan_to_num(0.0)).round().to(torch.uint8)
        blurred = torch.tensor(self.of(bytes(parts.tolist()), seeds=_PARTS).mean, dtype=torch.float64)
        return float(torch.special.ndtr(math.sqrt(1 + _BORDER**2) * torch.special.ndtri(blurred)))

    def least_samples(self, counting: int) -> int:
        """How many of the first samples hold so many that count; all, if there are fewer of them."""
        if self.weights is None:
            return counting
        seen = accumulate(int(weight > 0) for weight in self.weights)
        return next((n for n, found in enumerate(seen, 1) if found >= counting), len(self.weights))


ACCURACY = Metric()


def metric_of(name: str, labels: torch.Tensor, classes: Sequence[str], outputs: Sequence[int]) -> Metric:
    """The metric on these held-out samples.

    Args:
        name: as `Budget.metric`.
        labels: (N,), the samples' outputs of the model.
        classes: the data's, in its order.
        outputs: each one's output of the model.

    Raises:
        InputError: the class whose recall it is isn't there, or no held-out sample is of it.
    """
    if name == "accuracy":
        return ACCURACY
    if name == "balanced":
        count = labels.bincount()
        return Metric(name, tuple((1 / count.double()[labels]).tolist()))
    wanted = class_of_recall(name, classes)
    assert wanted is not None  # noqa: S101 - it is a recall
    is_of_it = labels == outputs[wanted]
    if not is_of_it.any():
        raise InputError(f"--metric {name}: no held-out image is of that class; give more images of it")
    return Metric(name, tuple(is_of_it.double().tolist()))


def class_of_recall(name: str, classes: Sequence[str]) -> int | None:
    """The number of the class whose recall the metric is; None: it is another metric.

    Raises:
        InputError: the data has no class of that name.
    """
    kind, _, called = name.partition(":")
    if kind != "recall":
        return None
    same = [number for number, each in enumerate(classes) if each == called]
    same = same or [n for n, each in enumerate(classes) if each.casefold() == called.casefold()]
    if len(same) != 1:
        raise InputError(f"--metric {name}: the data has no class {called!r}; it has {listed(classes)}")
    return same[0]


def judged_in_groups(accuracy: Accuracy, groups: torch.Tensor | None) -> Accuracy:
    """The same with the interval that answers which are alike within groups leave.

    By the design effect: how much the variance of the groups' sums exceeds that of independent answers
    (Kish, Survey Sampling, 1965).

    Args:
        groups: (N,), of the held-out images; None: each is on its own.
    """
    if groups is None or not accuracy.correct:
        return accuracy
    right = torch.tensor(list(accuracy.correct), dtype=torch.float64) / accuracy.seeds
    weights = torch.ones_like(right)
    if accuracy.weights is not None:
        weights = torch.tensor(accuracy.weights[: len(right)], dtype=torch.float64)
    apart = weights * (right - accuracy.mean)
    counted = groups[: len(right)][weights > 0]
    numbers = counted.unique(return_inverse=True)[1]
    count = int(numbers.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, numbers, apart[weights > 0])
    alone = float(apart.square().sum())
    # All right, or all wrong: nothing tells how alike they are, so each group counts once.
    effect = float(sums.square().sum()) / alone if alone else accuracy.samples / count
    independent = accuracy.effective_samples or accuracy.samples
    effective = max(min(round(independent / max(effect, 1.0)), independent), 1)
    low, high = _interval(accuracy.mean, effective)
    return replace(accuracy, low=low, high=high, effective_samples=effective)


def by_class(
    accuracy: Accuracy, labels: torch.Tensor, groups: torch.Tensor | None, outputs: Sequence[int], known: int
) -> Accuracy:
    """With what each class gets right, and known and new classes; its interval allows for groups.

    Args:
        labels: (N,), the held-out samples' outputs of the model.
        outputs: of each of the data's classes.
        known: outputs below it are of classes that the model knew.
    """
    if not accuracy.correct:
        return accuracy
    correct = torch.tensor(list(accuracy.correct), dtype=torch.float64) / accuracy.seeds
    labels = labels[: len(correct)]
    each = [correct[labels == output] for output in outputs]
    old, new = correct[labels < known], correct[labels >= known]
    balanced = metric_of("balanced", labels, (), outputs).of(accuracy.correct, seeds=accuracy.seeds)
    return replace(
        judged_in_groups(accuracy, groups),
        balanced=replace(judged_in_groups(balanced, groups), correct=b"", weights=None),
        recalls=tuple(round(float(own.mean()), 4) if len(own) else None for own in each),
        samples_by_class=tuple(map(len, each)),
        known_classes=float(old.mean()) if len(old) else None,
        new_classes=float(new.mean()) if len(new) else None,
    )


def _interval(mean: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % score interval."""
    denominator = 1 + Z95**2 / samples
    centre = (mean + Z95**2 / (2 * samples)) / denominator
    spread = Z95 * math.sqrt(mean * (1 - mean) / samples + Z95**2 / (4 * samples**2)) / denominator
    # Rounding must not put the mean outside its own interval at 0 and 1.
    return min(max(centre - spread, 0.0), mean), max(min(centre + spread, 1.0), mean)
