"""Networks out of torch.export programs: they compute the same, and nothing but operators is called."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
import torchvision
from torch import nn

from advisor.costs.simulate import simulate
from advisor.errors import ModelError
from advisor.models import formats, load_model, take_census
from advisor.models.program import _operator
from advisor.records import Candidate


class Own(nn.Module):
    """Of no known library: convolutions of several kinds, a constant, sizes that are computed, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding="valid", bias=False)
        self.norm = nn.BatchNorm2d(8, momentum=0.2)
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body = nn.ModuleDict({"deep": depthwise, "mix": nn.Conv2d(8, 6, 1)})
        self.group = nn.GroupNorm(2, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.group(self.body["mix"](torch.nn.functional.relu6(self.body["deep"](x))))
        x = x.flatten(2).transpose(1, 2) * torch.tensor(0.5)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.drop(x.mean(1)))


def exported(path, model, side=16, batch=2, is_of_any_batch=True):
    shapes = ({0: torch.export.Dim("batch")},) if is_of_any_batch else None
    images = torch.randn(batch, 3, side, side)
    torch.export.save(torch.export.export(model.eval(), (images,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture
def own(tmp_path):
    torch.manual_seed(0)
    model = Own()
    return model, exported(tmp_path / "own.pt2", model)


def test_an_own_network_computes_the_same_and_has_its_layers_again(own):
    model, path = own
    loaded = load_model(str(path))
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), model(x))
    assert loaded.input_size == (3, 16, 16)
    assert "the file's own steps are run" in loaded.assumed[0]
    census = take_census(loaded.module, loaded.input_size)
    assert (census.classes, census.head) == (4, "head")
    assert {layer.name for layer in census.layers} >= {
        "stem",
        "body.deep",
        "body.mix",
        "norm",
        "group",
        "head",
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)


def test_it_trains_as_the_network_would(own):
    model, path = own
    module = load_model(str(path)).module.train()
    x = torch.randn(8, 3, 16, 16)
    assert not torch.equal(module(x), module(x))  # dropout
    for _ in range(2):
        model.train()(x)
    torch.testing.assert_close(module.norm.running_mean, model.norm.running_mean)
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_program_for_one_batch_serves_others_where_it_can(tmp_path, name):
    model = torchvision.models.get_model(name, num_classes=3).eval()
    path = exported(tmp_path / "one.pt2", model, side=64, batch=1, is_of_any_batch=False)
    network = formats.read(path, trust=False).network()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(x), model(x))
    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    again = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert sorted(map(str, again)) == sorted(map(str, layers))


def test_a_program_that_mixes_a_batch_or_holds_its_size_is_refused(tmp_path):
    class Mixing(Own):
        def forward(self, x):
            return super().forward(x - x.mean())

    path = exported(tmp_path / "mixing.pt2", Mixing(), is_of_any_batch=False)
    with pytest.raises(ModelError, match=r"for batches of exactly 2; export it again with dynamic_shapes="):
        load_model(str(path))


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.relu.nonsense",
        "torch.ops.prims.add.default",
        "torch.ops.aten.__class__.mro",
        "_operator.attrgetter",
        "math.sqrt",
        "builtins.eval",
    ],
)
def test_nothing_but_operators_is_called(own, tmp_path, target):
    with pytest.raises(ModelError, match="which is not run here"):
        _operator(target)

    def change(program):
        nodes = program["graph_module"]["graph"]["nodes"]
        next(node for node in nodes if "relu" in node["target"])["target"] = target

    with pytest.raises(ModelError, match=r"which is not run here|a graph without modules"):
        load_model(str(_changed(own[1], tmp_path / "changed.pt2", change)))


def test_a_damaged_description_is_one_line(own, tmp_path):
    def without(program):
        del program["graph_module"]["graph"]["nodes"][3]

    with pytest.raises(ModelError) as error:
        load_model(str(_changed(own[1], tmp_path / "damaged.pt2", without)))
    assert "\n" not in str(error.value)


def _changed(path, to, change):
    """The file with its program's description changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            new.writestr(name, content)
    return to


@pytest.mark.parametrize("candidate", [Candidate("full"), Candidate("norm"), Candidate("head")])
def test_it_costs_what_the_network_costs(own, candidate):
    model, path = own
    costs = [
        simulate(module, take_census(module, (3, 16, 16)), candidate, 4, workspace=False)
        for module in (model, load_model(str(path)).module)
    ]
    assert costs[0].flops == costs[1].flops
    assert costs[0].trainable_parameters == costs[1].trainable_parameters
    assert costs[1].peak_memory_bytes == pytest.approx(costs[0].peak_memory_bytes, rel=0.02)
