r"""Torch-Pruning on a DenseNet of plain torch layers: the other side of bench_removal.py, which runs it.

Command:  PYTHON_WITH_TORCH experiments/torch_densenet.py --blocks=6,12,24,16 --kept=FILE
Result:   one line of JSON on stdout: seconds, memory, parameters before and after, versions.

This file lives in an environment of its own, with torch and torch-pruning and without this package. The network is
that of Huang et al. (arXiv 1608.06993) with the usual widths: stem 64, growth 32, bottlenecks of 4 x 32, transitions
that halve. Parameters are counted as Keras counts them: kernels, biases and the four vectors of every batch norm, so
torch's running means and variances are in, its counters of batches (num_batches_tracked) are not.

FILE holds a JSON list: how many filters each convolution keeps, in the order in which the network applies them. What
is timed are the calls that Torch-Pruning documents: `DependencyGraph().build_dependency` by itself, twice, and then
the whole removal, `BasePruner(...)` with the l1 importance of groups, which builds its graph anew, and `step()`. The
seconds of the whole removal are therefore those of a process that has built the graph before.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

GROWTH = 32
STEM = 64


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to four times the growth, BN, ReLU, 3x3 to the growth; joined to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * GROWTH)
        self.conv1 = nn.Conv2d(channels, 4 * GROWTH, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        """(n, c, h, w) -> (n, c + growth, h, w)."""
        narrow = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(narrow)))], dim=1)


def densenet(blocks: list[int], classes: int) -> Any:
    """DenseNet with so many dense layers per block and one logit per class."""
    layers = [nn.Conv2d(3, STEM, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(STEM), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    channels = STEM
    for number, count in enumerate(blocks):
        if number:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels))
            channels += GROWTH
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def count_params(model: Any) -> int:
    """What Keras counts: parameters, and the running statistics of batch norms."""
    statistics = [buffer for name, buffer in model.named_buffers() if not name.endswith("num_batches_tracked")]
    return sum(tensor.numel() for tensor in [*model.parameters(), *statistics])


def remove(model: Any, image: Any, kept: list[int]) -> None:
    """Pruned the model in place: each convolution keeps as many filters as listed.

    Raises:
        ValueError: the list is for another network, or other widths came out.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # Torch-Pruning keeps int(channels * (1 - ratio)): half a channel more survives the rounding of that product.
    ratios = {
        layer: 1 - min(1.0, (count + 0.5) / layer.out_channels) for layer, count in zip(convolutions, kept, strict=True)
    }
    pruner = tp.pruner.BasePruner(
        model,
        image,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio_dict=ratios,
        ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
    )
    pruner.step()
    left = [layer.out_channels for layer in convolutions]
    if left != kept:
        raise ValueError(f"expected widths {kept}, got {left}: this is not the same removal")


def peak_bytes() -> int:
    """The most memory that this process has had resident so far; Linux counts it in KiB, and now and then late."""
    return max(resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def resident_bytes() -> int:
    """Memory that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(blocks: list[int], classes: int, size: int, kept: list[int]) -> dict[str, Any]:
    """Build the network, then the graph twice, then remove; every number that is reported."""
    model = densenet(blocks, classes).eval()
    image = torch.randn(1, 3, size, size)
    result: dict[str, Any] = {"params": count_params(model), "resident_before_bytes": resident_bytes()}
    for name in ("graph_seconds", "graph_again_seconds"):
        gc.collect()
        started = time.perf_counter()
        tp.DependencyGraph().build_dependency(model, example_inputs=image)
        result[name] = time.perf_counter() - started
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    remove(model, image, kept)
    result["total_seconds"] = time.perf_counter() - wall
    result["total_cpu_seconds"] = time.process_time() - cpu
    result |= {"resident_after_bytes": resident_bytes(), "peak_bytes": peak_bytes()}
    return result | {"pruned_params": count_params(model)}


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description="Torch-Pruning on a DenseNet of plain torch layers.")
    parser.add_argument("--blocks", required=True, help="Dense layers per block, such as 6,12,24,16.")
    parser.add_argument("--kept", required=True, type=Path, help="JSON list: filters that each convolution keeps.")
    parser.add_argument("--size", type=int, default=224, help="Pixels.")
    parser.add_argument("--classes", type=int, default=14, help="Logits.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    blocks = [int(count) for count in arguments.blocks.split(",")]
    measured = measure(blocks, arguments.classes, arguments.size, json.loads(arguments.kept.read_text()))
    versions = {name: version(name) for name in ("torch", "torch-pruning", "numpy")}
    print(json.dumps({"measured": measured, "threads": torch.get_num_threads(), "versions": versions}))


if __name__ == "__main__":
    main()
