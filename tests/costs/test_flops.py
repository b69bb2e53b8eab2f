"""FLOP counts against the multiply-adds themselves, one by one, on small shapes."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from advisor.costs.flops import convolution_flops, matmul_flops, operator_flops
from advisor.costs.recorder import Recorder
from advisor.models.layers import layer_type
from advisor.parts.attachment import train_only
from advisor.records import Census, Layer
from tests.costs import brute_force

Case = brute_force.Case

CASES = [
    Case(3, 4, (3, 3)),
    Case(3, 4, (3, 3), padding=1, bias=True),
    Case(4, 6, (1, 1)),
    Case(4, 6, (1, 1), stride=2, bias=True),
    Case(4, 6, (3, 3), groups=2, padding=1),
    Case(4, 4, (3, 3), groups=4, padding=1),
    Case(4, 8, (3, 3), groups=4, stride=2, padding=1, bias=True),
    Case(2, 2, (3, 3), dilation=2, padding=2),
    Case(2, 4, (1, 3), stride=2),
    Case(4, 6, (3, 3), groups=2, transposed=True),
    Case(3, 2, (3, 3), stride=2, padding=1, transposed=True, bias=True),
    Case(4, 4, (2, 2), groups=4, stride=2, transposed=True),
    Case(2, 2, (3, 3), dilation=2, padding=1, transposed=True),
]


def build(case: Case) -> nn.Module:
    kind = nn.ConvTranspose2d if case.transposed else nn.Conv2d
    return kind(
        case.inputs,
        case.outputs,
        case.kernel,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
        bias=case.bias,
        dtype=torch.float64,
    )


def record(layer: nn.Module, x: torch.Tensor):
    """FLOPs by phase of forward and backward through one layer, its input's gradient included."""
    kind = layer_type(layer)
    model = nn.Sequential(layer)
    census = Census((Layer("0", kind, "", 0, 1),), None, None, (), 0)
    recorder = Recorder(model, census.types())
    trainable = train_only(model, model.parameters(), "updated", {})
    for parameter in trainable.parameters.values():
        recorder._weights.add(recorder._follow(parameter, kind))
    handles = list(recorder._layer_hooks())
    with recorder:
        y = model(x)
        y.backward(torch.ones_like(y))
    for handle in handles:
        handle.remove()
    return recorder._recording({}).flops[kind]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_matches_its_enumerated_multiply_adds(case):
    torch.manual_seed(0)
    layer = build(case)
    x = torch.randn(2, case.inputs, 5, 6, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    numpy = [t.detach().numpy() for t in (x, layer.weight, dy)]
    bias = layer.bias.detach().numpy() if case.bias else None

    forward, y_enumerated = brute_force.forward(case, numpy[0], numpy[1], bias, tuple(y.shape))
    inputs, dx = brute_force.input_gradient(case, *numpy)
    weights, dw = brute_force.weight_gradient(case, *numpy)
    # What was enumerated is the convolution and its gradients.
    np.testing.assert_allclose(y_enumerated, y.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(dx, x.grad.numpy(), atol=1e-10)
    np.testing.assert_allclose(dw, layer.weight.grad.numpy(), atol=1e-10)

    counted = convolution_flops(x.shape, layer.weight.shape, y.shape, transposed=case.transposed)
    assert counted == 2 * forward == 2 * inputs == 2 * weights

    flops = record(layer, x.detach().requires_grad_())
    bias_additions = y.numel() if case.bias else 0
    assert flops.forward == 2 * forward
    assert flops.input_gradient == 2 * inputs
    assert flops.weight_gradient == 2 * weights + bias_additions


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_torch_counts_a_grouped_weight_gradient_groups_times_too_much(groups):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    ours = record(layer, x)
    with FlopCounterMode(display=False) as theirs:
        y = layer(x)
        y.backward(torch.ones_like(y))
    true_each = ours.forward
    assert ours.total == 3 * true_each
    # If this fails, torch has mended its counter: say so in the README's table.
    assert theirs.get_total_flops() == (2 + groups) * true_each


def test_linear_matches_its_enumerated_multiply_adds():
    layer = nn.Linear(5, 7)
    x = torch.randn(3, 5, requires_grad=True)
    multiply_adds = sum(1 for _ in range(3) for _ in range(5) for _ in range(7))
    flops = record(layer, x)
    assert flops.forward == flops.input_gradient == 2 * multiply_adds
    assert flops.weight_gradient == 2 * multiply_adds + 3 * 7  # the bias gradient's additions
    assert matmul_flops((3, 5), (5, 7)) == 2 * multiply_adds


@given(
    batch=st.integers(1, 4),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 3]),
    size=st.integers(3, 7),
)
@settings(max_examples=25, deadline=None)
def test_counts_are_additive_over_the_batch(batch, groups, kernel, size):
    layer = nn.Conv2d(4, 8, kernel, groups=groups, bias=False)
    one = record(layer, torch.randn(1, 4, size, size, requires_grad=True))
    many = record(layer, torch.randn(batch, 4, size, size, requires_grad=True))
    assert many.total == batch * one.total
    assert many.forward == many.input_gradient == many.weight_gradient


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_layer_costs_as_much_for_each_element(training):
    layer = nn.BatchNorm2d(4).train(training)
    small, large = (record(layer, torch.randn(2, 4, side, side, requires_grad=True)) for side in (6, 12))
    assert large.forward == pytest.approx(4 * small.forward, rel=0.01)
    assert small.forward > 0


def test_an_operator_without_a_rule_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.mT).real.sum(-1)

    model = Odd()
    recorder = Recorder(model, {})
    recording = recorder.record_forward(torch.eye(3)[None])
    assert any("linalg_eig" in operator for operator in recording.uncounted)
    assert recording.flops["other"].forward >= 2 * prod((3, 3, 3))


class Counted(TorchDispatchMode):
    """What all operators take that are run: results, input gradients, weight gradients."""

    def __init__(self):
        super().__init__()
        self.found = [0, 0, 0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        flops = operator_flops(func, args, kwargs or {}, result)
        each = (flops.result, flops.input_gradient, flops.weight_gradient)
        self.found = [sum(pair) for pair in zip(self.found, each, strict=True)]
        return result


def attended(*, backward=False):
    query, key, value = (torch.rand(1, 2, length, 4, requires_grad=backward) for length in (3, 6, 6))
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
        y = functional.scaled_dot_product_attention(query, key, value)
    return y.backward(torch.ones_like(y)) if backward else None


def self_attention():
    layer = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x = torch.rand(2, 3, 4)
    with torch.no_grad():
        layer(x, x, x, need_weights=False)


def normed(training, affine=True):
    layer = nn.BatchNorm1d(5, affine=affine).train(training)
    layer.num_batches_tracked = None  # counting batches is an operator of its own
    layer.momentum = 0.1
    x = torch.rand(4, 5, requires_grad=True)
    y = layer(x)
    y.backward(torch.ones_like(y))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # Of 12 elements: the largest, the difference, exp, the sum, the quotient.
        (lambda: torch.softmax(torch.ones(3, 4), 1), 5 * 12),
        (lambda: torch.log_softmax(torch.ones(3, 4), 1), 5 * 12),
        # A sum, and one whose second term is multiplied first.
        (lambda: torch.add(torch.ones(6), torch.ones(6)), 6),
        (lambda: torch.sub(torch.ones(6), torch.ones(6), alpha=3), 12),
        (lambda: torch.addcmul(torch.ones(6), torch.ones(6), torch.ones(6)), 18),
        (lambda: torch.lerp(torch.ones(6), torch.ones(6), 0.5), 18),
        (lambda: torch.mv(torch.ones(2, 3), torch.ones(3)), 12),
        (lambda: torch.dot(torch.ones(3), torch.ones(3)), 6),
        # What a product is added to is where its sums begin.
        (lambda: torch.addmm(torch.ones(2, 4), torch.ones(2, 3), torch.ones(3, 4)), 2 * 24),
        (lambda: torch.baddbmm(torch.ones(5, 2, 4), torch.ones(5, 2, 3), torch.ones(5, 3, 4)), 2 * 120),
        (lambda: torch.addmv(torch.ones(2), torch.ones(2, 3), torch.ones(3)), 2 * 6),
        (lambda: torch.addr(torch.ones(2, 3), torch.ones(2), torch.ones(3)), 2 * 6),
        (lambda: functional.layer_norm(torch.ones(2, 5), (5,)), 6 * 10),
        (lambda: functional.group_norm(torch.ones(2, 4, 3), 2), 6 * 24),
        (lambda: torch.var_mean(torch.ones(2, 5)), 4 * 10),
        (lambda: torch.linalg.vector_norm(torch.ones(2, 5)), 2 * 10),
        # Windows of 2 x 2: four results. All of an image's 16 elements are read for one mean.
        (lambda: functional.max_pool2d(torch.ones(1, 1, 4, 4), 2), 4 * 4),
        (lambda: functional.avg_pool2d(torch.ones(1, 1, 4, 4), 2), 4 * 4),
        (lambda: functional.adaptive_avg_pool2d(torch.ones(1, 2, 4, 4), 2), 2 * 16),
        # Of so many neighbours each: a multiply-add.
        (lambda: functional.interpolate(torch.ones(1, 1, 4), 8, mode="linear"), 2 * 2 * 8),
        (lambda: functional.interpolate(torch.ones(1, 1, 4, 4), 8, mode="bilinear"), 2 * 4 * 64),
        (lambda: functional.interpolate(torch.ones(1, 1, 2, 2, 2), 4, mode="trilinear"), 2 * 8 * 64),
        (lambda: functional.nll_loss(torch.ones(7, 2), torch.zeros(7, dtype=torch.int64)), 7),
        # 14 m n^2 + 8 n^3 of 6 x 4, whichever way round; 9 n^3.
        (lambda: torch.linalg.svd(torch.rand(6, 4), full_matrices=False), 14 * 6 * 16 + 8 * 64),
        (lambda: torch.linalg.svd(torch.rand(3, 4, 6), full_matrices=False), 3 * (14 * 6 * 16 + 8 * 64)),
        (lambda: torch.linalg.eigh(torch.eye(3)), 9 * 27),
        # Two heads of three queries and six keys and values, each of four: products with both, and softmax.
        (attended, 2 * (36 * 4 + 36 * 4) + 5 * 36),
        # Two images of three tokens, four wide: four projections, then the same in two heads of two.
        (self_attention, 2 * (6 * 4 * 16) + 2 * 2 * (2 * 2 * 9 * 2) + 5 * (2 * 2 * 9)),
    ],
)
def test_an_operator_takes_what_is_said_of_it(run, expected):
    with Counted() as counted:
        run()
    assert counted.found == [expected, 0, 0]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # Mean (1), variance (3), x * a + b (2); then the sums of both gradients (4), and the input's.
        (lambda: normed(True), [6 * 20, 4 * 20, 4 * 20]),
        (lambda: normed(False), [2 * 20, 20, 4 * 20]),
        # The sums enter the input's gradient in training alone.
        (lambda: normed(True, affine=False), [6 * 20, 4 * 20 + 4 * 20, 0]),
        (lambda: normed(False, affine=False), [2 * 20, 20, 0]),
        # As above; backward five products, and what the softmax takes.
        (lambda: attended(backward=True), [756, 2 * (3 * 36 * 4 + 2 * 36 * 4) + 8 * 36, 0]),
    ],
)
def test_gradients_take_what_is_said_of_them(run, expected):
    with Counted() as counted:
        run()
    assert counted.found == expected


def test_a_recurrent_layer_takes_its_gates_products():
    """Four steps of two sequences, 5 features to 3: 24 states, each with four gates of 5 + 3 products."""
    if not hasattr(torch.ops.aten, "mkldnn_rnn_layer") or not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no such operator here")
    layer, x = nn.LSTM(5, 3), torch.rand(4, 2, 5, requires_grad=True)
    with Counted() as counted:
        y, _ = layer(x)
    products = 2 * 4 * 24 * (5 + 3)
    assert counted.found == [products + 13 * 24, 0, 0]
    with Counted() as counted:
        y.backward(torch.ones_like(y))
    assert counted.found == [0, products + 22 * 24, products + 4 * 24]
