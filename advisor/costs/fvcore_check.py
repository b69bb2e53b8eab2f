"""fvcore's forward count, an independent check of ours."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import torch
from torch import nn

from advisor.models.blocks import evaluating


def fvcore_forward_flops(model: nn.Module, input_size: tuple[int, ...]) -> int | None:
    """fvcore's multiply-adds of one image's forward pass, doubled; None where fvcore can't trace it.

    It counts convolutions, matrix products and batch normalisation, and skips most other operators.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.disable(logging.WARNING)
        try:
            with evaluating(model):
                analysis = FlopCountAnalysis(model, torch.zeros(1, *input_size))
                analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                return 2 * int(analysis.total())
        except Exception:  # noqa: BLE001 - its tracer fails in many ways on code that torch runs
            return None
        finally:
            logging.disable(logging.NOTSET)
