"""FLOPs of one operator, from its arguments' shapes. 1 multiply-add = 2 FLOPs.

Convolutions and matrix products are exact: every multiply-add of the definition, taps that fall on
padding included, accumulators starting at the bias. A convolution's weight gradient costs what its
forward pass costs, and so does its input gradient, whatever the groups:
`torch.utils.flop_counter` counts a grouped weight gradient `groups` times too much.
The tests enumerate the multiply-adds of small shapes.

Everything else that computes has a stated convention: 1 FLOP for each element of an elementwise
operator's result, 1 for each element that a reduction reads, and the few rules below. Moving data
costs none. An operator without a rule is reported, never silently zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

Shape = Sequence[int]
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class OperatorFlops:
    """FLOPs of one call. Forward operators fill `result`; backward ones also know which part is which."""

    result: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0


NONE = OperatorFlops()


def convolution_flops(x: Shape, weight: Shape, y: Shape, *, transposed: bool) -> int:
    """Forward pass, and each of the two gradients, of x (N, C_in, ...) -> y (N, C_out, ...).

    Each output element of a convolution takes C_in/groups * k^2 multiply-adds (the weight is
    (C_out, C_in/groups, k, k)); each input element of a transposed one gives C_out/groups * k^2
    (the weight is (C_in, C_out/groups, k, k)).
    """
    return 2 * prod(x if transposed else y) * prod(weight[1:])


def matmul_flops(a: Shape, b: Shape) -> int:
    """(..., m, k) @ (..., k, n): 2 m k n for each of the leading elements of a."""
    return 2 * prod(a) * b[-1]


def operator_flops(
    operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> OperatorFlops | None:
    """FLOPs of one call of an ATen operator; None where there is no rule."""
    rule = _RULES.get(operator.overloadpacket)
    if rule is not None:
        flops = rule(args, kwargs, result)
        return flops if isinstance(flops, OperatorFlops) else OperatorFlops(flops)
    if operator.namespace == "profiler" or operator.is_view or operator.overloadpacket in _FREE:
        return NONE
    if torch.Tag.pointwise in operator.tags or operator.overloadpacket in _ELEMENTWISE:
        return OperatorFlops(_elements(result))
    if torch.Tag.reduction in operator.tags or operator.overloadpacket in _REDUCTIONS:
        return OperatorFlops(_elements(args[0]))
    return None


def _convolution(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    return convolution_flops(x.shape, weight.shape, result.shape, transposed=transposed)


def _convolution_backward(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> OperatorFlops:
    y_gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    each = convolution_flops(x.shape, weight.shape, y_gradient.shape, transposed=transposed)
    # The bias gradient sums the output's gradient: one addition for each element.
    bias = y_gradient.numel() * wanted[2]
    return OperatorFlops(0, each * wanted[0], each * wanted[1] + bias)


def _matmul(position: int) -> Callable[[Sequence[Any], Mapping[str, Any], Any], int]:
    def rule(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
        return matmul_flops(args[position].shape, args[position + 1].shape)

    return rule


def _attention(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    query, key, value = args[0], args[1], args[2]
    scores = prod(query.shape[:-1]) * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1]) + 5 * scores  # 5: scale and softmax


def _attention_backward(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> OperatorFlops:
    query, key, value = args[1], args[2], args[3]
    scores = prod(query.shape[:-1]) * key.shape[-2]
    # Scores are recomputed; then the gradients of value, scores, query and key: 5 matrix products.
    products = 2 * scores * (3 * query.shape[-1] + 2 * value.shape[-1])
    return OperatorFlops(0, products + 8 * scores, 0)


def _fused_attention_layer(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    # Inference's fused multi-head self-attention: (batch, length, width), `heads` of width / heads each.
    batch, length, width = args[0].shape
    heads = args[4]
    projections = 2 * batch * length * 4 * width**2
    return projections + 2 * batch * length**2 * 2 * width + 5 * batch * heads * length**2


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    # Train: mean (1), variance (3), x * a + b (2) an element; eval: x * a + b.
    training = next((argument for argument in args[3:6] if isinstance(argument, bool)), False)
    return args[0].numel() * (6 if training else 2)


def _batch_norm_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> OperatorFlops:
    training, wanted = args[7], args[9]
    return _norm_backward(args[0].numel(), training, wanted)


def _layer_norm_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> OperatorFlops:
    return _norm_backward(args[0].numel(), True, args[-1])


def _lstm(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    # One direction of one layer, x is (steps, batch, features): four gates of x and h, each a product, a sum
    # and an activation; then c = f c + i g and h = o tanh c.
    products, states = _lstm_sizes(args[0].shape, args[10])
    return products + 13 * states


def _lstm_backward(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> OperatorFlops:
    # Each product's two gradients; the activations' and those of c and h; the biases' are sums over gates.
    products, states = _lstm_sizes(args[0].shape, args[15])
    return OperatorFlops(0, products + 22 * states, products + 4 * states)


def _lstm_sizes(x: Shape, hidden: int) -> tuple[int, int]:
    *places, features = x
    states = prod(places) * hidden
    return 2 * 4 * states * (features + hidden), states


def _norm_backward(elements: int, training: bool, wanted: Sequence[bool]) -> OperatorFlops:
    # The sums of dy and dy * x_hat (4 an element) are the affine gradients, and enter dx in train mode;
    # dx = a dy + b x + c then takes 4, dx = a dy in eval mode 1.
    affine = bool(wanted[1] or wanted[2])
    sums = 4 * elements if affine or training else 0
    dx = (4 if training else 1) * elements * bool(wanted[0])
    return OperatorFlops(0, dx + (0 if affine else sums), sums if affine else 0)


def _times(factor: int, position: int = 0) -> Callable[[Sequence[Any], Mapping[str, Any], Any], int]:
    def rule(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
        return factor * args[position].numel()

    return rule


def _sum(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    # x + alpha * y is a multiply-add.
    return _elements(result) * (1 if kwargs.get("alpha", 1) == 1 else 2)


def _pooling(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    return _elements(result if isinstance(result, torch.Tensor) else result[0]) * prod(args[1])


def _svd(args: Sequence[Any], _: Mapping[str, Any], result: Any) -> int:
    # Thin SVD, m >= n: 14 m n^2 + 8 n^3 (Golub & Van Loan, Matrix Computations, 4th ed., fig. 8.6.1).
    *batch, rows, columns = args[0].shape
    long, short = max(rows, columns), min(rows, columns)
    return prod(batch) * (14 * long * short**2 + 8 * short**3)


def _elements(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(_elements(item) for item in value) if isinstance(value, tuple | list) else 0


def _packets(*names: str) -> list[Any]:
    # Not every supported torch release has every operator.
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


def _eigenvectors(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    # The symmetric QR algorithm with eigenvectors: 9 n^3 (Golub and Van Loan, Matrix Computations, 8.3).
    return 9 * args[0].shape[-1] ** 3


_RULES: dict[Any, Callable[[Sequence[Any], Mapping[str, Any], Any], int | OperatorFlops]] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.mm: _matmul(0),
    aten.bmm: _matmul(0),
    aten.mv: lambda args, *_: 2 * args[0].numel(),
    aten.dot: lambda args, *_: 2 * args[0].numel(),
    aten.addmm: _matmul(1),
    aten.addmm_: _matmul(1),
    aten.addr: lambda args, *_: 2 * args[0].numel(),
    aten.baddbmm: _matmul(1),
    aten.addmv: lambda args, *_: 2 * args[1].numel(),
    aten.native_batch_norm_backward: _batch_norm_backward,
    aten.native_layer_norm: _times(6),
    aten.native_group_norm: _times(6),
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten.native_group_norm_backward: _layer_norm_backward,
    aten._native_multi_head_attention: _fused_attention_layer,
    aten._linalg_eigh: _eigenvectors,
    aten._softmax: _times(5),
    aten._safe_softmax: _times(5),
    aten._log_softmax: _times(5),
    aten._softmax_backward_data: _times(4),
    aten._log_softmax_backward_data: _times(4),
    aten.nll_loss_forward: lambda args, *_: args[0].shape[0],
    aten.nll_loss_backward: lambda args, *_: args[2].shape[0],
    aten.native_dropout: _times(2),
    aten.native_dropout_backward: _times(2),
    aten.max_pool2d_with_indices: _pooling,
    aten.max_pool2d_with_indices_backward: _times(1),
    aten.avg_pool2d: _pooling,
    aten.avg_pool2d_backward: lambda args, *_: args[0].numel() * prod(args[2]),
    aten._adaptive_avg_pool2d: _times(1),
    aten._adaptive_avg_pool2d_backward: _times(1, 1),
    aten.adaptive_max_pool2d: _times(1),
    aten.adaptive_max_pool2d_backward: _times(1),
    aten.reflection_pad2d_backward: _times(1),
    aten.replication_pad2d_backward: _times(1),
    # A multiply-add for each of the 2, 4 or 8 neighbours.
    aten.upsample_linear1d: lambda _args, _kwargs, result: 4 * result.numel(),
    aten.upsample_bilinear2d: lambda _args, _kwargs, result: 8 * result.numel(),
    aten.upsample_trilinear3d: lambda _args, _kwargs, result: 16 * result.numel(),
    aten.upsample_linear1d_backward: _times(4),
    aten.upsample_bilinear2d_backward: _times(8),
    aten.upsample_trilinear3d_backward: _times(16),
    aten.linalg_vector_norm: _times(2),
    aten._linalg_svd: _svd,
    aten.var_mean: _times(4),
    aten.index_put: lambda args, *_: args[2].numel(),
    aten.index_put_: lambda args, *_: args[2].numel(),
    aten.index_add: lambda args, *_: args[3].numel(),
}
_RULES |= dict.fromkeys(
    _packets("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    _batch_norm,
)
_RULES |= dict.fromkeys(
    _packets("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
    _attention,
)
_RULES |= dict.fromkeys(_packets("_scaled_dot_product_flash_attention_for_cpu_backward"), _attention_backward)
_RULES |= dict.fromkeys(_packets("add", "add_", "sub", "sub_"), _sum)
_RULES |= dict.fromkeys(_packets("mkldnn_rnn_layer"), _lstm)
_RULES |= dict.fromkeys(_packets("mkldnn_rnn_layer_backward"), _lstm_backward)
_RULES |= dict.fromkeys(  # fused: two products and a sum, or a difference, a product and a sum
    _packets("addcmul", "addcmul_", "addcdiv", "addcdiv_", "lerp", "lerp_"), _times(3)
)
# Elementwise operators that torch does not tag as such: in-place activations, and their gradients.
_ACTIVATIONS = (
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "elu",
    "leaky_relu",
    "silu",
    "mish",
    "celu",
    "selu",
)
_ELEMENTWISE = set(
    _packets(
        *(f"{name}_" for name in _ACTIVATIONS),
        *(f"{name}_backward" for name in _ACTIVATIONS),
        *("gelu_backward", "threshold_backward", "softplus_backward", "log_sigmoid_backward"),
        *("masked_fill", "masked_fill_"),
    )
)
_REDUCTIONS = set(_packets("sum", "mean", "amax", "amin", "max", "argmax", "norm", "prod", "var", "cumsum"))
_FREE = set(
    _packets(
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "new_zeros"),
        *("zeros", "zeros_like", "ones", "ones_like", "new_ones", "full", "full_like", "new_full"),
        *(
            "fill",
            "fill_",
            "zero_",
            "scalar_tensor",
            "arange",
            "lift_fresh",
            "resize_",
            "set_",
            "as_strided_",
        ),
        *(
            "clone",
            "copy",
            "copy_",
            "_to_copy",
            "contiguous",
            "detach",
            "detach_",
            "_local_scalar_dense",
        ),
        *(
            "cat",
            "stack",
            "index",
            "index_copy",
            "index_select",
            "gather",
            "embedding",
            "roll",
            "flip",
            "constant_pad_nd",
        ),
        *(
            "reflection_pad2d",
            "replication_pad2d",
            "_unsafe_view",
            "_reshape_alias",
            "_unsafe_index",
        ),
        *("unsafe_split", "unsafe_split_with_sizes", "transpose_", "t_", "squeeze_", "unsqueeze_", "view_"),
        *("scatter", "scatter_", "im2col", "linspace", "eye", "tril", "triu"),
        *(
            "slice_backward",
            "select_backward",
            "bernoulli",
            "bernoulli_",
            "rand_like",
            "randn",
            "rand",
        ),
        *(
            "randperm",
            "uniform_",
            "normal_",
            "channel_shuffle",
            "native_channel_shuffle",
            "pixel_shuffle",
        ),
        *(
            "pixel_unshuffle",
            "split_with_sizes_copy",
            "upsample_nearest2d",
            "repeat",
            "_pad_circular",
        ),
    )
)
