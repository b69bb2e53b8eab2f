"""Convolutions by definition, one multiply-add at a time: what the closed forms are proven against.

Taps on zero padding are multiplied like any other, as the definition has them. Each function returns
its result too, so that the tests can see that what was counted is the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Case:
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    groups: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    transposed: bool = False
    bias: bool = False


def taps(case: Case, height: int, width: int):
    """Every (group, output in group, input in group, kernel tap, output pixel, padded input pixel)."""
    o, i = case.outputs // case.groups, case.inputs // case.groups
    for g, oo, ii, ky, kx in product(
        range(case.groups), range(o), range(i), range(case.kernel[0]), range(case.kernel[1])
    ):
        for y, x in product(range(height), range(width)):
            strided = (y * case.stride + ky * case.dilation, x * case.stride + kx * case.dilation)
            yield g * o + oo, g * i + ii, oo, ii, ky, kx, (y, x), strided


def forward(case: Case, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, shape: tuple[int, ...]):
    """(multiply-adds, y): accumulators start at the bias."""
    p, macs = case.padding, 0
    if case.transposed:
        # Each input pixel is added to the outputs under its kernel; padding crops the result.
        y = np.zeros((x.shape[0], case.outputs, shape[2] + 2 * p, shape[3] + 2 * p))
        for oc, ic, oo, _, ky, kx, pixel, strided in taps(case, *x.shape[2:]):
            for n in range(x.shape[0]):
                y[(n, oc, *strided)] += x[(n, ic, *pixel)] * w[ic, oo, ky, kx]
                macs += 1
        y = y[:, :, p : p + shape[2], p : p + shape[3]]
        return macs, y if b is None else y + b[None, :, None, None]
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    y = np.zeros(shape) if b is None else np.broadcast_to(b[None, :, None, None], shape).copy()
    for oc, ic, _, ii, ky, kx, pixel, strided in taps(case, *shape[2:]):
        for n in range(x.shape[0]):
            y[(n, oc, *pixel)] += padded[(n, ic, *strided)] * w[oc, ii, ky, kx]
            macs += 1
    return macs, y


def input_gradient(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray):
    """(multiply-adds, dx)."""
    p, macs = case.padding, 0
    if case.transposed:
        padded = np.pad(dy, ((0, 0), (0, 0), (p, p), (p, p)))
        dx = np.zeros_like(x)
        for oc, ic, oo, _, ky, kx, pixel, strided in taps(case, *x.shape[2:]):
            for n in range(x.shape[0]):
                dx[(n, ic, *pixel)] += padded[(n, oc, *strided)] * w[ic, oo, ky, kx]
                macs += 1
        return macs, dx
    dx = np.zeros((x.shape[0], case.inputs, x.shape[2] + 2 * p, x.shape[3] + 2 * p))
    for oc, ic, _, ii, ky, kx, pixel, strided in taps(case, *dy.shape[2:]):
        for n in range(x.shape[0]):
            dx[(n, ic, *strided)] += dy[(n, oc, *pixel)] * w[oc, ii, ky, kx]
            macs += 1
    return macs, dx[:, :, p : p + x.shape[2], p : p + x.shape[3]]


def weight_gradient(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray):
    """(multiply-adds, dw)."""
    p, macs = case.padding, 0
    dw = np.zeros_like(w)
    source, target = (dy, x) if case.transposed else (x, dy)
    padded = np.pad(source, ((0, 0), (0, 0), (p, p), (p, p)))
    for oc, ic, oo, ii, ky, kx, pixel, strided in taps(case, *target.shape[2:]):
        for n in range(x.shape[0]):
            if case.transposed:
                dw[ic, oo, ky, kx] += padded[(n, oc, *strided)] * x[(n, ic, *pixel)]
            else:
                dw[oc, ii, ky, kx] += padded[(n, ic, *strided)] * dy[(n, oc, *pixel)]
            macs += 1
    return macs, dw
