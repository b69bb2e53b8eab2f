"""What passes between the packages: frozen records of plain values, no tensors, no modules.

Units are in the names: bytes, FLOPs (1 multiply-add = 2 FLOPs), seconds. `None` means unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, get_args

from advisor.units import format_bytes, format_flops

LAYER_TYPES = (
    "standard",  # convolution, groups = 1, kernel > 1
    "pointwise",  # 1x1 convolution, groups = 1
    "depthwise",  # groups = C_in > 1, C_out a multiple of it
    "grouped",  # every other groups > 1
    "transposed",
    "linear",
    "norm",
    "other",
)
MULTIPLY_ADD_TYPES = ("standard", "pointwise", "depthwise", "grouped", "transposed", "linear")

Z95 = 1.959964  # intervals are of 95 %: the normal distribution's 97.5 % quantile
BASELINE = "full"  # the method that all others are held against: every weight is trained

Fidelity = Literal["estimated", "simulated", "measured"]
# What a head in closed form reads: what the head reads anyway; the late, or all, blocks' pooled outputs, too.
Features = Literal["last", "late", "all"]
FEATURES: tuple[Features, ...] = get_args(Features)
SettingValue = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One module that computes, as found in the user's model."""

    name: str  # dotted path in the model; a shared module has its first path
    layer_type: str
    module: str  # class name
    parameters: int
    calls: int  # per forward pass; a re-used module is called more than once, its weights count once
    weight_shape: tuple[int, ...] = ()  # of the weight, () where there is none
    kernel_size: tuple[int, ...] = ()
    groups: int = 1
    has_bias: bool = False
    has_affine: bool = False  # a normalisation layer with a trainable scale
    tracks_statistics: bool = False  # a normalisation layer with running statistics
    followed_by: str = ""  # the normalisation layer that reads its outputs, and nothing else's
    output_positions: int = 0  # of a convolution or Linear, per image over all calls: H * W, tokens, 1


@dataclass(frozen=True, slots=True)
class Block:
    """A stage of the model: nothing but its output goes on from it."""

    modules: tuple[str, ...]  # paths of what it calls, in order; what has no weights may be there twice
    linked: bool  # each runs on the output of the one before; the first on that of the block before
    replaceable: bool  # it and all before it can be left out where its output is known
    in_place: tuple[bool, ...] = ()  # for each call, whether it writes over what it is called with
    shared: tuple[str, ...] = ()  # paths of modules that run inside those, but are found elsewhere
    features: int = 0  # channels of its output, to be pooled; 0: it has no positions, or can't be told apart


@dataclass(frozen=True, slots=True)
class Census:
    """The model's layers in the order in which a forward pass first calls them, uncalled ones last."""

    layers: tuple[Layer, ...]
    head: str | None  # the last classifier's path: Linear or 1x1 convolution
    classes: int | None  # the head's outputs
    input_size: tuple[int, ...]  # (C, H, W)
    parameters: int  # each shared weight once
    blocks: tuple[Block, ...] = ()  # before the head, in order; () where the model is no chain of them
    whole_because: str = ""  # why there are no blocks to choose from, though there are several layers

    def of_type(self, *layer_types: str) -> tuple[Layer, ...]:
        """The layers of the given types, in order."""
        return tuple(layer for layer in self.layers if layer.layer_type in layer_types)

    def types(self) -> dict[str, str]:
        """Each layer's type, by its path."""
        return {layer.name: layer.layer_type for layer in self.layers}


@dataclass(frozen=True, slots=True)
class LayerTypeSummary:
    """What the base model holds of one layer type; FLOPs of a forward pass of one sample."""

    count: int
    parameters: int
    forward_flops: int


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image is brought to the input size: resized to a little more, then cropped in the centre."""

    crop: float = 1.0  # what is kept of the resized image's height and width
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    # The shorter side is resized to the size, or both are, or the longer one, and borders are added.
    mode: Literal["center", "squash", "border"] = "center"
    order: Literal["rgb", "bgr"] = "rgb"  # of the channels: OpenCV reads them the other way round
    orientation: Literal["exif", "stored"] = "exif"  # turned as the image's EXIF says, or not


# What is trained on: images as they are, mirrored ones too, or random crops (`training.views`).
Augment = Literal["none", "flip", "standard"]
Optimizer = Literal["adam", "adamw", "momentum", "sgd"]
# Of normalisation layers with running statistics: as the method has it, or in eval mode, in train mode,
# or re-estimated on the new data before training and then frozen.
StatisticsPolicy = Literal["own", "frozen", "updated", "reestimated"]
NOT_PROBED = "not probed: "  # what `Evaluation.probe_failure` begins with where nothing failed
SMALL_BATCH = 16  # of fewer images, statistics are too noisy to train with (Group Normalization, 1803.08494)
# After training: the head as it was trained, or one in closed form of such `Features`.
HeadPolicy = Literal["trained", "ridge-last", "ridge-late", "ridge-all"]
_POLICIES = {"statistics": StatisticsPolicy, "head": HeadPolicy}


@dataclass(frozen=True, slots=True)
class Levers:
    """Memory and compute choices that combine with any method."""

    optimizer: Optimizer = "adam"
    scope: int | None = None  # only the last so many blocks, and the head, are trained; None: all
    micro_batch: int | None = None  # images in one pass, gradients accumulated; None: the whole batch
    checkpoint: bool = False  # each trained block but the last is run again when its gradients flow
    update: Literal["end", "per-parameter"] = "end"  # as soon as a gradient is ready, and then freed
    cached_prefix: Literal["no", "ram", "disk"] = "no"  # what is before the scope runs once an image
    fuse: bool = False  # BatchNorm before the scope folded into the layers that it follows
    statistics: StatisticsPolicy = "own"
    head: HeadPolicy = "trained"

    @property
    def solved_head(self) -> Features | None:
        """The features of the head that is solved after training; None: it stays as it was trained."""
        return None if self.head == "trained" else self.head.removeprefix("ridge-")  # type: ignore[return-value]

    def described(self) -> tuple[str, ...]:
        """What differs from the defaults, such as `last-3` or `micro-2`."""
        parts = {
            self.optimizer: self.optimizer != "adam",
            f"last-{self.scope}": self.scope is not None,
            f"micro-{self.micro_batch}": self.micro_batch is not None,
            "checkpoint": self.checkpoint,
            self.update: self.update != "end",
            f"cached-{self.cached_prefix}": self.cached_prefix != "no",
            "fused": self.fuse,
            f"statistics-{self.statistics}": self.statistics != "own",
            f"head-{self.head}": self.head != "trained",
        }
        return tuple(part for part, given in parts.items() if given)

    @classmethod
    def parse(cls, parts: Iterable[str]) -> Levers:
        """From what `described` gives. Raises ValueError on anything else."""
        found: dict[str, Any] = {}
        for part in parts:
            kind, _, value = part.partition("-")
            if part in get_args(Optimizer):
                found["optimizer"] = part
            elif kind in ("last", "micro") and value.isdecimal():
                found["scope" if kind == "last" else "micro_batch"] = int(value)
            elif part in ("cached-ram", "cached-disk"):
                found["cached_prefix"] = value
            elif kind in _POLICIES and value in get_args(_POLICIES[kind]):
                found[kind] = value
            elif part in ("checkpoint", "fused"):
                found["checkpoint" if part == "checkpoint" else "fuse"] = True
            elif part == "per-parameter":
                found["update"] = part
            else:
                raise ValueError(f"{part!r} is no lever")
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Everything needed to train: method, setting, levers. Hashable and serialisable."""

    method: str
    setting: tuple[tuple[str, SettingValue], ...] = ()  # sorted (name, value) pairs
    levers: Levers = field(default_factory=Levers)

    @classmethod
    def of(cls, method: str, setting: Mapping[str, SettingValue], levers: Levers) -> Candidate:
        """A candidate from a mapping of settings."""
        return cls(method, tuple(sorted(setting.items())), levers)

    @property
    def id(self) -> str:
        """Short, readable and unique, such as `lora-rank=4` or `full@sgd@last-3`."""
        settings = "".join(f"-{name}={value}" for name, value in self.setting)
        levers = "".join(f"@{part}" for part in self.levers.described())
        return f"{self.method}{settings}{levers}"

    @property
    def said(self) -> tuple[tuple[str, SettingValue], ...]:
        """The settings that can be read in passing: what is done in each layer of a plan can't."""
        return tuple((name, v) for name, v in self.setting if not isinstance(v, str) or ":" not in v)

    @property
    def short(self) -> str:
        """What people read, and may type: the id less the names that its values don't need.

        Such as `lora-4@last-3` for `lora-rank=4@last-3`, `norm@frozen` for `norm@statistics-frozen`. A
        plan's layers are left out: `plan@checkpoint`.
        """
        settings = "".join(f"-{f'{n}={v}' if isinstance(v, bool) else v}" for n, v in self.said)
        levers = "".join(
            f"@{part.removeprefix('statistics-').removeprefix('head-')}" for part in self.levers.described()
        )
        return f"{self.method}{settings}{levers}"

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """The candidate with this id. Raises ValueError where it is none's."""
        described, *levers = text.split("@")
        method, *settings = re.split(r"-(?=\w+=)", described)
        if not method or not all("=" in setting for setting in settings):
            raise ValueError(f"{text!r} is no candidate's id")
        pairs = (setting.split("=", 1) for setting in settings)
        candidate = cls.of(method, {name: _value(value) for name, value in pairs}, Levers.parse(levers))
        if candidate.id != text:
            raise ValueError(f"{text!r} is no candidate's id; {candidate.id} would be one")
        return candidate


def _value(text: str) -> SettingValue:
    """A setting's value from what it prints as."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one update, by phase."""

    forward: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All four phases."""
        return self.forward + self.input_gradient + self.weight_gradient + self.optimizer

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward,
            self.input_gradient + other.input_gradient,
            self.weight_gradient + other.weight_gradient,
            self.optimizer + other.optimizer,
        )

    def __mul__(self, times: int) -> Flops:
        return Flops(
            self.forward * times,
            self.input_gradient * times,
            self.weight_gradient * times,
            self.optimizer * times,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held at the moment of an update's peak, by what they are for."""

    weights: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer_state: int = 0
    activations: int = 0  # made by the forward pass and still held when it ends
    temporaries: int = 0
    batch: int = 0
    workspace: int = 0  # held inside the operator that runs at that moment; measured on this machine
    cached: int = 0  # the frozen front's outputs for all images, where they are kept in memory

    @property
    def total(self) -> int:
        """The peak."""
        return (
            self.weights
            + self.buffers
            + self.gradients
            + self.optimizer_state
            + self.activations
            + self.temporaries
            + self.batch
            + self.workspace
            + self.cached
        )


@dataclass(frozen=True, slots=True)
class LayerTypeCost:
    """One layer type's share of an update; a method's additions count to the layer they adapt."""

    trainable_parameters: int
    flops: Flops
    activation_bytes: int  # saved activations and temporaries held at the peak that its layers made
    saved_bytes: int = 0  # what its layers made in a forward pass that is kept for the backward pass
    peak_bytes: int = 0  # all that is held at the peak for its layers: weights, gradients, state, activations


# What an update does with a layer: all of its own weights are trained, or some of them, or what a method
# added beside them; it is solved in closed form; only its running statistics change; nothing does, but
# gradients pass through it, or not even they; it ran once for each image, before; it never runs.
Treatment = Literal[
    "trained", "partly", "added", "solved", "statistics", "passed", "frozen", "once", "unused"
]
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer's share of an update; a method's additions count to the layer they adapt."""

    name: str  # its path; empty: what no layer does
    layer_type: str
    treatment: Treatment
    parameters: int  # its own
    trained_parameters: int  # the method's additions included
    flops: Flops
    saved_bytes: int  # what it made in a forward pass that is kept for the backward pass
    peak_bytes: int  # held for it at the peak: weights, gradients, state, activations


# Of an update; before: statistics are re-estimated; after: a head is solved.
Phase = Literal["before", "forward", "backward", "optimizer", "after"]


@dataclass(frozen=True, slots=True)
class Moment:
    """The most that is held while a layer runs, or while several do."""

    phase: Phase
    layer: str  # that runs then, or the one of several at which the most is held; empty: none's
    memory: Memory


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at the peak for one layer and one purpose."""

    purpose: str  # one of `Memory`'s parts
    layer: str  # that made it, or has it; empty: none
    bytes: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """How the bytes held go up and down over one update; of several micro-batches, over the first two."""

    moments: tuple[Moment, ...]  # in order; the highest of them is the peak
    largest: tuple[Held, ...]  # of what is held at the peak, the ten largest


@dataclass(frozen=True, slots=True)
class Work:
    """What an update asks of a device in operators of one kind and phase."""

    kind: str  # standard, pointwise, depthwise, grouped, linear, norm, elementwise, in_place, ...
    phase: str  # forward, input_gradient, weight_gradient
    calls: int
    flops: int  # of elementwise ones those alone that take more than their bytes
    flops_in_8s: int  # of convolutions that are done eight at a time, the idle ones included
    flops_in_16s: int
    bytes: int  # read and written
    new_bytes: int  # of memory that the kernel has to hand out


@dataclass(frozen=True, slots=True)
class Cost:
    """What one update costs."""

    trainable_parameters: int
    delta_bytes: int  # to ship: trained weights and changed statistics
    flops: Flops  # one update over the whole batch
    memory: Memory  # at the moment of the peak
    by_layer_type: Mapping[str, LayerTypeCost]
    fidelity: Fidelity
    uncounted_operators: tuple[str, ...] = ()  # seen, but with no FLOP rule: never silently zero
    inference_flops_ratio: float = 1.0  # forward FLOPs once merged, against the base model's
    notes: tuple[str, ...] = ()  # such as where a rank was capped
    cache_bytes: int = 0  # a cached prefix's outputs for all images, in memory or on disk
    setup_flops: int = 0  # once, before the first update: to fill the cache, to re-estimate statistics
    # The peak of the tensors alone: the same on every machine, as workspace isn't. None: not known.
    tensor_peak_bytes: int | None = None
    # That PyTorch makes for shapes of convolutions in the fine-tune, and keeps: the runtime's memory.
    kernels: int = 0
    # Of the few candidates that are shown closely.
    by_layer: tuple[LayerCost, ...] = ()  # in the order of the forward pass, then what no layer does
    timeline: Timeline | None = None
    # Until seconds are predicted from it. Real tensors' optimizers run operators that others stand for.
    work: tuple[Work, ...] = field(default=(), compare=False)

    @property
    def peak_memory_bytes(self) -> int:
        """The peak of one update: everything the training step holds."""
        return self.memory.total


@dataclass(frozen=True, slots=True)
class Measurement:
    """One candidate run in a child process."""

    peak_memory_bytes: int  # the device's allocator's, tensors and operator workspace
    peak_resident_bytes: int  # the whole process in the host's memory, interpreter and libraries included
    runtime_bytes: int  # the part of it that the runtime alone takes
    update_seconds: float  # median, without the cap
    updates: int  # how many were timed
    cap_bytes: int | None  # the hard limit it ran under, the runtime's part included; None = no cap
    survived: bool
    failure: str = ""  # why not, one line
    update_seconds_lower_quartile: float | None = None
    update_seconds_upper_quartile: float | None = None
    update_joules: float | None = None  # mean; what the whole processor or GPU used meanwhile
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """How much was right after so many updates."""

    updates: int
    mean: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of held-out samples classified right, in the budget's metric, with a 95 % interval.

    Where many candidates were judged on the same samples, what all of them say counts: `seen` is the share
    that this one got right of them, `mean` what can be expected of it on others.
    """

    mean: float
    low: float
    high: float
    samples: int  # those that count in the metric
    # One byte per held-out sample: how many of the seeds got it right; same order for every candidate.
    correct: bytes = b""
    learning_rate: float | None = None  # the best one; None where nothing is trained
    updates: int = 0  # how many updates the probe trained for
    finalist: bool = True  # False: dropped early in the race, trained for fewer updates
    retained: Accuracy | None = None  # on the old data, of the same network; None: none was given
    known_classes: float | None = None  # of held-out samples of classes that the model knew; None: of none
    new_classes: float | None = None  # of the others
    seeds: int = 1  # trainings, each with its own order of batches and its own new weights
    # Of images that belong together the answers are alike: so many that are independent say as much.
    effective_samples: int | None = None  # None: all are independent, and count alike
    weights: tuple[float, ...] | None = None  # of each held-out sample, in the metric; None: all count alike
    balanced: Accuracy | None = None  # the mean of the classes' shares
    recalls: tuple[float | None, ...] = ()  # each class's share, in the data's order; None: none judged
    samples_by_class: tuple[int, ...] = ()  # likewise: how many of its images were judged
    seen: float | None = None  # None: the mean is it
    # After each length that it was trained for at that learning rate; () where nothing is trained.
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Share of held-out samples that a candidate would get right once trained to the end; 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """What is resident besides an update where a bundle's finetune.py runs."""

    bytes: int  # Python, PyTorch, Pillow, and the images of a batch on their way
    where: str  # it was measured: `here`, or the target's name; empty: it was given
    kernel_bytes: int = 0  # more for each of a candidate's kernels

    def beside(self, cost: Cost) -> int:
        """What a fine-tune of that cost has resident besides the update."""
        return self.bytes + cost.kernels * self.kernel_bytes


@dataclass(frozen=True, slots=True)
class Target:
    """The device that the advice is for, where its profile was given."""

    name: str
    machine: str  # system and processor type
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a candidate is predicted to take on the target."""

    update_seconds: float
    tune_seconds: float | None  # of the whole fine-tune; None: without data its length is unknown
    update_joules: float | None = None  # None: the device doesn't tell
    tune_joules: float | None = None


LimitName = Literal[
    "ram",
    "flops",
    "storage",
    "step_time",
    "total_time",
    "energy",
    "max_trainable",
    "max_overhead",
    "min_accuracy",
    "min_retained",
]
LIMITS: tuple[LimitName, ...] = get_args(LimitName)


@dataclass(frozen=True, slots=True)
class Violation:
    """A limit that a candidate breaks, and by how much."""

    limit: Literal[LimitName, "execution"]  # execution: of a run, which took more memory than was simulated
    value: float
    allowed: float
    reason: str  # in words, with the numbers
    hard: bool = True  # False: it is told, and excludes nothing


# Of candidates that are as accurate, the first is that with the least of it.
Preference = Literal["ram", "flops", "storage", "time"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The user's limits, all optional."""

    ram_bytes: int | None = None
    flops: int | None = None  # of one update
    storage_bytes: int | None = None
    min_accuracy: float | None = None  # in the metric
    min_retained: float | None = None  # accuracy on the old data
    tolerance: float = 0.005  # of accuracy, as a fraction: within it of the best, the cheapest wins
    runtime_overhead_bytes: int = 0  # taken off ram_bytes
    kernel_bytes: int = 0  # likewise, for each of a candidate's kernels
    # Whether the runtime's part is found out, and taken off; None: with a target.
    ram_includes_runtime: bool | None = None
    prefer: Preference = "ram"
    # Of one update: as predicted of the target, or of those that were run on this machine.
    step_seconds: float | None = None
    total_seconds: float | None = None  # of the whole fine-tune on the target
    total_joules: float | None = None  # likewise
    max_trainable: int | None = None  # parameters
    max_overhead: float | None = None  # of an inference once merged, in FLOPs, as a fraction; 0: none
    warn: tuple[LimitName, ...] = ()  # limits that are told where they are broken, and exclude nothing
    metric: str = "accuracy"  # or "balanced", the mean of the classes' shares, or "recall:CLASS"

    @property
    def metric_kind(self) -> str:
        """`accuracy`, `balanced` or `recall`."""
        return self.metric.partition(":")[0]

    @property
    def measure(self) -> str:
        """What the metric is called in a sentence, such as `balanced accuracy`."""
        return "accuracy" if self.metric == "accuracy" else f"{self.metric} accuracy"

    @property
    def fewest_flops(self) -> bool:
        """Whether FLOPs come first, as after a bare --flops-budget."""
        return self.prefer == "flops"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A candidate with everything that is known of it."""

    candidate: Candidate
    cost: Cost
    measured: Measurement | None = None
    accuracy: Accuracy | None = None
    probe_failure: str = ""  # why there is no accuracy, such as "diverged at every learning rate"
    violations: tuple[Violation, ...] = ()  # hard ones first
    predicted: Estimate | None = None  # of what was not trained to the end, told from what was probed
    forecast: Forecast | None = None  # None: no target was given

    @property
    def update_seconds(self) -> float | None:
        """Of one update: on the target where one was given, else as measured here; None: unknown."""
        if self.forecast is not None:
            return self.forecast.update_seconds
        return self.measured.update_seconds if self.measured is not None else None

    @property
    def fits(self) -> bool:
        """Whether it meets every hard limit."""
        return not any(violation.hard for violation in self.violations)


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What another value of a limit would give; a promise: with `limits` set, it comes true."""

    limit: str
    by: float  # how much more of the limit's unit, or less of it
    candidate_id: str | None  # what would be the answer, or fit; None: nothing would fit
    accuracy_gain: float | None  # against the recommendation, as a fraction
    sentence: str
    # fits: it would fit, and be tried; answer: it would be the answer; stays: it would still be.
    effect: Literal["fits", "answer", "stays"] = "fits"
    # To be set, in their units, RAM less the runtime's part; several where none alone will do.
    limits: Mapping[LimitName, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What a method is."""

    summary: str  # what it trains
    formula: str
    source: str  # paper, equation


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The user's model."""

    source: str  # as typed
    name: str  # the architecture
    parameters: int
    parameter_bytes: int
    layer_types: Mapping[str, LayerTypeSummary]
    forward_flops: int  # one sample, every layer type
    fvcore_forward_flops: int | None  # fvcore's multiply-adds, doubled: an independent check
    classes: int | None
    arch: str | None = None  # as given with --arch
    fingerprint: str = ""  # of its weights (SHA-256); empty where they are made anew at every loading


Weight = Literal["error", "warning", "note"]
WEIGHTS: tuple[Weight, ...] = get_args(Weight)  # the weightiest first


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture of one image."""

    caption: str  # its file's name, or its class
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in the data that may make an accuracy other than it seems."""

    kind: str  # such as `twins`: one word, for programs
    weight: Weight
    text: str  # one line: what, how much of it, and what to do
    files: tuple[str, ...] = ()  # the first few that it concerns
    pictures: tuple[Picture, ...] = field(default=(), compare=False)  # of those, for the page alone


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The user's data and how it was used."""

    source: str
    scenario: Literal["shift", "new-classes"]
    classes: int
    new_classes: int
    train_samples: int
    validation_samples: int
    base_accuracy: Accuracy | None  # the model as it is; None where its head was replaced
    probe_seconds: float  # wall clock that the race took
    probes_run: int = 0  # now
    probes_recalled: int = 0  # from the store
    folds: int = 1  # of cross-validation: with several, every image is held out once
    class_names: tuple[str, ...] | None = None  # the model's, as given with --classes
    mean: tuple[float, ...] = ()  # of the images in [0, 1] that the model was given, by channel
    std: tuple[float, ...] = ()
    augment: Augment = "none"  # what is trained on
    device: str = "cpu"  # that probes trained on, such as cuda:0 (NVIDIA H200, bfloat16)
    rehearse: str | None = None  # the corruption that the images were given, such as fog:3
    retain: str | None = None  # the old data, as typed
    unlabelled: str | None = None  # images without labels, as typed
    unlabelled_samples: int = 0
    largest_class_share: float | None = None  # of the held-out images: what guessing gets right
    crop: float = 1.0  # the images' `Framing`
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_mode: Literal["center", "squash", "border"] = "center"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    orientation: Literal["exif", "stored"] = "exif"
    labels: str | None = None  # the table of classes, or the level of the class folders, as typed
    groups: str | None = None  # a table or a pattern of names: what belongs together, as typed
    unreadable_samples: int = 0  # images that can't be read and were left out
    findings: tuple[Finding, ...] = ()
    data_classes: tuple[str, ...] = ()  # the data's own, in its order; label numbers where it has no names

    def guess(self, metric: str) -> float | None:
        """What guessing gets right: the largest class, or where classes count alike one of them."""
        return self.largest_class_share if metric == "accuracy" else 1 / self.classes

    @property
    def error(self) -> Finding | None:
        """What is so wrong that every accuracy means something else, if that was found."""
        return next((finding for finding in self.findings if finding.weight == "error"), None)


@dataclass(frozen=True, slots=True)
class LookedOver:
    """What a source of images holds."""

    source: str
    counts: Mapping[str, int]  # images by class, training and held-out ones together
    train: int  # of at most as many as are trained on
    held_out: int
    is_split_drawn: bool  # the data came without a split of its own
    notes: tuple[str, ...]  # how it was understood
    findings: tuple[Finding, ...]  # the weightiest first


# What to do: use the recommended candidate, leave the model as it is, or nothing can be recommended.
Outcome = Literal["", "use", "leave", "none"]  # empty: nothing was asked


@dataclass(frozen=True, slots=True, repr=False)
class Recommendation:
    """The answer, the alternatives, and how each figure was obtained."""

    model: ModelSummary
    budget: Budget
    batch_size: int
    input_size: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]
    data: DataSummary | None = None
    runtime: Runtime | None = None  # None: not measured
    target: Target | None = None
    recommended: str | None = None  # a candidate's id
    outcome: Outcome = ""
    answer: str = ""  # one sentence
    front: tuple[str, ...] = ()  # ids no other candidate beats in accuracy, memory and FLOPs at once
    relaxations: tuple[Relaxation, ...] = ()
    not_applicable: Mapping[str, str] = field(default_factory=dict)  # method -> why
    warnings: tuple[str, ...] = ()  # the weightiest first
    assumed: tuple[str, ...] = ()  # what was taken for granted, because nothing said so
    methods: Mapping[str, MethodCard] = field(default_factory=dict)  # the candidates', by name
    provenance: Mapping[str, Any] = field(default_factory=dict)  # versions, seed, command, machine

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recommendation:
        """The answer in a file that `--json` or `write_json` wrote. Raises InputError."""
        # The one import that points upward: who looks for the way back from a file looks here.
        from advisor.report.formats import read_json

        return read_json(path)

    def __repr__(self) -> str:
        found = self.recommended or self.outcome or "no choice"
        return f"<Recommendation for {self.model.name}: {found}, of {len(self.evaluations)} candidates>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, and the choice among the candidates of the front."""
        shown = [each for each in self.evaluations if each.candidate.id in {self.recommended, *self.front}]
        shown.sort(key=lambda each: (each.candidate.id != self.recommended, each.cost.peak_memory_bytes))
        columns = ("candidate", self.budget.metric_kind, "memory", "FLOPs", "to ship")
        head = "".join(f"<th>{name}</th>" for name in columns)
        rows = "".join(_html_row(each, each.candidate.id == self.recommended) for each in shown)
        told = "".join(f"<li>{escape(text)}</li>" for text in self.warnings)
        return (
            f"<div><p><b>{escape(self.answer or repr(self))}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><ul>{told}</ul></div>"
        )

    @property
    def full(self) -> Evaluation | None:
        """Full fine-tuning with the fewest levers, which others' costs are held against."""
        every = [each for each in self.evaluations if each.candidate.method == BASELINE]
        return min(every, key=lambda each: len(each.candidate.levers.described()), default=None)

    def evaluation(self, name: str) -> Evaluation:
        """The evaluation of the candidate with this id, or this short name. Raises KeyError."""
        for evaluation in self.evaluations:
            if evaluation.candidate.id == name:
                return evaluation
        named = [evaluation for evaluation in self.evaluations if evaluation.candidate.short == name]
        if len(named) != 1:
            raise KeyError(name)
        return named[0]


@dataclass(frozen=True, slots=True)
class Compared:
    """One of several answers that stand side by side: of a network on a board."""

    name: str  # the network's, or the answer's file
    board: str  # the target's name; empty: this machine
    recommendation: Recommendation | None  # None: there is no answer
    trouble: str = ""  # why there is none
    solved: Accuracy | None = None  # of a head in closed form alone, which told whether it was worth a race
    is_best: bool = False  # of those on its board


def _html_row(item: Evaluation, is_chosen: bool) -> str:
    cells = (
        item.candidate.short,
        f"{100 * item.accuracy.mean:.1f} %" if item.accuracy else "-",
        format_bytes(item.cost.peak_memory_bytes),
        format_flops(item.cost.flops.total),
        format_bytes(item.cost.delta_bytes),
    )
    tag = "th" if is_chosen else "td"
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
