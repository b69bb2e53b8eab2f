"""Weights that are kept in parts become plain ones, which compute the same."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from advisor.errors import ModelError
from advisor.models.folding import folded
from advisor.models.rebuild import rebuild


def _small():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 5)
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [parametrizations.spectral_norm, parametrizations.weight_norm, spectral_norm, weight_norm],
)
def test_norms_of_every_kind_of_layer(wrap):
    torch.manual_seed(0)
    model = _small()
    for layer in model:
        if hasattr(layer, "weight"):
            wrap(layer)
    x = torch.randn(2, 3, 8, 8)
    model(x)  # a step of the power iteration
    model.eval()
    plain = _small().eval()
    state, notes = folded(model.state_dict())
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), model(x))
    assert "is folded into plain weights" in notes[0]


@given(st.integers(0, 2), st.integers(1, 5), st.integers(1, 5))
def test_weight_norm_whatever_it_goes_by(axis, rows, columns):
    layer = nn.Conv1d(columns, rows, 2)
    with torch.no_grad():
        parametrizations.weight_norm(layer, dim=axis)
        layer.parametrizations.weight.original0.mul_(3)
        state, _ = folded(layer.state_dict())
        torch.testing.assert_close(state["weight"], layer.weight)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_what_quantisation_aware_training_fused_is_found(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its future
        from torch.ao import quantization

        build = getattr(torchvision.models.quantization, name)
        model = build(weights=None, num_classes=5, quantize=False).train()
        model.fuse_model(is_qat=True)
        model.qconfig = quantization.get_default_qat_qconfig("qnnpack")
        quantization.prepare_qat(model, inplace=True)
        model.apply(quantization.disable_fake_quant)
    x = torch.randn(2, 3, 64, 64)
    model(x)  # the norms' statistics become those of an image
    rebuilt = rebuild(model.state_dict())
    assert rebuilt.architecture.name == name
    assert "trained for quantisation" in rebuilt.assumed[0]
    with torch.no_grad():
        found, wanted = rebuilt.module.eval()(x), model.eval()(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_parametrizations_that_names_dont_tell():
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"its fc\.weight is computed from .*remove_parametrizations"):
        folded({f"fc.{name}": value for name, value in layer.state_dict().items()})


def test_damaged_ones_are_told():
    with pytest.raises(ModelError, match="spectral norm of another shape"):
        folded({"weight_orig": torch.ones(3, 3), "weight_u": torch.ones(2), "weight_v": torch.ones(3)})
    with pytest.raises(ModelError, match="weight norm of another shape"):
        folded({"weight_g": torch.ones(2, 1), "weight_v": torch.ones(3, 3)})
