"""The cost of one update, from running it without data: no memory, exact to the tensor.

The real attach, forward pass, backward pass and optimizer run on meta tensors, which have shapes and
no values; a dispatch mode sees every operator (`costs.recorder`) and runs each but once for every
combination of shapes (`costs.memo`). FLOPs follow from shapes (`costs.flops`). Memory follows from
storages: each new one adds its bytes and its finalizer takes them off, so the running sum is what
the allocator holds; what a kernel takes inside one operator is measured (`costs.workspace`). An update that
finds the optimizer's state in place is recorded: the first one is cheaper than all that follow.

Recurrent layers are the exception: on a CPU all their steps are one kernel of a library, whose memory no
shape tells, while on meta tensors they are taken apart. Networks with one are run on real tensors.
"""

from __future__ import annotations

import copy
import gc
import platform
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import advisor.costs
import advisor.methods
import advisor.models
import advisor.parts
import advisor.records
import advisor.training
from advisor.costs.allocator import allocator_peak
from advisor.costs.attention import DeviceNeededError, cpu_attention
from advisor.costs.closely import NO_LAYER, Stage, layer_costs, timeline, with_stage
from advisor.costs.kernels import PASSES
from advisor.costs.memo import OperatorMemo, Remembering
from advisor.costs.recorder import (
    Recorder,
    Recording,
    SkippingWrites,
    optimizers_in,
    random_state_bytes,
)
from advisor.costs.steps import known_step, make_state
from advisor.costs.work import as_work
from advisor.costs.workspace import Workspace
from advisor.errors import InputError
from advisor.methods import Method, Trainable, get_method
from advisor.methods.recalibrate import reestimation
from advisor.methods.ridge import Ridge
from advisor.models.blocks import run_front
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.models.layers import is_shapes
from advisor.parts.bypass import bypass_of
from advisor.parts.closed_form import MOST_ROWS, Examples, WideHead, feature_sizes
from advisor.records import (
    LAYER_TYPES,
    Augment,
    Candidate,
    Census,
    Cost,
    Features,
    Flops,
    LayerCost,
    LayerTypeCost,
    Levers,
    Timeline,
)
from advisor.training.step_at_once import StepAtOnce
from advisor.training.update import RECALIBRATION_SAMPLES, begin, update
from advisor.training.views import view_count

# In order of speed. Meta tensors know only shapes; fake ones also stand for the CPU where a model's
# code asks for a device; real ones have the values that some models' code reads.
Tensors = Literal["meta", "fake", "real"]
_SOLVING_BATCH = 64  # images whose features enter a Gram matrix at once


class Simulator:
    """Prices candidates of one model, which is left untouched. Each one makes the next cheaper."""

    def __init__(
        self,
        model: nn.Module,
        census: Census,
        images: int = 0,
        *,
        unlabelled: int = 0,
        augment: Augment = "none",
        workspace: bool = True,
    ) -> None:
        """Prepare to price candidates.

        Args:
            images: how many there are to train on, which decides what a cached prefix holds.
            unlabelled: how many more for methods that look at no labels.
            augment: what of the images is trained on: a cached prefix holds each of their views.
            workspace: whether to count what kernels hold inside one operator, measured on this machine.
        """
        self._workspace = Workspace() if workspace else None
        self._model, self._census = model, census
        self._images, self._unlabelled, self._augment = images, unlabelled, augment
        self._groups: Mapping[str, str] = census.types()
        self._kinds: tuple[str, ...] = LAYER_TYPES
        self._memo = OperatorMemo()
        self._forward: Recording | None = None
        self._known: dict[tuple[Method, Candidate, int, Tensors | None], Cost] = {}
        self._fronts: dict[tuple[tuple[str, ...], bool, torch.Size], tuple[int, torch.Tensor]] = {}
        self._need_device: set[str] = set()  # methods of which a candidate could not run on meta tensors
        # Of shapes alone nothing can be run: `_cost` then says what is left out.
        self._recurrent = [name for name, each in model.named_modules() if isinstance(each, nn.RNNBase)]
        self._needs_kernels = bool(self._recurrent) and workspace and not is_shapes(model)
        self._closely = False

    def cost(self, candidate: Candidate, batch_size: int, tensors: Tensors | None = None) -> Cost:
        """Cost of one update of `candidate` on `batch_size` images of the census's input size.

        Args:
            tensors: what to run it on. None: meta tensors, or where the model's code can't run on
                them, fake ones, or where it reads values, real ones: the cost's fidelity then says
                `measured`.

        Raises:
            Exception: whatever the method or the model raises when such an update is run.
        """
        with without_collector():
            features = candidate.levers.solved_head
            if features is None:
                return self._priced(candidate, batch_size, tensors)
            # The head is solved after training: the one doesn't change what the other costs.
            trained = replace(candidate, levers=replace(candidate.levers, head="trained"))
            return self._with_solved_head(
                self._priced(trained, batch_size, tensors), trained, features, batch_size, tensors
            )

    def by_layer(self, candidate: Candidate, batch_size: int) -> Mapping[str, LayerTypeCost]:
        """What each layer costs, by its path, at the peak of tensors alone; `other`: what no layer does.

        The same on every machine. Raises what `cost` raises.
        """
        return self._split_by_layer(None).cost(candidate, batch_size).by_layer_type

    def closely(self, candidate: Candidate, batch_size: int) -> tuple[tuple[LayerCost, ...], Timeline | None]:
        """Each layer's share of an update, and how the memory goes up and down: a `Cost`'s last fields.

        Raises what `cost` raises.
        """
        split = self._split_by_layer(self._workspace)
        split._closely = True
        cost = split.cost(candidate, batch_size)
        return cost.by_layer, cost.timeline

    def _split_by_layer(self, workspace: Workspace | None) -> Simulator:
        """One whose costs are split by layer, not by layer type."""
        split = Simulator(
            self._model,
            self._census,
            self._images,
            unlabelled=self._unlabelled,
            augment=self._augment,
            workspace=False,
        )
        split._memo, split._workspace = self._memo, workspace
        split._needs_kernels = self._needs_kernels and workspace is not None
        split._groups = {name: name for name in self._groups}
        split._kinds = (*split._groups, NO_LAYER)
        return split

    def key(self) -> dict[str, Any]:
        """All that a cost depends on, besides candidate and batch size: to find it in a store."""
        own = (
            advisor.costs,
            advisor.methods,
            advisor.parts,
            advisor.training,
            advisor.models,
            advisor.records,
        )
        return {
            "model": fingerprint(repr(self._model), self._model.state_dict().items()),
            "input_size": self._census.input_size,
            "images": self._images,
            "unlabelled": self._unlabelled,
            "augment": self._augment,
            "workspace": self._workspace is not None,
            "code": code_fingerprint(self._model, *own),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }

    def _with_solved_head(
        self, cost: Cost, trained: Candidate, features: Features, batch_size: int, tensors: Tensors | None
    ) -> Cost:
        """What training costs, and then a pass over all images and the solving."""
        levers = Levers(micro_batch=trained.levers.micro_batch)
        last, fit = (
            self._priced(Candidate.of(Ridge.name, {"features": each}, levers), batch_size, tensors)
            for each in ("last", features)
        )
        more = fit.trainable_parameters - last.trainable_parameters
        more_bytes = fit.delta_bytes - last.delta_bytes
        if not get_method(trained.method).learns_classes:  # it leaves the head alone
            more, more_bytes = fit.trainable_parameters, fit.delta_bytes
        # The trained network is held meanwhile, with what the method added to it.
        weights = max(cost.memory.weights, fit.memory.weights)
        solving = replace(fit.memory, weights=weights)
        group = self._groups[self._census.head or ""]
        of_head = cost.by_layer_type[group]
        of_head = replace(of_head, trainable_parameters=of_head.trainable_parameters + more)
        of_tensors = (fit.tensor_peak_bytes or 0) + weights - fit.memory.weights
        passes = -(-self._examples(features) // batch_size)
        return replace(
            cost,
            trainable_parameters=cost.trainable_parameters + more,
            delta_bytes=cost.delta_bytes + more_bytes,
            by_layer_type={**cost.by_layer_type, group: of_head},
            by_layer=tuple(
                replace(each, treatment="solved", trained_parameters=each.trained_parameters + more)
                if each.name == self._census.head
                else each
                for each in cost.by_layer
            ),
            timeline=cost.timeline and with_stage(cost.timeline, ("after", solving, None)),
            memory=max(cost.memory, solving, key=lambda held: held.total),
            tensor_peak_bytes=max(cost.tensor_peak_bytes or 0, of_tensors),
            setup_flops=cost.setup_flops + passes * fit.flops.total + fit.setup_flops,
            inference_flops_ratio=cost.inference_flops_ratio + fit.inference_flops_ratio - 1,
        )

    def _examples(self, features: Features) -> int:
        """How many images a head is solved on; where that isn't known, as many as it has features."""
        return self._images or sum(feature_sizes(self._census, features))

    def _solving(self, features: Features, tensors: Tensors) -> tuple[Recording, int]:
        """The solving of a head, its images' features included, and the bytes of those features."""
        sizes, classes = feature_sizes(self._census, features), self._census.classes or 0
        count, device = self._examples(features), "meta" if tensors == "meta" else None
        kept = min(count, MOST_ROWS)
        more = min(count - kept, _SOLVING_BATCH)

        def run() -> None:
            rows = torch.ones(kept + more, sum(sizes), device=device)
            labels = torch.zeros(kept + more, dtype=torch.int64, device=device)
            Examples.of(sizes, classes, rows, labels).solve()

        recording = Recorder(nn.Module(), {}, self._memo if tensors == "meta" else None).record(run)
        flops = defaultdict(Flops, recording.flops)
        again = max(-(-(count - kept) // _SOLVING_BATCH) - 1, 0)  # further batches that the Gram matrix takes
        flops["linear"] += Flops(again * 2 * _SOLVING_BATCH * sum(sizes) * (sum(sizes) + classes))
        held = kept * sum(sizes) * 4 + (8 * sum(sizes) ** 2 if more else 0)
        return replace(recording, flops=flops), held

    def _priced(self, candidate: Candidate, batch_size: int, tensors: Tensors | None) -> Cost:
        key = get_method(candidate.method), candidate, batch_size, tensors
        if key not in self._known:
            self._known[key] = self._priced_anew(candidate, batch_size, tensors)
        return self._known[key]

    def _priced_anew(self, candidate: Candidate, batch_size: int, tensors: Tensors | None) -> Cost:
        if tensors is not None:
            return self._cost(candidate, batch_size, tensors)
        if self._needs_kernels:
            return self._cost(candidate, batch_size, "real")
        if candidate.method not in self._need_device:
            try:
                return self._cost(candidate, batch_size, "meta")
            except DeviceNeededError:
                self._need_device.add(candidate.method)
            except Exception:  # noqa: BLE001, S110 - what fails for another reason fails below, too
                pass
        try:
            return self._cost(candidate, batch_size, "fake")
        except InputError:
            raise
        except Exception:  # noqa: BLE001 - the model's code, or an operator of its own, wants values
            return self._cost(candidate, batch_size, "real")

    def forward_flops(self) -> dict[str, int]:
        """FLOPs of one image's forward pass in eval mode, by layer type."""
        return {kind: flops.forward for kind, flops in self._forward_pass().flops.items()}

    def _forward_pass(self) -> Recording:
        """Of one image, in eval mode."""
        if self._forward is None:
            self._forward = self._record_forward()
        return self._forward

    def _record_forward(self) -> Recording:
        lighter: tuple[Tensors, ...] = ("meta", "fake")
        for tensors in lighter:
            with suppress(Exception):  # it needs a device, or values
                return self._record_inference_on(tensors)
        return self._record_inference_on("real")

    def _record_inference_on(self, tensors: Tensors) -> Recording:
        model, mode = self._copy(tensors)
        with mode:
            return self._record_inference(model, tensors)

    def _cost(self, candidate: Candidate, batch_size: int, tensors: Tensors) -> Cost:
        method, levers = get_method(candidate.method), candidate.levers
        size = min(levers.micro_batch or batch_size, batch_size)
        if batch_size % size:
            raise InputError(f"micro-batches of {size} don't divide a batch of {batch_size}")
        if levers.cached_prefix != "no" and not self._images:
            raise InputError("what a cached prefix holds follows from the number of images; give --data")
        if levers.statistics == "reestimated" and not self._images:
            raise InputError("statistics are re-estimated on the images to train on; give --data")
        micro_batches = batch_size // size
        model, mode = self._copy(tensors)
        own = set(model.parameters())
        with mode:
            with Remembering(self._memo) if tensors == "meta" else nullcontext():  # meta's own are slow
                trainable, optimizer = begin(model, self._census, candidate, learning_rate=1e-3)
            recorder = self._recorder(model, tensors, self._workspace)
            recorded = min(micro_batches, _different(optimizer))
            images, labels = self._batch(recorded * size, tensors)
            cache_bytes = setup_flops = 0
            if levers.cached_prefix != "no":
                views = view_count(candidate, self._census, self._augment) or 1
                cached = views * (self._images + (0 if method.learns_classes else self._unlabelled))
                each, images = self._through_front(trainable, recorder, images, tensors)
                setup_flops = cached * each
                cache_bytes = cached * images[0].numel() * images.element_size()
            self._make_optimizer_state(trainable, optimizer, tensors)
            recording = self._update(recorder, trainable, optimizer, (images, labels), tensors)
            trained: Counter[str] = Counter()
            for name, parameter in trainable.parameters.items():
                trained[recorder.group_of(name)] += parameter.numel()
            delta_bytes = _bytes(*trainable.delta().values())
            ratio = self._inference_ratio(method, model, tensors)
            solving, rows = self._solving(trainable.solved, tensors) if trainable.solved else (None, 0)

        flops = self._flops(recording, micro_batches, recorded, with_gradients=optimizer is not None)
        memory, of_tensors = (
            replace(
                held,
                activations=held.activations + _random_states(trainable),
                batch=_bytes(images, labels) * batch_size // len(labels),
                cached=rows if solving else cache_bytes if levers.cached_prefix == "ram" else 0,
            )
            for held in (recording.memory, recording.of_tensors)
        )
        tensor_peak_bytes = of_tensors.total
        stages: list[Stage] = [("update", memory, None)]
        if solving is not None:
            setup_flops, cache_bytes = setup_flops + _forward(solving), rows
            at_rest = memory.weights + memory.buffers
            tensor_peak_bytes = max(tensor_peak_bytes, at_rest + solving.of_tensors.total)
            end = replace(solving.memory, weights=memory.weights, buffers=memory.buffers)
            memory = max(memory, end, key=lambda held: held.total)
            stages.append(("after", end, None))
        if levers.statistics == "reestimated":
            before = self._priced(reestimation(levers.micro_batch), batch_size, tensors)
            memory = max(memory, before.memory, key=lambda held: held.total)
            stages.insert(0, ("before", before.memory, before.timeline))
            tensor_peak_bytes = max(tensor_peak_bytes, before.tensor_peak_bytes or 0)
            estimated_on = min(self._images + self._unlabelled, RECALIBRATION_SAMPLES)
            setup_flops += before.flops.forward * estimated_on // batch_size
        by_layer_type = {
            kind: LayerTypeCost(
                trained[kind],
                flops[kind],
                recording.bytes_at_peak.get(kind, 0),
                recording.saved.get(kind, 0),
                recording.all_at_peak.get(kind, 0),
            )
            for kind in self._kinds
            if trained[kind] or flops[kind].total or recording.all_at_peak.get(kind)
        }
        return Cost(
            trainable_parameters=trained.total(),
            delta_bytes=delta_bytes,
            flops=sum(flops.values(), Flops()),
            memory=memory,
            by_layer_type=by_layer_type,
            fidelity="measured" if tensors == "real" else "simulated",
            uncounted_operators=tuple(sorted(recording.uncounted)),
            cache_bytes=cache_bytes,
            setup_flops=setup_flops,
            inference_flops_ratio=ratio,
            notes=trainable.notes + self._left_out(),
            tensor_peak_bytes=tensor_peak_bytes,
            # A front whose outputs are cached is in no update, and in the passes.
            kernels=recording.kernels + PASSES * max(recording.shapes, self._forward_pass().shapes),
            by_layer=layer_costs(self._census, trainable, own, by_layer_type) if self._closely else (),
            timeline=timeline(recording, stages) if self._closely else None,
            work=as_work(
                self._work(recording, micro_batches, recorded, with_gradients=optimizer is not None)
            ),
        )

    def _update(
        self,
        recorder: Recorder,
        trainable: Trainable,
        optimizer: torch.optim.Optimizer | None,
        batch: tuple[torch.Tensor, torch.Tensor],
        tensors: Tensors,
    ) -> Recording:
        """One update; of real recurrent layers with all that the allocator gave out inside kernels, too."""
        recording = _recorded(recorder, trainable, optimizer, *batch)
        if tensors != "real" or not self._needs_kernels:
            return recording
        memory = recording.memory
        taken = allocator_peak(trainable, optimizer, *batch) - _random_states(trainable)
        more = max(taken - memory.total, 0)
        return replace(recording, memory=replace(memory, workspace=memory.workspace + more))

    def _left_out(self) -> tuple[str, ...]:
        """In words, what memory the shapes of a network don't tell."""
        if not self._recurrent or self._needs_kernels or self._workspace is None:
            return ()
        note = (
            f"the memory that `{self._recurrent[0]}` takes is told too low: what a recurrent layer's kernel "
            "keeps can't be told without the network's weights; give these, or allow for several times that"
        )
        return (note,)

    def _through_front(
        self, trainable: Trainable, recorder: Recorder, images: torch.Tensor, tensors: Tensors
    ) -> tuple[int, torch.Tensor]:
        """FLOPs of the frozen front for one image, and what it makes of all of them."""
        key = trainable.front, trainable.levers.fuse, images.shape
        if tensors == "meta" and key in self._fronts:
            flops, made = self._fronts[key]
            return flops, torch.empty_like(made)
        flops = _forward(recorder.record_front(trainable, images[:1]))
        made = run_front(trainable.model, trainable.front, images)
        if tensors == "meta":  # of all candidates' images it makes the same
            self._fronts[key] = flops, made
        return flops, made

    def _flops(
        self, recording: Recording, micro_batches: int, recorded: int, *, with_gradients: bool
    ) -> dict[str, Flops]:
        """Of all micro-batches, of which the first few were recorded."""
        more = micro_batches - recorded
        if not with_gradients and more:  # without a backward pass nothing parts one pass from the next
            whole = {kind: recording.flops[kind].forward // recorded for kind in self._kinds}
            return {kind: Flops(each * micro_batches) for kind, each in whole.items()}
        return {kind: recording.flops[kind] + recording.micro_batch[kind] * more for kind in self._kinds}

    def _work(
        self, recording: Recording, micro_batches: int, recorded: int, *, with_gradients: bool
    ) -> dict[tuple[str, str, str], int]:
        """Likewise."""
        more = micro_batches - recorded
        if not with_gradients and more:
            return {key: count // recorded * micro_batches for key, count in recording.work.items()}
        again = recording.work_again
        return {key: count + more * again.get(key, 0) for key, count in recording.work.items()}

    def _copy(self, tensors: Tensors) -> tuple[nn.Module, AbstractContextManager[object]]:
        """A copy of the model to run on such tensors, and the context to run it in."""
        if tensors == "real":
            return copy.deepcopy(self._model), nullcontext()
        if tensors == "meta":
            return shape_copy(self._model, torch.device("meta")), cpu_attention()
        mode = FakeTensorMode()
        return shape_copy(self._model, mode), mode

    def _batch(self, size: int, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        device = "meta" if tensors == "meta" else None
        images = torch.zeros(size, *self._census.input_size, device=device)
        return images, torch.zeros(size, dtype=torch.int64, device=device)

    def _recorder(self, model: nn.Module, tensors: Tensors, workspace: Workspace | None) -> Recorder:
        memo = self._memo if tensors == "meta" else None
        return Recorder(model, self._groups, memo, workspace, closely=self._closely)

    def _make_optimizer_state(
        self, trainable: Trainable, optimizer: torch.optim.Optimizer | None, tensors: Tensors
    ) -> None:
        """What a first update leaves behind, without its forward and backward pass."""
        if optimizer is None:
            return
        unknown = []
        for stepping in optimizers_in(optimizer):
            step = known_step(stepping) if tensors == "meta" else None
            if step is None:
                unknown.append(stepping)
            else:
                make_state(stepping, step, [p for group in stepping.param_groups for p in group["params"]])
        if not unknown:
            return
        with Remembering(self._memo) if tensors == "meta" else SkippingWrites():
            for parameter in trainable.parameters.values():
                if parameter not in optimizer.state:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _inference_ratio(self, method: Method, attached: nn.Module, tensors: Tensors) -> float:
        """Forward FLOPs of the merged model against the base's: 1 unless something can't be merged."""
        is_wide = any(isinstance(module, WideHead) for module in attached.modules())
        bypasses = [bypass for module in attached.modules() if (bypass := bypass_of(module)) is not None]
        if not is_wide and all(hasattr(bypass, "weight_change") for bypass in bypasses):
            return 1.0
        merged = method.merge(attached).eval()
        if tensors == "meta":
            with Remembering(self._memo) as counted, torch.no_grad():
                merged(self._batch(1, tensors)[0])
            flops = counted.flops
        else:
            flops = _forward(self._record_inference(merged, tensors))
        return flops / sum(self.forward_flops().values())

    def _record_inference(self, model: nn.Module, tensors: Tensors) -> Recording:
        model.eval()
        return self._recorder(model, tensors, None).record_forward(self._batch(1, tensors)[0])


@contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection: when it ran would move the peak, and between candidates it only takes time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def simulate(
    model: nn.Module, census: Census, candidate: Candidate, batch_size: int, *, workspace: bool = True
) -> Cost:
    """Cost of one update of one candidate; for more of them, a `Simulator` is faster."""
    return Simulator(model, census, workspace=workspace).cost(candidate, batch_size)


def shape_copy(model: nn.Module, mode: FakeTensorMode | torch.device) -> nn.Module:
    """A copy whose tensors have shapes and no values, fake or meta; shared ones stay shared."""
    modules = list(model.modules())
    memo: dict[int, Any] = _empty_copies(modules, mode)
    # What deepcopy does, many times faster: most of what modules hold is empty or a plain value.
    if any(hasattr(kind, "__deepcopy__") for kind in set(map(type, modules))):
        return copy.deepcopy(model, memo)
    for module in modules:
        kind = type(module)
        memo[id(module)] = kind.__new__(kind)
    for module in modules:
        held = module.__dict__
        copied = memo[id(module)].__dict__
        copied.update(held)
        for name, value in held.items():
            kind = type(value)
            if kind in _PLAIN:
                continue
            if kind in _CONTAINERS and not value:
                copied[name] = kind()
            elif name in _REGISTERED:
                copied[name] = {key: None if item is None else memo[id(item)] for key, item in value.items()}
            elif kind is not tuple or not _PLAIN.issuperset(map(type, value)):
                copied[name] = copy.deepcopy(value, memo)
    return memo[id(model)]


def _empty_copies(modules: Sequence[nn.Module], mode: FakeTensorMode | torch.device) -> dict[int, Any]:
    """A tensor without values for each of the modules' own, by its id."""
    device = mode if isinstance(mode, torch.device) else None
    copies: dict[int, Any] = {}
    with nullcontext() if isinstance(mode, torch.device) else mode:
        for module in modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is None or id(tensor) in copies:
                    continue
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                copies[id(tensor)] = empty
    return copies


_REGISTERED = {"_parameters", "_buffers", "_modules"}
_CONTAINERS = {dict, OrderedDict, set, list}
_PLAIN = {int, float, str, bool, type(None), torch.dtype}


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _forward(recording: Recording) -> int:
    return sum(flops.forward for flops in recording.flops.values())


def _recorded(
    recorder: Recorder,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Recording:
    """An update, with the state that a first one leaves in place; on average, where some are rare."""
    recording = recorder.record_update(trainable, optimizer, images, labels)
    if optimizer is None:
        return recording
    stepped = getattr(optimizer, "stepped", ())
    if any(p.grad is None and p not in stepped for p in trainable.parameters.values()):
        # Some weights take no part (auxiliary heads): give state only to those that do.
        optimizer.state.clear()
        update(trainable, optimizer, images, labels)
        recording = recorder.record_update(trainable, optimizer, images, labels)
    period = getattr(optimizer, "refresh_every", 1)
    if period > 1:
        optimizer.refresh_next()  # type: ignore[attr-defined]
        rare = recorder.record_update(trainable, optimizer, images, labels)
        recording = _over_a_period(recording, rare, period)
    return recording


def _different(optimizer: torch.optim.Optimizer | None) -> int:
    """How many micro-batches there are that no other is like: the first finds no gradients there.

    Where gradients go as soon as they are applied, they do so in the last one, and are held in the others.
    """
    return 3 if isinstance(optimizer, StepAtOnce) else 2


def _random_states(trainable: Trainable) -> int:
    """For each chain that runs again, torch keeps the random numbers' state."""
    return len(trainable.checkpointed) * random_state_bytes()


def _over_a_period(usual: Recording, rare: Recording, period: int) -> Recording:
    """The higher peak, and the average FLOPs, of `period` updates of which one is rare."""
    flops = defaultdict(
        Flops,
        {
            kind: Flops(
                *(
                    getattr(usual.flops[kind], phase)
                    + (getattr(rare.flops[kind], phase) - getattr(usual.flops[kind], phase)) // period
                    for phase in Flops.__slots__
                )
            )
            for kind in usual.flops.keys() | rare.flops.keys()
        },
    )
    higher, of_tensors = (
        max(usual, rare, key=lambda recording: held(recording).total)
        for held in (attrgetter("memory"), attrgetter("of_tensors"))
    )
    work = {
        key: usual.work.get(key, 0) + (rare.work.get(key, 0) - usual.work.get(key, 0)) // period
        for key in usual.work.keys() | rare.work.keys()
    }
    return replace(
        higher,
        flops=flops,
        of_tensors=of_tensors.of_tensors,
        uncounted=usual.uncounted | rare.uncounted,
        work=work,
    )
