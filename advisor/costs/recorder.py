"""What one update does, operator by operator: FLOPs by phase and group of layers, bytes held at the peak."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from advisor.costs.figures import new_bytes
from advisor.costs.flops import NONE, OperatorFlops, operator_flops
from advisor.costs.kernels import kernels_of
from advisor.costs.memo import OperatorMemo, UncompiledMode, tensors_in
from advisor.costs.steps import Step, known_step
from advisor.costs.work import Piece, summed, work_of
from advisor.costs.workspace import Call, Workspace, call_of
from advisor.methods import Trainable
from advisor.models.blocks import run_front
from advisor.records import Flops, Memory, Moment, Phase
from advisor.training.step_at_once import StepAtOnce
from advisor.training.update import update

_AT_ONCE = 3  # calls measured in one go
_PHASES: dict[str, Phase] = {"forward": "forward", "optimizer": "optimizer"}  # the others are backward
_next_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
METADATA = torch.ops.prim.device.default  # asked of every fake tensor, computes nothing


@dataclass(frozen=True, slots=True)
class Recording:
    """One update, or one forward pass."""

    flops: Mapping[str, Flops]  # by group; of others, none
    memory: Memory  # at the moment of the peak
    of_tensors: Memory  # at the moment of the peak of tensors alone
    bytes_at_peak: Mapping[str, int]  # activations and temporaries, by the group that made them
    all_at_peak: Mapping[str, int]  # weights, gradients and optimizer state, too
    saved: Mapping[str, int]  # bytes that a forward pass leaves for the backward pass, by group
    uncounted: frozenset[str]  # operators without a FLOP rule
    micro_batch: Mapping[str, Flops]  # of the second of several micro-batches alone, by group
    held: Mapping[tuple[str, str], int]  # bytes at the peak, by purpose and group
    moments: tuple[Moment, ...] = ()  # where they were asked for: of every stretch that one group runs
    work: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # by kind, phase and figure
    work_again: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # of the second micro-batch
    kernels: int = 0  # that its convolutions need, each shape's in each direction
    shapes: int = 0  # that convolutions have in its forward pass


class _ForwardCall(NamedTuple):
    """Who made a backward node: the autograd node's number leads back to it."""

    group: str
    weights_only: bool  # every tensor it read is a weight, or made of weights alone
    reads_weight: bool


class Recorder(UncompiledMode):
    """Runs updates of one attached model and records them. Each storage is followed by weak reference."""

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, str],
        memo: OperatorMemo | None = None,
        workspace: Workspace | None = None,
        *,
        closely: bool = False,
    ) -> None:
        """Prepare to record.

        Args:
            groups: what each layer's costs are counted under, such as its type; what no layer does is
                counted under `other`.
            memo: for meta tensors; None: fake or real ones, every operator runs.
            workspace: None: tensors alone are counted.
            closely: whether to keep what was held at every moment, too.
        """
        super().__init__()
        self._closely = closely
        self._workspace = workspace
        self._model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._went_forward = False
        self._memo = memo
        self._groups = groups
        self._trainable: Trainable | None = None  # whose update is recorded
        self._put_aside: int | None = None  # the id of what stands for the random numbers' state
        self._reset()

    def record_update(
        self,
        trainable: Trainable,
        optimizer: torch.optim.Optimizer | None,
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> Recording:
        """Run and record one update; gradients and optimizer state of earlier ones count as held."""
        self._reset()
        self._trainable = trainable
        state = optimizer_tensors(optimizer)
        parameters, buffers = self._tensors()
        for name, parameter in parameters.items():
            group = self.group_of(name)
            self._weights.add(self._follow(parameter, group))
            for tensor in (parameter.grad, *state.get(parameter, ())):
                if tensor is not None:
                    self._follow(tensor, group)
        for tensor in buffers:
            # Indices, running statistics: with weights alone they make a weight, no activation.
            self._weights.add(self._follow(tensor, "other"))
        for tensor in (images, labels):
            self._follow(tensor, "other")

        handles = [
            *self._layer_hooks(),
            register_optimizer_step_pre_hook(lambda *_: self._step_begins()),
            register_optimizer_step_post_hook(lambda *_: self._step_ends()),
        ]
        replayed = self._replay_steps(optimizer) if self._memo is not None else []
        try:
            with self:
                update(trainable, optimizer, images, labels)
        finally:
            for handle in handles:
                handle.remove()
            for stepping in replayed:
                del stepping.step  # the instance's; the class's is there again
        purposes: dict[str, list[torch.Tensor]] = {
            "batch": [images, labels],
            "buffers": buffers,
            "optimizer_state": [t for held in optimizer_tensors(optimizer).values() for t in held],
            "gradients": [p.grad for p in parameters.values() if p.grad is not None],
            "weights": list(parameters.values()),
        }
        return self._recording(purposes)

    def record_forward(self, images: torch.Tensor) -> Recording:
        """Run and record one forward pass of the model as it stands, without gradients."""
        return self.record(lambda: self._model(images))

    def record_front(self, trainable: Trainable, images: torch.Tensor) -> Recording:
        """Run and record one pass through the front that is frozen."""
        return self.record(lambda: run_front(trainable.model, trainable.front, images))

    def record(self, run: Callable[[], object]) -> Recording:
        """Run and record anything, without gradients; the model's weights are not among what is held."""
        self._reset()
        handles = list(self._layer_hooks())
        try:
            with self, torch.no_grad():
                run()
        finally:
            for handle in handles:
                handle.remove()
        return self._recording({})

    def group_of(self, parameter: str) -> str:
        """The group of the layer that holds the parameter, or that it was attached to."""
        holder = layer_holding(parameter, self._groups)
        return "other" if holder is None else self._groups[holder]

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See one operator."""
        kwargs = kwargs or {}
        if func is METADATA:
            # Asked so often that a second dispatch would cost a tenth of the simulation.
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args, **kwargs)
        node = torch._C._current_autograd_node()
        phase = self._phase(node)
        if self._trainable is not None and self._trainable.runs_again != (self._put_aside is not None):
            self._put_random_state_aside()
        before = len(self._log)
        result, flops, call, tensors, work = self._run(func, args, kwargs)
        ids, weights = self._ids, self._weights
        # None: a tensor from before the recording that is no weight, such as the model's constants.
        read = [ids.get(tensor.untyped_storage()._cdata) for tensor in tensors]
        weights_only = bool(read) and weights.issuperset(read)
        if phase == "forward":
            group = self._stack[-1] if self._stack else "other"
            self._call_numbers.append(_next_number() - 1)
            reads_weight = weights_only or not weights.isdisjoint(read)
            self._calls.append(_ForwardCall(group, weights_only, reads_weight))
        elif phase == "backward":
            group, phase = self._backward_place(node, read)
        else:
            group = next((self._made_by[i] for i in read if i is not None), "other")

        for piece in work:
            self._work[piece, phase] += 1
        results = (result,) if isinstance(result, torch.Tensor) else tensors_in(result)
        made = [self._follow(tensor, group) for tensor in results]
        if weights_only:
            weights.update(made)
        if self._closely:
            self._stretches.append((len(self._log), _PHASES.get(phase, "backward"), group))
        if call is not None:
            self._calls_made.append((before, len(self._log), call))
        if flops is None:
            self._uncounted.add(str(func.overloadpacket).replace("aten.", ""))
        elif flops is not NONE:
            self._flops[group, phase] += flops.result
            if flops.input_gradient or flops.weight_gradient:
                self._flops[group, "input_gradient"] += flops.input_gradient
                self._flops[group, "weight_gradient"] += flops.weight_gradient
        return result

    def _run(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, OperatorFlops | None, Call | None, Sequence[torch.Tensor], tuple[Piece, ...]]:
        """The operator's result, its FLOPs, where it may need workspace, the tensors it reads, its work."""
        if self._memo is not None:
            result, known, tensors = self._memo.run(func, args, kwargs)
            return result, known.flops, known.call, tensors, known.work
        tensors = tensors_in((args, kwargs))
        call = call_of(func, args, kwargs, tensors)
        result = args[0] if writes_in_place_only(func, args) else func(*args, **kwargs)
        flops = operator_flops(func, args, kwargs, result)
        return result, flops, call, tensors, work_of(func, args, result, tensors, tensors_in(result), flops)

    def _phase(self, node: Any) -> str:
        """Of the operator that is about to run."""
        if self._stepping:
            return "optimizer"
        if node is None or torch.is_grad_enabled():  # the latter: a checkpointed block runs again
            if node is None and not self._went_forward:
                self._went_forward = True
                self._at_starts.append((self._flops.copy(), self._work.copy()))
            return "forward"
        if self._went_forward:
            self._went_forward = False
            self._forward_ends.append(len(self._log))
        return "backward"

    def _put_random_state_aside(self) -> None:
        """While a part runs again, with the first time's random numbers, torch keeps the state of now."""
        if self._put_aside is None:
            self._put_aside = self._allocate(random_state_bytes(), "other")
        else:
            self._log.append((self._put_aside, -self._sizes[self._put_aside]))
            self._put_aside = None

    def _backward_place(self, node: Any, read: list[int | None]) -> tuple[str, str]:
        """Group and phase of an operator that runs while gradients flow."""
        number = node._sequence_nr() if node is not None else None
        # A node is created just before its forward operator runs (in-place ones may run a few more).
        position = bisect_left(self._call_numbers, number) if number is not None else len(self._calls)
        if position == len(self._calls):
            return "other", "input_gradient"  # branches' gradients being summed
        call = self._calls[position]
        if call.weights_only:
            return call.group, "weight_gradient"
        if not call.reads_weight:
            return call.group, "input_gradient"
        # y = f(x, w): the gradient of x reads w, the gradient of w reads x.
        reads_weight = not self._weights.isdisjoint(read)
        return call.group, "input_gradient" if reads_weight else "weight_gradient"

    def _replay_steps(self, optimizer: torch.optim.Optimizer | None) -> list[Any]:
        """Let known optimizers write down what a step would do, instead of doing it."""
        replayed: list[Any] = []
        for stepping in optimizers_in(optimizer):
            step = known_step(stepping)
            if step is not None:
                stepping.step = partial(self._replay, stepping, step)  # type: ignore[assignment,method-assign]
                replayed.append(stepping)
        return replayed

    def _replay(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        lingering = None
        for options in optimizer.param_groups:
            for parameter in options["params"]:
                if parameter.grad is None:
                    continue
                group = self._made_by[self._ids[_key(parameter)]]
                self._flops[group, "optimizer"] += parameter.numel() * step.flops_per_element + step.flops
                # The weight, its gradient and the state are read, and all but the gradient are written.
                size = parameter.nbytes * (3 + 2 * len(step.states))
                new = new_bytes(*[parameter.nbytes] * step.temporaries)
                self._work[(step.name, "forward", 1, 0, 0, 0, size, new), "optimizer"] += 1
                made = [self._allocate(parameter.nbytes, group) for _ in range(step.temporaries)]
                for temporary in (*made[:-1], lingering):
                    if temporary is not None:
                        self._log.append((temporary, -self._sizes[temporary]))
                lingering = made[-1] if made else None
                if self._closely:
                    self._stretches.append((len(self._log), "optimizer", group))
        if lingering is not None:
            self._log.append((lingering, -self._sizes[lingering]))

    def _allocate(self, size: int, group: str) -> int:
        """A storage that no tensor stands for."""
        new = len(self._sizes)
        self._sizes.append(size)
        self._made_by.append(group)
        self._log.append((new, size))
        return new

    def _step_begins(self) -> None:
        self._stepping += 1

    def _step_ends(self) -> None:
        self._stepping -= 1

    def _tensors(self) -> tuple[dict[str, nn.Parameter], list[torch.Tensor]]:
        """The model's parameters by name, and its buffers, a shared one once."""
        parameters: dict[nn.Parameter, str] = {}
        buffers: dict[torch.Tensor, None] = {}
        for path, module in self._modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    parameters.setdefault(parameter, f"{path}.{name}" if path else name)
            buffers |= dict.fromkeys(buffer for buffer in module._buffers.values() if buffer is not None)
        return {name: parameter for parameter, name in parameters.items()}, list(buffers)

    def _layer_hooks(self) -> Iterator[Any]:
        # Around the methods' own hooks, so that a bypass counts to the layer it adapts.
        for name, group in self._groups.items():
            module = self._modules[name]
            yield module.register_forward_pre_hook(self._push(group), prepend=True)
            yield module.register_forward_hook(lambda *_: self._stack.pop() and None, always_call=True)

    def _push(self, group: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(group)

    def _follow(self, tensor: torch.Tensor, group: str) -> int:
        """The id of the tensor's storage; a storage seen for the first time adds its bytes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._ids.get(key)
        if known is not None:
            return known
        size = storage.nbytes()
        new = self._allocate(size, group)
        log, ids = self._log, self._ids

        def released(_: object) -> None:
            del ids[key]
            log.append((new, -size))

        ids[key] = new
        self._references.append(weakref.ref(storage, released))
        return new

    def _recording(self, purposes: Mapping[str, list[torch.Tensor]]) -> Recording:
        log, sizes, groups = list(self._log), self._sizes, self._made_by
        held = list(accumulate(change for _, change in log))
        peak = held.index(max(held)) + 1 if held else 0
        of_tensors, workspace = peak, 0
        if self._workspace is not None and held:
            peak, workspace = self._highest([0, *held], peak, self._workspace)
        after_forward = _live_at(log, self._forward_ends[:1])
        later = _live_at(log, self._forward_ends) if len(self._forward_ends) > 1 else after_forward
        purpose_of = dict.fromkeys(later, "activations")
        for purpose, tensors in purposes.items():
            purpose_of |= {
                self._ids[_key(tensor)]: purpose for tensor in tensors if _key(tensor) in self._ids
            }
        made: Counter[str] = Counter()
        every: Counter[str] = Counter()
        at_peak: Counter[tuple[str, str]] = Counter()
        live = _live_at(log, [peak])
        for storage in live:
            purpose = purpose_of.get(storage, "temporaries")
            at_peak[purpose, groups[storage]] += sizes[storage]
            every[groups[storage]] += sizes[storage]
            if purpose in ("activations", "temporaries"):
                made[groups[storage]] += sizes[storage]

        def memory(storages: Iterable[int]) -> Memory:
            held: Counter[str] = Counter()
            for storage in storages:
                held[purpose_of.get(storage, "temporaries")] += sizes[storage]
            return Memory(**held)

        saved: Counter[str] = Counter()
        for storage in after_forward:
            if purpose_of[storage] == "activations":
                saved[groups[storage]] += sizes[storage]
        second, again = Counter[tuple[str, str]](), Counter[tuple[Piece, str]]()
        if len(self._at_starts) > 2:  # a pass begins with the sum of the losses before it
            (flops, work), (flops_then, work_then) = self._at_starts[1:3]
            second, again = flops_then - flops, work_then - work
        recording = Recording(
            _by_group(self._flops, Flops.__slots__),
            replace(memory(live), workspace=workspace),
            memory(live if of_tensors == peak else _live_at(log, [of_tensors])),
            dict(made),
            dict(every),
            dict(saved),
            frozenset(self._uncounted),
            _by_group(second, ("forward", "input_gradient", "weight_gradient")),
            at_peak,
            tuple(self._moments(log, peak, workspace, purpose_of)),
            summed(self._work),
            summed({key: count for key, count in again.items() if key[1] != "optimizer"}),
            *kernels_of({call for *_, call in self._calls_made}),
        )
        self._reset()
        return recording

    def _moments(
        self, log: Sequence[tuple[int, int]], peak: int, workspace: int, purpose_of: Mapping[int, str]
    ) -> Iterator[Moment]:
        """For each stretch of operators of one phase and group, the most that is held in it.

        What operators take inside is known at the peak alone.
        """
        held: Counter[str] = Counter()
        done = 0
        for (phase, group), stretch in groupby(self._stretches, itemgetter(1, 2)):
            *_, (end, *_) = stretch
            highest = None
            for position in range(done, end + 1):
                if position > done:
                    storage, change = log[position - 1]
                    held[purpose_of.get(storage, "temporaries")] += change
                here = Memory(**held, workspace=workspace if position == peak else 0)
                if highest is None or here.total > highest.total:
                    highest = here
            done = end
            assert highest is not None  # noqa: S101 - a stretch has a beginning
            yield Moment(phase, group, highest)

    def _highest(self, held: Sequence[int], peak: int, workspace: Workspace) -> tuple[int, int]:
        """Where in the log the peak is once operators' workspace counts, and how much of that is there.

        Only calls that may lift the peak are looked into, the likeliest first.
        """
        most = held[peak]
        found = peak, 0
        calls = sorted(
            (
                (held[before] + workspace.bound(call, held[after] - held[before]), before, after, call)
                for before, after, call in self._calls_made
            ),
            key=lambda item: item[0],
            reverse=True,
        )
        for start in range(0, len(calls), _AT_ONCE):
            batch = [item for item in calls[start : start + _AT_ONCE] if item[0] > most]
            if not batch:
                break
            inside = workspace.peaks(call for *_, call in batch)
            for _, before, after, call in batch:
                total = held[before] + inside[call]
                if total > most:
                    most = total
                    found = after, total - held[after]
        return found

    def _reset(self) -> None:
        self._trainable = self._put_aside = None
        self._stepping = 0  # optimizer steps begun and not ended
        self._went_forward = False  # since the last backward pass
        self._forward_ends: list[int] = []  # positions in the log
        # FLOPs, and work, when each forward pass began.
        self._at_starts: list[tuple[Counter[tuple[str, str]], Counter[tuple[Piece, str]]]] = []
        self._work: Counter[tuple[Piece, str]] = Counter()  # calls, by what they do and in which phase
        self._stack: list[str] = []
        self._call_numbers: list[int] = []  # ascending, one for each of _calls
        self._calls: list[_ForwardCall] = []
        self._flops: Counter[tuple[str, str]] = Counter()
        self._uncounted: set[str] = set()
        self._ids: dict[int, int] = {}  # a live storage's address -> its id
        self._sizes: list[int] = []  # by id
        self._made_by: list[str] = []  # by id
        self._weights: set[int] = set()  # ids of weights and of what was made of weights alone
        self._log: list[tuple[int, int]] = []  # (id, bytes), in order: + allocated, - released
        self._calls_made: list[tuple[int, int, Call]] = []  # the log's length before and after
        self._stretches: list[tuple[int, Phase, str]] = []  # the log's length after; whose operator
        self._references: list[weakref.ref[Any]] = []


def layer_holding(parameter: str, layers: Container[str]) -> str | None:
    """The layer that holds the parameter, or that it was attached to; None where no layer does."""
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        if path in layers:
            return path
    return None


def random_state_bytes() -> int:
    """What torch keeps to draw the same random numbers again: a tensor that no operator makes."""
    return torch.get_rng_state().nbytes


def _by_group(flops: Counter[tuple[str, str]], phases: Iterable[str]) -> defaultdict[str, Flops]:
    groups = {group for group, _ in flops}
    each = {group: Flops(**{phase: flops[group, phase] for phase in phases}) for group in groups}
    return defaultdict(Flops, each)


def writes_in_place_only(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the operator only changes its first argument's values, which a fake tensor has none of.

    Skipping those halves the time of a simulated optimizer step. Single elements are left to run:
    fake tensors do carry the values of scalars such as Adam's step counter.
    """
    return (
        torch.Tag.pointwise in func.tags
        and func.overloadpacket.__name__.endswith("_")
        and isinstance(args[0], FakeTensor)
        and args[0].numel() > 1
    )


class SkippingWrites(TorchDispatchMode):
    """Runs everything but what `writes_in_place_only`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run one operator."""
        if func is METADATA and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        return args[0] if writes_in_place_only(func, args) else func(*args, **(kwargs or {}))


def optimizers_in(optimizer: torch.optim.Optimizer | None) -> list[torch.optim.Optimizer]:
    """Those that do the stepping: itself and the one it hands parameters to, or one for each parameter."""
    if optimizer is None:
        return []
    if isinstance(optimizer, StepAtOnce):
        return [inner for each in optimizer.each.values() for inner in optimizers_in(each)]
    plain = getattr(optimizer, "plain", None)
    return [optimizer] if plain is None else [plain, optimizer]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer | None,
) -> dict[torch.Tensor, list[torch.Tensor]]:
    """The optimizer's state, by parameter."""
    if optimizer is None:
        return {}
    return {
        parameter: [value for value in state.values() if isinstance(value, torch.Tensor)]
        for parameter, state in optimizer.state.items()
    }


def _live_at(log: list[tuple[int, int]], positions: list[int]) -> set[int]:
    """The storages that are held at any of the positions, which ascend."""
    live: set[int] = set()
    found: set[int] = set()
    start = 0
    for position in positions:
        for storage, change in log[start:position]:
            if change >= 0 and storage not in live:
                live.add(storage)
            else:
                live.discard(storage)
        found |= live
        start = position
    return found


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
