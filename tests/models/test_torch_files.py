"""Files that real PyTorch wrote: our model computes PyTorch's logits, and would not if the import were wrong.

The files come from tests/torch_env/write_files.py: $CXR_TORCH_FILES names the folder that it filled, or
$CXR_TORCH_PYTHON a python with torch that runs it here. Without either these tests are skipped; test_foreign.py covers
the same readers with files of our own writing.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.models import import_weights
from cxr_compress.models.imports import base, torch_densenet
from cxr_compress.models.imports.torch_densenet import XRV_FINDINGS

WRITER = Path(__file__).resolve().parents[1] / "torch_env" / "write_files.py"
FILES = {
    "small_zip.pt": "torchvision_densenet",
    "small_legacy.pth": "torchvision_densenet",
    "small_protocol4.pt": "torchvision_densenet",
    "small.safetensors": "torchvision_densenet",
    "small_bf16.safetensors": "torchvision_densenet",
    "small.npz": "torchvision_densenet",
    "arnoweng.pth.tar": "chexnet_torch",
    "zech": "chexnet_torch",
    "xrv_zip.pt": "torchxrayvision",
    "xrv_legacy.pt": "torchxrayvision",
    "densenet121.pt": "torchvision_densenet",
    "lite0.pth": "efficientnet_lite0",
}
# Two frameworks add up the same float32 products in another order: some 1e-6 of logits around 1. What is asked for:
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory):
    folder, python = os.environ.get("CXR_TORCH_FILES"), os.environ.get("CXR_TORCH_PYTHON")
    if folder:
        return Path(folder)
    if not python:
        pytest.skip("no files of real PyTorch: set CXR_TORCH_PYTHON to a python with torch, or CXR_TORCH_FILES")
    made = tmp_path_factory.mktemp("torch")
    subprocess.run([python, str(WRITER), str(made)], check=True, capture_output=True, timeout=300)
    return made


@pytest.fixture(scope="module")
def expected(torch_files):
    with np.load(torch_files / "expected.npz") as archive:
        return dict(archive)


def imported(folder, file, expected):
    size = expected[f"{file}|images"].shape[1]
    return import_weights(FILES[file], folder / file, input_size=size)


def error(made, file, expected) -> float:
    """The largest difference of any logit from PyTorch's."""
    logits = expected[f"{file}|logits"]
    # The images reach the logits, so that equal outputs mean something: random weights let little through.
    assert logits.std(axis=0).mean() > 20 * TOLERANCE
    return float(np.abs(made.model(expected[f"{file}|images"]).numpy() - logits).max())


LARGE = ("densenet121.pt", "lite0.pth")


@pytest.mark.parametrize("file", [pytest.param(f, marks=pytest.mark.densenet if f in LARGE else ()) for f in FILES])
def test_import_weights_file_of_real_torch_computes_the_same_logits(torch_files, expected, file):
    made = imported(torch_files, file, expected)
    assert error(made, file, expected) < TOLERANCE
    assert len(made.about.findings) == expected[f"{file}|logits"].shape[1]
    assert made.report.arrays == len(made.model.weights)
    assert not made.report.fresh


def swapped_filters(layer_weights):
    (kernel,) = layer_weights
    return [kernel[..., [1, 0, *range(2, kernel.shape[-1])]]]


def flipped(layer_weights):
    (kernel,) = layer_weights
    return [kernel.transpose(1, 0, 2, 3)]


def gamma_for_beta(layer_weights):
    gamma, beta, mean, variance = layer_weights
    return [beta, gamma, mean, variance]


@pytest.mark.parametrize(
    ("layer", "spoil"),
    [("conv3_block2_1_conv", swapped_filters), ("conv2_block1_2_conv", flipped), ("pool2_bn", gamma_for_beta)],
)
def test_control_one_wrong_layer_is_seen_in_the_logits(torch_files, expected, layer, spoil):
    made = imported(torch_files, "small_zip.pt", expected)
    wrong = made.model.get_layer(layer)
    wrong.set_weights(spoil(wrong.get_weights()))
    assert error(made, "small_zip.pt", expected) > 10 * TOLERANCE


def test_control_epsilon_left_as_it_is_is_seen_in_the_logits(torch_files, expected, monkeypatch):
    """Variances down to 1e-6 show the one per mille between PyTorch's epsilon and ours."""

    def unadjusted(layers, epsilon, ours):
        return base.from_torch(layers, epsilon, epsilon)

    monkeypatch.setattr(torch_densenet, "from_torch", unadjusted)
    made = imported(torch_files, "small_zip.pt", expected)
    assert error(made, "small_zip.pt", expected) > TOLERANCE


def test_import_weights_torchxrayvision_module_keeps_thresholds_and_one_channel(torch_files, expected):
    made = imported(torch_files, "xrv_zip.pt", expected)
    assert made.model.input_shape == (None, 64, 64, 1)
    assert made.about.findings == XRV_FINDINGS
    assert made.about.preprocess.channels == 1
    assert list(made.report.thresholds) == list(XRV_FINDINGS[:17])  # the last one is NaN
    assert made.report.thresholds["Atelectasis"] == 0.1
    assert "Consolidation 0.11" in made.about.notes


def test_import_weights_arnoweng_checkpoint_has_chexnets_findings(torch_files, expected):
    made = imported(torch_files, "arnoweng.pth.tar", expected)
    assert made.about.findings == NIH_FINDINGS
    name = "module.densenet121.features.denseblock1.denselayer1.norm.1.weight"
    assert made.report.renamed[name] == "conv2_block1_0_bn/gamma:0"
