"""The one training loop: what probes, `apply` and a board do with a candidate is the same, bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advisor.data.pixels import Normalisation
from advisor.methods import get_method
from advisor.methods.recalibrate import reestimation
from advisor.models.blocks import run_front, without_front
from advisor.models.layers import logits
from advisor.parts.attachment import Trainable
from advisor.parts.closed_form import feature_blocks, pooled_outputs
from advisor.records import Block, Candidate, Census, Features
from advisor.system.temporary import TemporaryFolder
from advisor.training.accelerator import CPU, Accelerator, host
from advisor.training.step_at_once import StepAtOnce
from advisor.training.update import begin, reestimation_updates, solve_head, update
from advisor.training.views import Images, Views

_AT_ONCE, _PIXELS_AT_ONCE = 64, 2**19  # of images where no gradient is needed, at most
MOST_IN_MEMORY = 2**30  # bytes of what a front makes; more goes into a file
_COOL_DOWN = 0.2  # of the updates, at the end


def images_at_once(input_size: Sequence[int]) -> int:
    """How many images run at once where no gradient is needed: more are no faster, and hold more memory.

    Args:
        input_size: (channels, height, width), or with any other sides.
    """
    return min(_AT_ONCE, 2 ** max(int(math.log2(_PIXELS_AT_ONCE / math.prod(input_size[1:]))), 0))


class Training:
    """One candidate being trained, in the model that is given.

    The learning rate stays level, and falls to zero over the last fifth of the updates, as one minus the
    square root of the part of them that is done (arXiv 2405.18392): a longer training is the same as a
    shorter one until that one begins to cool down, so what was trained can go on from there.

    Every candidate sees the same batches for the same seed. An epoch is as many batches as the images fill.
    """

    def __init__(
        self,
        model: nn.Module,
        census: Census,
        candidate: Candidate,
        learning_rate: float | None,
        updates: int,
        *,
        batch_size: int,
        seed: int,
        normalisation: Normalisation,
        inputs: Callable[[Trainable], tuple[Views, Sequence[Images]]],
        pass_size: int,
        accelerator: Accelerator = CPU,
    ) -> None:
        """Attach the candidate, ready for the first update.

        Args:
            model: where the candidate wants it so, with its statistics re-estimated already.
            updates: after which the learning rate is zero.
            inputs: images to train on in their views, and to judge on, held-out ones and others, for
                the attached candidate: with a cached prefix, what its front makes of them.
            pass_size: how many images run at once where no gradient is needed.
            accelerator: what trains; the model is moved there.
        """
        self.done = 0
        self.losses: list[float] = []  # of the updates, where something is trained
        self._census, self._candidate, self._normalisation = census, candidate, normalisation
        self._pass_size = pass_size
        self._accelerator = accelerator
        self._random = accelerator.random_states(seed)
        with self._own_random_numbers():
            model = accelerator.place(model)
            self.trainable, self.optimizer = begin(model, census, candidate, learning_rate or 0.0)
        self._precision = accelerator.precision(may_scale=not isinstance(self.optimizer, StepAtOnce))
        self._schedule = None
        if self.optimizer is not None:
            self._schedule = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, partial(_share_of_rate, updates=updates)
            )
        self._views, judged_on = inputs(self.trainable)
        self._held_out, *self._others = judged_on
        self._train = self._views.plain
        self._batches = _batches(len(self._train), batch_size, seed)

    def run(self, until: int) -> bool:
        """Train until so many updates are done; False: the loss or a weight is no longer finite."""
        with self._own_random_numbers():
            self.trainable.train_mode()
            while self.done < until:
                epoch, indices = next(self._batches)
                images, labels = self._views.batch(indices, epoch, self._normalisation)
                images, labels = self._accelerator.batch(images, labels)
                loss = update(self.trainable, self.optimizer, images, labels, precision=self._precision)
                if loss is not None:
                    self.losses.append(loss.item())
                    if not math.isfinite(self.losses[-1]):
                        return False
                if self._schedule is not None:
                    self._schedule.step()
                self.done += 1
        return all(tensor.isfinite().all() for tensor in self.trainable.delta().values())

    def judge(self, samples: int | None = None) -> bytes:
        """Which of the first held-out samples it classifies right now: one byte each, 1 = right."""
        return self._judged(self._held_out, samples)

    def _judged(self, images: Images, samples: int | None) -> bytes:
        return b"".join(starmap(right, self._answers(images, samples)))

    def _answers(self, images: Images, samples: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)  # nothing is held that the next update doesn't need
        model, passes = self.trainable.model, self._pass_size
        with self._without_front():
            yield from answers(
                model, images, self._normalisation, samples, pass_size=passes, accelerator=self._accelerator
            )

    def finish(self) -> None:
        """What follows training: a head in closed form is solved, and takes its place."""
        if head_of(self._candidate) is None:
            return
        every = torch.arange(len(self._train)).split(self._pass_size)
        with self._without_front(), self._precision.forward():
            batches = (
                self._accelerator.batch(*self._train.batch(indices, self._normalisation)) for indices in every
            )
            solve_head(self.trainable, self._census, batches)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here as if nothing had happened."""
        return {
            "done": self.done,
            "losses": list(self.losses),
            "model": self._changing(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "random": self._random,
            "batches_seen": self.trainable.batches_seen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one with the same arguments was when it gave its `state`."""
        while self.done < state["done"]:
            next(self._batches)
            self.done += 1
        with torch.no_grad():
            for name, tensor in self._changing().items():
                tensor.copy_(state["model"][name])
        if self.optimizer is not None and self._schedule is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
        self._random, self.trainable.batches_seen = state["random"], state["batches_seen"]
        self.losses = list(state["losses"])

    def _changing(self) -> dict[str, torch.Tensor]:
        """All that training may change."""
        parameters = {name: p.detach() for name, p in self.trainable.parameters.items()}
        return parameters | dict(self.trainable.model.named_buffers())

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Dropout's and the initialisations' random numbers neither take from others' nor depend on them."""
        with self._accelerator.random_numbers(self._random) as reached:
            yield
        self._random = tuple(reached)

    def _without_front(self) -> AbstractContextManager[None]:
        if self.trainable.levers.cached_prefix == "no":
            return nullcontext()
        return without_front(self.trainable.model, self.trainable.front)


def reestimated(
    model: nn.Module,
    census: Census,
    images: Images,
    batch_size: int,
    normalisation: Normalisation,
    pass_size: int,
    accelerator: Accelerator = CPU,
) -> nn.Module:
    """The model, in eval mode, with its statistics re-estimated on the images, in place."""
    updates = reestimation_updates(len(images), batch_size)
    training = Training(
        model,
        census,
        reestimation(),
        None,
        updates,
        batch_size=batch_size,
        seed=0,
        normalisation=normalisation,
        inputs=lambda _: (Views.alone(images), [images]),
        pass_size=pass_size,
        accelerator=accelerator,
    )
    training.run(updates)
    return model.eval()


def level_updates(updates: int) -> int:
    """How many of a training's updates come before its learning rate falls."""
    return updates - max(round(_COOL_DOWN * updates), 1)


def _share_of_rate(done: int, updates: int) -> float:
    """Of the learning rate, for the update after so many."""
    level = level_updates(updates)
    return 1.0 if done <= level else max(1 - math.sqrt((done - level) / (updates - level)), 0.0)


def _batches(samples: int, batch_size: int, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Epoch, from 0 on, and indices of batches without end.

    Every epoch is in a new order, an incomplete last batch is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, samples)
    for epoch in itertools.count():
        for indices in torch.randperm(samples, generator=generator).split(size):
            if len(indices) == size:
                yield epoch, indices


def head_of(candidate: Candidate) -> Features | None:
    """The features of the head that is solved for the candidate once it is trained, if one is."""
    return get_method(candidate.method).solves(dict(candidate.setting)) or candidate.levers.solved_head


def evaluate(
    model: nn.Module,
    images: Images,
    normalisation: Normalisation,
    samples: int | None = None,
    *,
    pass_size: int,
    accelerator: Accelerator = CPU,
) -> bytes:
    """Which of the first `samples` images the model classifies right: one byte each, 1 = right.

    Args:
        samples: None: all; of none, nothing.
        accelerator: where the model is.
    """
    told = answers(model, images, normalisation, samples, pass_size=pass_size, accelerator=accelerator)
    return b"".join(starmap(right, told))


def answers(
    model: nn.Module,
    images: Images,
    normalisation: Normalisation,
    samples: int | None = None,
    *,
    pass_size: int,
    accelerator: Accelerator = CPU,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The model's outputs (n, classes) for the first `samples` images, and their labels (n,), in parts."""
    count = len(images) if samples is None else min(samples, len(images))
    model.eval()
    for indices in torch.arange(count).split(pass_size) if count else ():
        with torch.inference_mode(), accelerator.precision().forward():
            inputs, labels = accelerator.batch(*images.batch(indices, normalisation))
            outputs = logits(model(inputs))
        yield outputs, labels


def right(outputs: torch.Tensor, labels: torch.Tensor) -> bytes:
    """Which outputs are highest for the label: one byte each, 1 = right."""
    return bytes((outputs.argmax(1) == labels).to(torch.uint8).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class FrontOutputs:
    """What a frozen front makes of images: computed once."""

    outputs: torch.Tensor  # (M, ...): of these images, and perhaps of others
    places: torch.Tensor  # (N,) int64: where in them each image's are
    labels: torch.Tensor  # (N,) int64
    folder: TemporaryFolder | None  # of the file that holds the outputs, if one does
    pooled: dict[Block, torch.Tensor]  # of the front's blocks, for a head in closed form
    front: tuple[str, ...] = ()  # what made them

    @classmethod
    def of(
        cls,
        images: Images,
        trainable: Trainable,
        normalisation: Normalisation,
        census: Census,
        pass_size: int,
        in_memory: int = MOST_IN_MEMORY,
        beside: Path | None = None,
        accelerator: Accelerator = CPU,
        nearest: FrontOutputs | None = None,
    ) -> FrontOutputs:
        """Run the front on all images.

        Args:
            in_memory: bytes that the outputs may take there; more go into a file.
            beside: the folder for that file; None: that of temporary files.
            accelerator: where the model is; what comes of it is kept in the host's memory.
            nearest: what a part of the front made of the same images: only the rest of it is run.
        """
        outputs, folder = torch.empty(0), None
        there = {} if nearest is None else nearest.pooled
        of_front = [b for b in feature_blocks(census, "all") if b.modules[-1] in trainable.front]
        blocks = [block for block in of_front if block not in there]
        source, already = (images, 0) if nearest is None else (nearest, len(nearest.front))
        pooled: dict[Block, list[torch.Tensor]] = {block: [] for block in blocks}
        for positions in torch.arange(len(images)).split(pass_size):
            inputs = accelerator.placed(source.batch(positions, normalisation)[0])
            with pooled_outputs(trainable.model, blocks) as of_blocks, accelerator.precision().forward():
                made = run_front(trainable.model, trainable.front, inputs, already).cpu()
            for block in blocks:
                pooled[block].append(host(of_blocks[block]))
            if not outputs.numel():
                shape = (len(images), *made.shape[1:])
                size = math.prod(shape) * made.element_size()
                if size > in_memory:
                    folder = TemporaryFolder(beside)
                    path = str(Path(folder.name, "front"))
                    flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=made.dtype)
                    outputs = flat.view(shape)
                    with suppress(OSError):  # where it is mapped its bytes stay, until nobody looks at them
                        folder.cleanup()
                else:
                    outputs = made.new_empty(shape)
            outputs[positions] = made
        joined = there | {block: torch.cat(parts) for block, parts in pooled.items()}
        return cls(outputs, torch.arange(len(images)), images.labels, folder, joined, trainable.front)

    def begins(self, front: Sequence[str]) -> bool:
        """Whether this is of a part of the front, from its first module on."""
        return tuple(front[: len(self.front)]) == self.front != tuple(front)

    def those(self, indices: torch.Tensor) -> FrontOutputs:
        """Of the images at these indices."""
        pooled = {block: of_block[indices] for block, of_block in self.pooled.items()}
        places, labels = self.places[indices], self.labels[indices]
        return FrontOutputs(self.outputs, places, labels, self.folder, pooled, self.front)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, _: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """What the front made of those at `indices`, and their labels."""
        return self.outputs[self.places[indices]], self.labels[indices]
