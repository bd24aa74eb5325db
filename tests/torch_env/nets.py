"""DenseNet and EfficientNet-Lite0 of plain torch layers, with the names that published weights have.

This folder lives in an environment of its own, with torch and without this package. The networks follow their papers
(arXiv 1608.06993; tensorflow/tpu, efficientnet/lite); parameter names are those of torchvision and of
efficientnet_lite_pytorch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everyone calls it


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        narrow = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(narrow)))], 1)


class Transition(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    def __init__(self, blocks, stem, growth, classes, channels=3):
        super().__init__()
        parts = OrderedDict(conv0=nn.Conv2d(channels, stem, 7, stride=2, padding=3, bias=False))
        parts["norm0"], parts["relu0"] = nn.BatchNorm2d(stem), nn.ReLU()
        parts["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        width = stem
        for number, count in enumerate(blocks, start=1):
            layers = OrderedDict()
            for index in range(1, count + 1):
                layers[f"denselayer{index}"] = DenseLayer(width, growth)
                width += growth
            parts[f"denseblock{number}"] = nn.Sequential(layers)
            if number < len(blocks):
                parts[f"transition{number}"] = Transition(width)
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        x = F.relu(self.features(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def same_pad(x, kernel, stride):
    """Pad as TensorFlow's "same" does: the odd pixel goes to the bottom right."""
    totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
    (top, left) = (total // 2 for total in totals)
    return F.pad(x, (left, totals[1] - left, top, totals[0] - top))


class Block(nn.Module):
    def __init__(self, came_in, kernel, stride, expansion, out):
        super().__init__()
        wide = came_in * expansion
        self.kernel, self.stride, self.adds = kernel, stride, stride == 1 and came_in == out
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(came_in, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(same_pad(y, self.kernel, self.stride))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    STAGES = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self, classes=1000):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in self.STAGES:
            for repeat in range(repeats):
                blocks.append(Block(width, kernel, stride if repeat == 0 else 1, expansion, out))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(same_pad(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


@torch.no_grad()
def enliven(model, seed):
    """Weights that keep the signal alive, and variances down to 1e-6, where the epsilon of a batch norm is seen."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.copy_(10 ** uniform(layer.running_var, -6, 0))
            layer.weight.copy_(uniform(layer.weight, 0.7, 1.4) * layer.running_var.sqrt())
            layer.running_mean.copy_(uniform(layer.running_mean, -0.3, 0.3))
            layer.bias.copy_(uniform(layer.bias, -0.3, 0.3))
    return model.eval()
