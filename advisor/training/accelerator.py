"""The device that probes train on: the processor, or a GPU, in mixed precision where it has that.

All that depends on the device stands here. What is cached, solved in closed form or kept stays in the host's
memory: a GPU holds the network, its optimizer and one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from advisor.errors import InputError, first_line
from advisor.names import check_device

Mixed = Literal["", "bfloat16", "float16"]  # what convolutions and products run in; empty: single precision
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """How an update computes: in single precision."""

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass and its loss."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass."""
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the parameters by the gradients."""
        optimizer.step()


class MixedPrecision(Precision):
    """Convolutions and products in half precision, all else and the weights in single precision.

    float16 has too small a range for gradients, so the loss is scaled, and an update whose gradients
    overflow is left out (Micikevicius et al., arXiv 1710.03740).
    """

    def __init__(self, kind: str, mixed: Mixed) -> None:
        """`kind`: of the device."""
        self._kind, self._type = kind, _TYPES[mixed]
        self._scaler = torch.amp.GradScaler(kind) if mixed == "float16" else None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass and its loss."""
        return torch.autocast(self._kind, self._type)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass, of the scaled loss where one is scaled."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the parameters by the gradients, less their scale; not at all where those overflowed."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()
        # That one was left out is no mistake in the order of calls, of which a schedule would warn.
        optimizer._opt_called = True  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device, by name: it can be sent to other processes."""

    device: str = "cpu"  # as torch has it: cpu, cuda:0, mps
    mixed: Mixed = ""
    model: str = ""  # of the GPU, as its maker calls it

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.partition(":")[0]

    @property
    def described(self) -> str:
        """Such as `cuda:0 (NVIDIA H200, bfloat16)`, or `cpu`."""
        more = ", ".join(filter(None, (self.model, self.mixed)))
        return f"{self.device} ({more})" if more else self.device

    @property
    def measured_on(self) -> str:
        """Where updates are measured: Apple's GPUs don't tell how much memory they took at most."""
        return "cpu" if self.kind == "mps" else self.device

    def precision(self, *, may_scale: bool = True) -> Precision:
        """A new one for each training: it learns how gradients are to be scaled.

        Args:
            may_scale: False: parameters are stepped in the backward pass, before a scale could be taken off.
        """
        if not self.mixed or (self.mixed == "float16" and not may_scale):
            return Precision()
        return MixedPrecision(self.kind, self.mixed)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in place."""
        return model.to(self.device)

    def placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device."""
        return tensor.to(self.device)

    def batch(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch on the device."""
        return self.placed(inputs), self.placed(labels)

    def random_states(self, seed: int) -> tuple[torch.Tensor, ...]:
        """Of the random numbers of the processor, and of the device where it is another, for that seed."""
        return tuple(torch.Generator(each).manual_seed(seed).get_state() for each in self._that_draw())

    @contextmanager
    def random_numbers(self, states: tuple[torch.Tensor, ...]) -> Iterator[list[torch.Tensor]]:
        """While it lasts, random numbers go on from these states; others' stay as they are.

        What it yields holds the states that were come to, once it is over.
        """
        reached: list[torch.Tensor] = []
        before = [_generator(device).get_state() for device in self._that_draw()]
        try:
            for device, state in zip(self._that_draw(), states, strict=True):
                _generator(device).set_state(state)
            yield reached
            reached += [_generator(device).get_state() for device in self._that_draw()]
        finally:
            for device, state in zip(self._that_draw(), before, strict=True):
                _generator(device).set_state(state)

    def _that_draw(self) -> tuple[str, ...]:
        return ("cpu",) if self.kind == "cpu" else ("cpu", self.device)

    def failure(self, error: BaseException) -> str:
        """What went wrong in a training, in one line; where the device's memory was too small, that."""
        if self.kind == "cpu" or not _is_out_of_memory(error):
            return first_line(error)
        if self.kind == "cuda":
            torch.cuda.empty_cache()  # for what comes next
        return f"{self.device} has too little memory for it; --device cpu trains it in the host's"


CPU = Accelerator()


def host(tensor: torch.Tensor) -> torch.Tensor:
    """In the host's memory, in single precision where it is in half."""
    return (tensor.float() if tensor.dtype in _TYPES.values() else tensor).cpu()


def accelerator_for(text: str) -> Accelerator:
    """What `--device` names: `auto` the first GPU that torch finds, else the processor.

    Raises:
        InputError: there is no such device here.
    """
    kind, _, number = check_device(text).partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        count, index = torch.cuda.device_count(), int(number or 0)
        if not count:
            raise InputError(
                f"--device {text}: torch {torch.__version__} finds no CUDA GPU here; install its CUDA build "
                "and the driver, or leave --device out"
            )
        if index >= count:
            raise InputError(f"--device {text}: torch finds {count} CUDA GPUs; the last is cuda:{count - 1}")
        return _cuda(index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {text}: torch finds no Apple GPU here; leave --device out")
    return Accelerator(kind)


def _cuda(index: int) -> Accelerator:
    with torch.cuda.device(index):  # bfloat16 that is emulated is slower than single precision
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Accelerator(
        f"cuda:{index}", "bfloat16" if is_native else "float16", torch.cuda.get_device_name(index)
    )


def _generator(device: str) -> torch.Generator:
    """The one that a device's operators draw from."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        torch.cuda.init()  # before that there are none
        return torch.cuda.default_generators[int(number)]
    return torch.default_generator if kind == "cpu" else torch.mps._get_default_mps_generator()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
