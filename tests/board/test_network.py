"""A network written from its trace is the network; what can't be written is refused in a line."""

from __future__ import annotations

import ast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.board.network import built, written
from advisor.board.tensors import fill, packed, tensors_of, unpacked
from advisor.errors import ModelError
from advisor.models.layers import take_census
from tests.padding import ByLayer, BySize

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(0))


class Classifier(nn.Module):
    """Whatever makes features, and a head."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *body)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Scaled(nn.Module):
    """A parameter, a buffer that a state dict leaves out, slices, and arithmetic."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)

    def forward(self, x):
        batch, channels, height, width = x.shape
        y = x.reshape(batch, channels, height * width).view(batch, channels, height, width)
        return torch.cat([y[:, :4] * self.scale[:4], (x - self.shift)[:, 4:, :, :]], dim=1) / 2


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return found.transpose(1, 2).reshape(x.shape)


class Drops(nn.Module):
    """Random numbers while it is trained, and another way while it is not."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)


class Twice(nn.Module):
    """A module in two places."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(8, 8, 1)
        self.other = self.one

    def forward(self, x):
        return self.other(F.silu(self.one(x)))


@pytest.mark.parametrize(
    "body",
    [
        [nn.BatchNorm2d(8, momentum=0.2), nn.ReLU6(inplace=True), nn.Dropout(0.3)],
        [ByLayer(8, 8, 3, stride=2, around=(0, 1, 0, 1)), BySize(8, 8, 3, stride=2), nn.GELU()],
        [Scaled(), nn.GroupNorm(2, 8), nn.MaxPool2d(2, ceil_mode=True)],
        [Attends(), nn.Hardswish()],
        [Drops(0.5), Drops(0.5), Drops(0.25)],
        [Twice(), nn.Upsample(scale_factor=2.0)],
        [
            nn.ConvTranspose2d(8, 8, 3, stride=2, output_padding=1),
            nn.PReLU(8),
            nn.AdaptiveAvgPool2d((2, None)),
        ],
    ],
    ids=lambda body: type(body[0]).__name__,
)
def test_it_computes_and_learns_the_same(body):
    model = Classifier(*body).train()
    text = written(model, IMAGES)
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {alias.name for node in imported for alias in node.names}
    assert names <= {"annotations", "operator", "torch", "torch.nn.functional", "nn"}
    again = built(text)
    fill(again, tensors_of(model).items())
    gradients = []
    for network in (model, again.train()):
        torch.manual_seed(7)
        F.cross_entropy(network(IMAGES), torch.tensor([1, 3])).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert model.training
    one, other = (take_census(network.eval(), (3, 16, 16)) for network in (model, again))
    assert [(layer.name, layer.layer_type, layer.followed_by) for layer in one.layers] == [
        (layer.name, layer.layer_type, layer.followed_by) for layer in other.layers
    ]
    assert one.blocks == other.blocks


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.tensor = torch.ones(1)

    def forward(self, x):
        return x * self.tensor


class Remembers(nn.Module):
    """Answers otherwise each time."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def tied():
    one, other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    other.weight = one.weight
    return nn.Sequential(one, other)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (Decides, r"body\.1 \(Decides\): torch\.fx can't trace it: .*control flow"),
        (Keeps, r"body\.1 \(Keeps\): it holds a tensor that is neither parameter nor buffer"),
        (Remembers, "answers otherwise in evaluation"),
        (tied, r"body\.1\.1 \(Conv2d\): it shares weight with body\.1\.0\.weight"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "it computes its weight"),
    ],
)
def test_what_it_cannot_write_is_one_line(part, why):
    with pytest.raises(ModelError, match=why) as found:
        written(Classifier(part()), IMAGES)
    assert str(found.value).startswith("Classifier can't be exported: ")
    assert "\n" not in str(found.value)


def test_tensors_are_packed_as_safetensors_has_them(tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {
        "a.weight": torch.randn(3, 4).t(),
        "b": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "half": torch.randn(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
    }
    (tmp_path / "ours").write_bytes(b"".join(packed(tensors, {"format": "pt"})))
    # One at a time: a board has no room for a second copy of all.
    sizes = [len(part) for part in packed(tensors, {"format": "pt"})]
    assert sizes[1:] == [tensors[name].nbytes for name in sorted(tensors)]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    ours, theirs = dict(unpacked(tmp_path / "ours")), dict(unpacked(tmp_path / "theirs"))
    for found in (load_file(tmp_path / "ours"), ours, theirs):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert all(found[name].dtype is tensor.dtype for name, tensor in tensors.items())
