"""Attention on meta tensors, as the CPU runs it: which kernel it is depends on the device.

For the CPU torch mostly takes one fused kernel; for meta tensors it takes attention apart, which holds
several times the memory. So the CPU is asked about tensors of the same shapes, and its kernel is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

_torch_attends, _torch_runs_layer = F.scaled_dot_product_attention, F.multi_head_attention_forward
_taken_apart = ContextVar("_taken_apart", default=False)  # now, as it would be on the CPU


class DeviceNeededError(Exception):
    """What an operator does here depends on the device, so meta tensors can't stand for the CPU's."""


@contextmanager
def cpu_attention() -> Iterator[None]:
    """Within it, attention on meta tensors runs as it would on the CPU.

    Who looks torch's functions up by their names finds those below: a mode would see all functions there
    are, which takes a quarter of the time of a simulation. Of other tensors, torch's own do the work.

    Raises, where attention is called:
        DeviceNeededError: on the CPU more than the kernel is another.
    """
    F.scaled_dot_product_attention, F.multi_head_attention_forward = _attend, _run_layer
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.multi_head_attention_forward = _torch_attends, _torch_runs_layer


def check_attention(operator: torch._ops.OpOverload) -> None:
    """Attention that was called by another name is taken apart because these are meta tensors.

    Raises:
        DeviceNeededError: it is a part of such attention.
    """
    if operator.overloadpacket is torch.ops.aten._safe_softmax and not _taken_apart.get():
        raise DeviceNeededError("scaled_dot_product_attention is one fused kernel on the CPU")


def _run_layer(*args: Any, **kwargs: Any) -> Any:
    asked = inspect.signature(_torch_runs_layer).bind(*args, **kwargs)
    asked.apply_defaults()
    if asked.arguments["query"].is_meta and not asked.arguments["training"]:
        raise DeviceNeededError("a layer of attention may be one fused kernel on the CPU")
    return _torch_runs_layer(*args, **kwargs)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    tensors = [each for each in (query, key, value, attn_mask) if each is not None]
    how: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if not all(tensor.is_meta for tensor in tensors):
        return _torch_attends(query, key, value, attn_mask, dropout_p, is_causal, **how)
    if enable_gqa or (attn_mask is not None and attn_mask.dtype is torch.bool):
        raise DeviceNeededError("on the CPU, attention makes its arguments fit the kernel first")
    with torch._C._DisableTorchDispatch():  # recorded is what runs, not the question
        mask = None if attn_mask is None else _on_cpu(attn_mask)
        asked = _on_cpu(query), _on_cpu(key), _on_cpu(value), mask
        choice = torch._fused_sdp_choice(*asked, dropout_p, is_causal, **how)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    before = _taken_apart.set(True)
    try:
        return _torch_attends(query, key, value, attn_mask, dropout_p, is_causal, **how)
    finally:
        _taken_apart.reset(before)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """One of the same shape, of memory that is never written to."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return made.requires_grad_(tensor.requires_grad)
