"""Convolutions of classes of their own that only pad their input first, as ports of TensorFlow's do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn


class BySize(nn.Conv2d):
    """As timm's Conv2dSame: an axis of n pixels comes to ceil(n / stride)."""

    def forward(self, x):
        around = []
        for n, k, s, d in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            around += [total // 2, total - total // 2]
        x = F.pad(x, around)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByLayer(nn.Conv2d):
    """As EfficientNet-Lite's static one: a module of its own pads every image alike."""

    def __init__(self, *args, around, **options):
        super().__init__(*args, **options)
        self.stride = list(self.stride)
        self.static_padding = nn.ZeroPad2d(around) if any(around) else nn.Identity()

    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
