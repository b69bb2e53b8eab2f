"""A small MobileNetV2 (arXiv 1801.04381) for 32x32 images, and its training on CIFAR-10 JPEG files.

Use with what `pretrained` wrote: `--arch measurements.cifar_mobilenet:mobilenet`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from advisor.data import Normalisation, load_data
from advisor.data.loading import LabelledImages

input_size = (3, 32, 32)
_BLOCKS = ((1, 16, 1), (4, 24, 2), (4, 24, 1), (4, 40, 2), (4, 40, 1), (4, 80, 2), (4, 80, 1))
_IMAGES, _BATCH, _RATE, _EPOCHS = 30_000, 64, 4e-3, 6  # images of all ten classes


def mobilenet(num_classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = [Conv2dNormActivation(3, 16, activation_layer=nn.ReLU6)]
    inputs = 16
    for expansion, outputs, stride in _BLOCKS:
        layers.append(InvertedResidual(inputs, outputs, stride, expansion))
        inputs = outputs
    layers.append(Conv2dNormActivation(inputs, 320, kernel_size=1, activation_layer=nn.ReLU6))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, num_classes))


def pretrained(classes: int, folder: Path, kept: Path) -> nn.Module:
    """The network trained on the first classes of `folder/train`; kept in a file, and read from there."""
    model = mobilenet(classes)
    path = kept / f"mobilenet-{classes}-classes.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    data = load_data(str(folder / "train"), input_size, max_train=_IMAGES, max_validation=1)
    wanted = data.train.labels < classes
    train = LabelledImages(data.train.images[wanted], data.train.labels[wanted])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _train(model, train, data.normalisation)
    torch.save(model.state_dict(), path)
    return model.eval()


def _train(model: nn.Module, data: LabelledImages, normalisation: Normalisation) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.01)
    steps = _EPOCHS * (len(data) // _BATCH + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    model.train()
    for _ in range(_EPOCHS):
        for indices in torch.randperm(len(data)).split(_BATCH):
            images, labels = data.batch(indices, normalisation)
            if torch.rand(()) < 0.5:
                images = images.flip(3)
            across, down = torch.randint(-3, 4, (2,)).tolist()
            loss = F.cross_entropy(model(images.roll((down, across), (2, 3))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
