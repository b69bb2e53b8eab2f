"""Awkward modules, each small and with one oddity, and what is to be said of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.models import detection, segmentation
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d, SqueezeExcitation

CLASSES, SIDE = 5, 12
SIZE = (3, SIDE, SIDE)


@dataclass(frozen=True)
class Odd:
    """A module, and what is to become of it."""

    build: Callable[[], nn.Module]
    refused: str = ""  # a pattern of the one line that refuses it; else it is advised on
    head: str | None = "head"
    layers: dict[str, tuple[str, int]] = field(default_factory=dict)  # some layers' type and calls
    says: str = ""  # a pattern of what is told beside the answer
    has: tuple[str, ...] = ("full", "head", "lora")  # methods that it must have
    has_not: tuple[str, ...] = ()
    functions: bool = False  # it computes more than its layers' multiply-adds
    memory: bool = True  # whether the peak is held against the allocator's own
    close: float = 1e-5  # of outputs
    fidelity: tuple[str, ...] = ("simulated",)


ZOO: dict[str, Odd] = {}


def odd(name: str, **expected: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Put what a function or a class makes into the zoo."""

    def put(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in ZOO
        ZOO[name] = Odd(build, **expected)
        return build

    return put


class Classifier(nn.Module):
    """A body, its mean over all positions, and a head: what most of the zoo has around its oddity."""

    def __init__(self, *body: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(*(body or (conv(), nn.ReLU())))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).flatten(2).mean(2))


def conv(inputs: int = 3, outputs: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **({"padding": 1} | options))


# Shared, repeated, uncalled, lazy


@odd("weights shared by two layers", says="`a` and `b` share weights")
class SharedWeights(Classifier):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(self.body(x)).relu()).mean((2, 3)))


@odd("weights shared with the head", says="`a` and `head` share weights")
class SharedHead(Classifier):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, CLASSES, bias=False), nn.Linear(CLASSES, 8)
        self.head = nn.Linear(8, CLASSES, bias=False)
        self.head.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(self.body(x).mean((2, 3)))))


@odd("one body called twice", layers={"body.0": ("standard", 2), "head": ("linear", 1)}, says="runs twice")
class Siamese(Classifier):
    def __init__(self):
        super().__init__(conv(), nn.BatchNorm2d(8), nn.ReLU(), width=16)

    def forward(self, x):
        return self.head(torch.cat([self.body(x).mean((2, 3)), self.body(x.flip(3)).mean((2, 3))], 1))


@odd(
    "layers never called",
    layers={"never": ("standard", 0), "unread": ("norm", 0)},
    has_not=("norm", "tent"),
)
class NeverCalled(Classifier):
    def __init__(self):
        super().__init__()
        self.never, self.unread = conv(8, 8), nn.LayerNorm(8)


@odd("called in training alone", layers={"auxiliary": ("linear", 0)})
class TrainingOnly(Classifier):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


@odd(
    "lazy layers",
    head="4",
    layers={"0": ("standard", 1), "1": ("norm", 1)},
    has=("full", "norm", "recalibrate"),
)
def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)
    )


@odd("a head made in the first pass")
class MadeLater(Classifier):
    def __init__(self):
        super().__init__()
        self.head = None

    def forward(self, x):
        x = self.body(x).flatten(1)
        if self.head is None:
            self.head = nn.Linear(x.shape[1], CLASSES)
        return self.head(x)


@odd("two hundred layers", layers={"deep.199": ("linear", 1)})
class Deep(Classifier):
    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(200)))

    def forward(self, x):
        return self.head(self.deep(self.body(x).mean((2, 3))))


# Inputs and outputs


@odd("scores in a dict, as logits")
class InDict(Classifier):
    def forward(self, x):
        return {"features": x, "logits": super().forward(x)}


@odd("scores first in a tuple")
class InTuple(Classifier):
    def forward(self, x):
        return super().forward(x), x


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


@odd("scores in a dataclass")
class InDataclass(Classifier):
    def forward(self, x):
        return Output(super().forward(x))


@odd("a dict of two tasks", refused=r"not a classifier.* dict of kind, state.*a module around it")
class TwoTasks(Classifier):
    def forward(self, x):
        scores = super().forward(x)
        return {"kind": scores, "state": scores}


@odd("a dataclass without logits", refused=r"returns Scores.*a module around it")
class OtherDataclass(Classifier):
    def forward(self, x):
        return Scores(super().forward(x))


@dataclass
class Scores:
    scores: torch.Tensor


@odd(
    "two inputs", refused=r"^TwoInputs can't run .*'second'; give a module around it whose forward takes one"
)
class TwoInputs(Classifier):
    def forward(self, x, second):
        return super().forward(x + second)


@odd("an input by keyword alone", refused=r"^Keyword can't run .*; give a module around it whose forward")
class Keyword(Classifier):
    def forward(self, *, image):
        return super().forward(image)


@odd("a batch as a dict", refused=r"^TakesDict can't run .*--input-size|module around it")
class TakesDict(Classifier):
    def forward(self, batch):
        return super().forward(batch["image"])


@odd("further inputs with defaults")
class Optional(Classifier):
    def forward(self, x, scale=None, return_features=False):
        return super().forward(x)


@odd("the batch squeezed away", refused=r"^Squeezed is not a classifier.*shape \(5,\)")
class Squeezed(Classifier):
    def forward(self, x):
        return super().forward(x).squeeze()


@odd("one image at a time", refused=r"^OneImage returns shape \(1, 5\) for 2 images; mend")
class OneImage(Classifier):
    def forward(self, x):
        return self.head(self.body(x).reshape(1, 8, -1).mean(2))


@odd("a single score", head="2", has=("head", "ridge"))
def single_score() -> nn.Module:
    return nn.Sequential(conv(), nn.Flatten(), nn.Linear(8 * SIDE**2, 1))


@odd("probabilities", head="2", says="ends in a softmax")
def with_softmax() -> nn.Module:
    return nn.Sequential(conv(), nn.Flatten(), nn.Linear(8 * SIDE**2, CLASSES), nn.Softmax(1))


# Weights


@odd(
    "functional convolutions on raw parameters",
    head=None,
    has=("full",),
    has_not=("lora", "head"),
    functions=True,
)
class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = (
            nn.Parameter(torch.randn(8, 3, 3, 3)),
            nn.Parameter(torch.randn(CLASSES, 8)),
        )

    def forward(self, x):
        return F.linear(F.conv2d(x, self.kernel, padding=1).relu().mean((2, 3)), self.matrix)


@odd("functional all but the head", has=("full", "head", "ridge"), functions=True)
class FunctionalBody(Functional):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(F.conv2d(x, self.kernel, padding=1).relu().mean((2, 3)))


@odd("no layer but the head", head="1", has=("full", "head"))
def only_a_head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES))


@odd("weight norm", says="weights that body.0 and 1 more computed", layers={"body.0": ("standard", 1)})
def weight_normed() -> nn.Module:
    own = parametrizations.weight_norm
    return Classifier(own(conv()), nn.ReLU(), own(conv(8, 8)))


@odd("spectral norm", says="weights that body.0 computed")
def spectrally_normed() -> nn.Module:
    return Classifier(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(8), nn.ReLU())


@odd("orthogonal", says="weights that body.1 computed")
def orthogonal() -> nn.Module:
    return Classifier(conv(), parametrizations.orthogonal(conv(8, 8)))


@odd("older weight and spectral norm, pruned", says="weights that body.0 and 2 more computed")
def older_norms() -> nn.Module:
    pruned = prune.random_unstructured(conv(8, 8), "weight", 0.5)
    return Classifier(weight_norm(conv()), nn.ReLU(), spectral_norm(conv(8, 8)), pruned)


@odd("standardised weights", functions=True, layers={"body.0": ("standard", 1)}, has=("full", "head"))
def standardised() -> nn.Module:
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, padding=1)

    return Classifier(Standardised(3, 8, 3), nn.ReLU())


@odd("everything frozen")
def frozen() -> nn.Module:
    return Classifier(conv(), nn.BatchNorm2d(8), nn.ReLU()).requires_grad_(False)


@odd("no weights", refused="has no weights")
def without_weights() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@odd("not a number", refused=r"body.0.weight holds NaN in 1 of 216 .*earlier checkpoint")
def not_a_number() -> nn.Module:
    model = Classifier()
    model.body[0].weight.data[1, 1, 1, 1] = float("nan")
    return model


@odd("complex weights", refused="its entry filter holds complex numbers")
class ComplexWeights(Classifier):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, SIDE, SIDE // 2 + 1, dtype=torch.cfloat))

    def forward(self, x):
        return self.head(torch.fft.irfft2(torch.fft.rfft2(self.body(x)) * self.filter).mean((2, 3)))


@odd("quantised", refused="its head is quantised; give the floating-point model")
def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Classifier(), {nn.Linear}, torch.qint8)


@odd("half precision")
def half() -> nn.Module:
    return Classifier(conv(), nn.BatchNorm2d(8), nn.ReLU()).half()


@odd("bfloat16")
def bfloat16() -> nn.Module:
    return Classifier(conv(), nn.BatchNorm2d(8), nn.ReLU()).bfloat16()


@odd("casts to bfloat16 itself", refused=r"^Casts can't run .*in its body.0: .*in float32, and mend")
class Casts(Classifier):
    def forward(self, x):
        return super().forward(x.bfloat16()).float()


@odd("autocast inside", close=1e-2)
class Autocast(Classifier):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@odd("channels last")
def channels_last() -> nn.Module:
    body = (conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))
    return Classifier(*body).to(memory_format=torch.channels_last)


# Layers


@odd("in-place activations", has=("full", "lora", "norm"))
def in_place() -> nn.Module:
    act = nn.ReLU(inplace=True)
    return Classifier(conv(), act, conv(8, 8), nn.BatchNorm2d(8), act, conv(8, 8), nn.SiLU(inplace=True))


@odd("GroupNorm", layers={"body.1": ("norm", 1)}, has=("norm", "tent"), has_not=("recalibrate",))
def group_norm() -> nn.Module:
    return Classifier(conv(), nn.GroupNorm(2, 8), nn.ReLU())


@odd("LayerNorm", layers={"body.1": ("norm", 1)}, has=("norm", "tent"), has_not=("recalibrate",))
def layer_norm() -> nn.Module:
    return Classifier(conv(), nn.LayerNorm((8, SIDE, SIDE)), nn.GELU())


@odd("InstanceNorm without weights", layers={"body.1": ("norm", 1)}, has_not=("norm", "recalibrate"))
def instance_norm() -> nn.Module:
    return Classifier(conv(), nn.InstanceNorm2d(8), nn.ReLU())


@odd("InstanceNorm with statistics", has=("norm", "recalibrate"))
def tracking_instance_norm() -> nn.Module:
    return Classifier(conv(), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU())


@odd("BatchNorm with nothing of its own", has_not=("norm",), has=("full", "recalibrate"))
def bare_batch_norm() -> nn.Module:
    return Classifier(conv(), nn.BatchNorm2d(8, affine=False), nn.ReLU())


@odd("BatchNorm without statistics", has=("full", "norm"), has_not=("recalibrate",))
def batch_norm_of_the_batch() -> nn.Module:
    return Classifier(conv(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())


@odd(
    "BatchNorm of cumulative average and synchronised",
    has=("norm", "recalibrate"),
    fidelity=("simulated", "measured"),
)
def cumulative() -> nn.Module:
    body = conv(), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), conv(8, 8), nn.SyncBatchNorm(8)
    return Classifier(*body)


@odd("FrozenBatchNorm", layers={"body.1": ("norm", 1)}, has_not=("norm", "recalibrate"))
def frozen_norm() -> nn.Module:
    return Classifier(conv(), FrozenBatchNorm2d(8), nn.ReLU())


@odd("one-dimensional", layers={"deep": ("depthwise", 1), "first": ("standard", 1)}, has=("norm", "lora"))
class OneDimensional(Classifier):
    def __init__(self):
        super().__init__(nn.Identity())
        self.first, self.norm, self.deep = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, x):
        return super().forward(self.deep(self.norm(self.first(x.flatten(2))).relu()))


@odd("three-dimensional", layers={"up": ("transposed", 1), "first": ("standard", 1)}, has=("norm", "lora"))
class ThreeDimensional(Classifier):
    def __init__(self):
        super().__init__(nn.Identity())
        self.first, self.norm = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.up = nn.ConvTranspose3d(8, 8, 3, groups=2)

    def forward(self, x):
        return super().forward(self.up(self.norm(self.first(x[:, None])).relu()))


@odd("transposed", layers={"body.1": ("transposed", 1)}, has=("lora", "ssf"))
def transposed() -> nn.Module:
    return Classifier(conv(), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())


@odd("resampled", functions=True)
def resampled() -> nn.Module:
    return Classifier(conv(), nn.PixelShuffle(2), conv(2, 8), nn.Upsample(scale_factor=0.5))


@odd("deformable convolution", functions=True, memory=False)
class Deformable(Classifier):
    def __init__(self):
        super().__init__(nn.Identity())
        self.offsets, self.deformed = conv(3, 18), DeformConv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return super().forward(self.deformed(x, self.offsets(x)))


@odd("squeeze and excitation", layers={"body.1.fc1": ("pointwise", 1)})
def gated() -> nn.Module:
    return Classifier(conv(), SqueezeExcitation(8, 2), nn.ReLU())


@odd("an LSTM", layers={"reads": ("other", 1)}, functions=True, fidelity=("measured",))
class Recurrent(Classifier):
    def __init__(self):
        super().__init__()
        self.reads = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.head(self.reads(self.body(x).mean(3).transpose(1, 2))[0][:, -1])


@odd("a GRU in both directions", layers={"reads": ("other", 1)}, functions=True, fidelity=("measured",))
class BothWays(Classifier):
    def __init__(self):
        super().__init__(width=16)
        self.reads = nn.GRU(8, 8, batch_first=True, bidirectional=True, num_layers=2)

    def forward(self, x):
        return self.head(self.reads(self.body(x).mean(3).transpose(1, 2))[0][:, -1])


@odd("a recurrent cell", layers={"cell": ("other", SIDE)}, says="`cell` runs twice", functions=True)
class Cell(Classifier):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x):
        x = self.body(x).mean(3)
        state = x.new_zeros(len(x), 8)
        for place in range(SIDE):
            state = self.cell(x[:, :, place], state)
        return self.head(state)


@odd("attention", layers={"attends": ("other", 1), "norm": ("norm", 1)}, functions=True)
class Attention(Classifier):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 4, stride=4))
        self.places, self.token = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attends = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def tokens(self, x):
        x = self.body(x).flatten(2).transpose(1, 2) + self.places
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)

    def forward(self, x):
        x = self.tokens(x)
        y = self.norm(x)
        return self.head((x + self.attends(y, y, y)[0])[:, 0])


@odd("an encoder's layer", functions=True)
class Encoder(Attention):
    def __init__(self):
        super().__init__()
        self.attends = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)

    def forward(self, x):
        return self.head(self.attends(self.norm(self.tokens(x))).mean(1))


@odd("embedding", layers={"table": ("other", 1)}, has=("full", "head"))
class Embedded(Classifier):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 8)

    def forward(self, x):
        return self.head(self.table((x * 255).clamp(0, 255).long()).mean((1, 2, 3)))


@odd("a spatial transformer", functions=True)
class SpatialTransformer(Classifier):
    def __init__(self):
        super().__init__()
        self.where = nn.Linear(3 * SIDE**2, 6)

    def forward(self, x):
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return super().forward(F.grid_sample(x, grid, align_corners=False))


# What its code does


@odd("a buffer updated in forward")
class Updates(Classifier):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.head(x - self.mean)


@odd("a buffer replaced in forward")
class Replaces(Updates):
    def forward(self, x):
        x = self.body(x).mean((2, 3))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.head(x)


@odd("keeps what it made", memory=False)
def keeps() -> nn.Module:
    class Keeps(Classifier):
        def forward(self, x):
            self.made = self.body(x)
            return self.head(self.made.mean((2, 3)))

    model = Keeps()
    model(torch.randn(1, *SIZE))
    return model


@odd("compiled", layers={"body.0": ("standard", 1)})
def compiled() -> nn.Module:
    return torch.compile(Classifier(conv(), nn.BatchNorm2d(8), nn.ReLU()))


@odd("compiled in parts", layers={"body.0": ("standard", 1)})
def compiled_in_parts() -> nn.Module:
    model = Classifier(conv(), nn.BatchNorm2d(8), nn.ReLU())
    model.body = torch.compile(model.body)
    model.head.compile()
    return model


@odd("scripted", refused="is TorchScript, whose layers can't be seen")
def traced() -> nn.Module:
    return torch.jit.trace(Classifier().eval(), torch.zeros(1, *SIZE))


@odd("a part scripted", refused="its body is TorchScript")
def part_traced() -> nn.Module:
    model = Classifier()
    model.body = torch.jit.trace(model.body, torch.zeros(1, *SIZE))
    return model


@odd("a lock inside", refused=r"^Locked can't be copied \(.*lock.*\); give a file, or its state dict")
class Locked(Classifier):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@odd("hooks")
def hooked() -> nn.Module:
    model = Classifier(conv(), nn.ReLU())
    model.seen = []
    model.body[0].register_forward_hook(lambda _module, _args, output: model.seen.append(output.shape))
    return model


@odd("prints")
class Prints(Classifier):
    def forward(self, x):
        print("a line of the model's")
        return super().forward(x)


@odd("sleeps")
class Sleeps(Classifier):
    def forward(self, x):
        time.sleep(0.001)
        return super().forward(x)


@odd("raises", refused=r"^Raises can't run on one 3x12x12 image: no way; .*mend its code")
class Raises(Classifier):
    def forward(self, x):
        raise RuntimeError("no way\nout")


@odd("a part raises", refused=r"^Classifier can't run .*in its body.1: no way; ")
def part_raises() -> nn.Module:
    return Classifier(conv(), Raises())


@odd("ends the program", refused=r"^Exits can't run .*: 3; .*mend its code")
class Exits(Classifier):
    def forward(self, x):
        raise SystemExit(3)


@odd("raises in training", has=("ridge",), has_not=("full", "head", "lora"), says="not in training")
class RaisesInTraining(Classifier):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not in training")
        return super().forward(x)


@odd("random numbers")
class Noisy(Classifier):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


@odd("layers dropped at random", memory=False, layers={"more.2": ("standard", 1)})
class LayerDrop(Classifier):
    def __init__(self):
        super().__init__()
        self.more = nn.ModuleList(conv(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.body(x)
        for layer in self.more:
            if not self.training or torch.rand(()) < 0.5:
                x = x + layer(x)
        return self.head(x.mean((2, 3)))


@odd("branches on values", fidelity=("measured",))
class Branches(Classifier):
    def forward(self, x):
        return super().forward(2 * x if x.sum() > 0 else x)


@odd("experts", layers={"experts.0": ("linear", 1)}, fidelity=("measured",))
class Experts(Classifier):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        nn.init.constant_(self.gate.bias, 0)
        self.gate.bias.data[0] = 9

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        chosen, result = self.gate(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                result[mine] = expert(x[mine])
        return self.head(result)


@odd("goes through numpy", memory=False, fidelity=("measured",))
class Numpy(Classifier):
    def forward(self, x):
        return super().forward(torch.from_numpy(2 * x.detach().numpy()))


@odd("no gradient through the body", has=("full", "head", "ridge"))
class NoGradient(Classifier):
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return self.head(x.mean((2, 3)))


@odd("detached scores", says="no gradient flows", has=("ridge",), has_not=("full", "head"))
class Detached(Classifier):
    def forward(self, x):
        return super().forward(x).detach()


@odd("inference mode", refused=r"^Inference can't run .*it can't be trained as it is: .*mend its code")
class Inference(Classifier):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


@odd("checkpointed by itself", memory=False)
class Checkpointed(Classifier):
    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False).mean((2, 3)))


@odd("a gradient of its own")
class Binary(Classifier):
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sign()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def forward(self, x):
        return self.head(self.Sign.apply(self.body(x)).mean((2, 3)))


# Other networks


@odd("detection", refused=r"not a classifier.*a module around it")
def ssd() -> nn.Module:
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


@odd("segmentation", refused=r"not a classifier.*OrderedDict of out.*a module around it")
def lraspp() -> nn.Module:
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


@odd("scores of every pixel", refused=r"^Pixels is not a classifier.*shape \(1, 5, 12, 12\)")
class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.all = conv(3, CLASSES)

    def forward(self, x):
        return self.all(x)
