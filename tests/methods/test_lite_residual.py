"""TinyTL: where branches go, what their parts cost, and that the frozen rest saves next to nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from advisor.costs import Simulator
from advisor.methods import get_method
from advisor.methods.lite_residual import LiteResidual, branch_shape, halve
from advisor.models.layers import take_census
from advisor.parts.bypass import bypass_of
from advisor.parts.frugal import freeze_frugally, restore_forwards
from advisor.records import Candidate, Levers
from tests.methods.test_contract import SIZE, network
from tests.methods.test_sparse import LAYERS

LITE = {"reduction": 2}


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """What the layer keeps for its backward pass, weights and buffers apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    held: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(held.values())


def frozen(layer: nn.Module) -> nn.Module:
    """The layer in eval mode, with its bias alone trained."""
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == "bias")
    return layer.eval()


FRUGAL = {name: case for name, case in LAYERS.items() if "linear" not in name and "no plain" not in name} | {
    "batch norm": (nn.BatchNorm2d(6), (6, 9, 9)),
    "batch norm without an affine part": (nn.BatchNorm2d(6, affine=False), (6, 9, 9)),
    "batch norm of vectors": (nn.BatchNorm1d(6), (6,)),
    "relu": (nn.ReLU(), (6, 9, 9)),
    "relu6": (nn.ReLU6(), (6, 9, 9)),
    "relu6 in place": (nn.ReLU6(inplace=True), (6, 9, 9)),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), (6, 9, 9)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "shape"), FRUGAL.values(), ids=FRUGAL.keys())
def test_frugal_layers_compute_the_same_and_save_less(layer, shape):
    torch.manual_seed(0)
    layer = frozen(copy.deepcopy(layer))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    frugal = copy.deepcopy(layer)
    assert freeze_frugally(frugal)
    x = 4 * torch.randn(3, *shape)
    results = []
    for module in (layer, frugal):
        leaf = x.clone().requires_grad_()
        y = module(leaf * 1.0)
        (y * y.detach().cos()).sum().backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
        results.append((y, leaf.grad, *gradients))
    assert torch.equal(results[0][0], results[1][0])
    for expected, gradient in zip(*results, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    assert saved_bytes(layer, x * 1.0) >= x.numel() * 4  # torch's own
    if getattr(layer, "padding_mode", "") != "reflect":  # reflecting itself saves its input
        rectifier = isinstance(layer, nn.ReLU | nn.Hardtanh)
        assert saved_bytes(frugal, x * 1.0) == (x.numel() if rectifier else 0)
    restore_forwards(frugal)
    assert "forward" not in vars(frugal)


def test_a_frugal_norm_in_train_mode_is_torchs_own():
    norm = nn.BatchNorm2d(4)
    freeze_frugally(norm)
    x = torch.randn(5, 4, 3, 3)
    norm.train()(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))


def test_halving_is_average_pooling_and_saves_nothing():
    x = torch.randn(2, 3, 7, 6, requires_grad=True)
    torch.testing.assert_close(halve(x), nn.functional.avg_pool2d(x, 2))
    assert halve(torch.ones(1, 2, 1, 5)).shape == (1, 2, 1, 2)
    pool = nn.Module()
    pool.forward = halve
    assert saved_bytes(pool, x) == 0


@pytest.mark.parametrize(
    ("channels", "kernel", "reduction", "expected"),
    [
        (64, (3, 3), 2, ((3, 3), 32, 2)),
        (24, (1, 1), 4, ((3, 3), 6, 2)),  # 3 beside a 1x1
        (20, (1, 3), 4, ((1, 3), 4, 2)),  # hidden channels are a multiple of the groups
        (3, (2, 2), 2, ((3, 3), 1, 1)),
    ],
)
def test_branch_shapes(channels, kernel, reduction, expected):
    assert branch_shape(channels, kernel, reduction) == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 8, 5, dilation=2),
        nn.Conv2d(6, 8, 2, padding="same", dilation=2),
        nn.Conv2d(6, 8, (1, 3), padding=(0, 1), padding_mode="reflect"),
        nn.Conv1d(6, 8, 3),
        nn.Conv3d(6, 8, 3, padding=1),
    ],
    ids=str,
)
def test_a_branch_fits_its_layers_output(layer):
    x = torch.randn(2, 6, *[11] * len(layer.kernel_size))
    branch = LiteResidual(layer, 2)
    assert branch(x).shape == layer(x).shape
    assert not branch(x).any()


def test_branches_go_where_the_blocks_begin():
    mobilenet = torchvision.models.mobilenet_v2(weights=None)
    get_method("lite-residual").attach(mobilenet, take_census(mobilenet, (3, 64, 64)), LITE)
    with_branch = [name for name, module in mobilenet.named_modules() if bypass_of(module) is not None]
    # The stem, and the expansion of each inverted bottleneck that has one.
    assert with_branch == ["features.0.0", *(f"features.{block}.conv.0.0" for block in range(2, 18))]
    resnet = torchvision.models.resnet18(weights=None)
    get_method("lite-residual").attach(resnet, take_census(resnet, (3, 64, 64)), LITE)
    kinds = {module.kernel_size for module in resnet.modules() if bypass_of(module) is not None}
    assert kinds == {(3, 3), (7, 7)}


def test_a_branch_is_smaller_than_what_it_stands_beside():
    """3 x 3 in two groups 4 -> 2, then 2 -> 18: 72 weights, as many as 4 -> 18 has by itself."""
    for outputs, expected in ((18, []), (19, ["0"])):
        model = nn.Sequential(
            nn.Conv2d(4, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 5)
        )
        census = take_census(model, (4, 8, 8))
        assert get_method("lite-residual").suits(census, LITE) == bool(expected)
        get_method("lite-residual").attach(model, census, LITE)
        assert [name for name, module in model.named_modules() if bypass_of(module) is not None] == expected


def test_one_layer_with_room_is_enough():
    """The last convolutions of its blocks have none."""
    census = take_census(torchvision.models.mobilenet_v2(weights=None), (3, 64, 64))
    assert get_method("lite-residual").suits(census, LITE)


def test_biases_and_the_head_are_trained_too():
    model = network()
    trainable = get_method("lite-residual").attach(model, take_census(model, SIZE), LITE)
    own = {name for name in trainable.parameters if "peft" not in name}
    assert own == {name for name, _ in model.named_parameters() if name.endswith("bias")} | {"18.weight"}


def test_it_saves_a_fraction_of_what_lora_saves():
    model = torchvision.models.mobilenet_v2(weights=None)
    census = take_census(model, (3, 224, 224))
    # Tensors alone: the workspace of the first convolutions, large beside so little, varies by machine.
    simulator = Simulator(model, census, workspace=False)
    lora = simulator.cost(Candidate.of("lora", {"rank": 4}, Levers()), 8)
    lite = simulator.cost(Candidate.of("lite-residual", LITE, Levers()), 8)
    assert lite.peak_memory_bytes < lora.peak_memory_bytes / 4
    assert lite.memory.activations < lora.memory.activations / 10
    assert 1 < lite.inference_flops_ratio < 1.2
    assert lite.uncounted_operators == ()


def test_an_attached_model_can_be_copied_and_pickled():
    model = network()
    get_method("lite-residual").attach(model, take_census(model, SIZE), LITE)
    x = torch.randn(2, *SIZE)
    expected = model.eval()(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            model[0].weight.zero_()  # the copy must not compute with the original's weights
            torch.testing.assert_close(copied(x), expected)
