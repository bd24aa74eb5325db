"""cxr_convert --edgetpu, and convert(edgetpu=True)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_compress.cli.convert import main
from cxr_compress.cli.inspect import main as inspect
from cxr_compress.device import read_model
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.targets.edgetpu import edgetpu_report
from cxr_compress.models.files import save_model
from tests.cli.runner import errors_of
from tests.lite import nets
from tests.lite.targets import target_nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it
Capture = pytest.CaptureFixture[str]


def leaky_chain() -> Any:
    """image - conv - LeakyReLU "leak" - mean - logits (4): of an image, three channels"""
    image = keras.Input((16, 16, 3))
    x = keras.layers.LeakyReLU(0.1, name="leak")(keras.layers.Conv2D(8, 3, name="before")(image))
    x = keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    return nets.settle(keras.Model(image, x, name="leaky_chain"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chain.keras, leaky.keras, batch.keras with a fixed batch of 4, and images/."""
    folder = tmp_path_factory.mktemp("edgetpu")
    save_model(nets.chain(), folder / "chain.keras")
    save_model(leaky_chain(), folder / "leaky.keras")
    image = keras.Input((16, 16, 3), batch_size=4)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    save_model(keras.Model(image, keras.layers.Dense(2)(x)), folder / "batch.keras")
    (folder / "images").mkdir()
    for number in range(16):
        picture = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{number:02}.png"), picture)
    return folder


def call(folder: Path, target: Path, model: str, *flags: str) -> int:
    source = [PRESET, f"--keras_model_file={folder / model}", f"--output_file={target}", "--edgetpu"]
    return main([*source, f"--calibration_data={folder / 'images'}", "--novary_images", *flags])


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_convert_for_the_edge_tpu_writes_a_file_that_passes_the_inspection(
    folder: Path, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    assert call(folder, tmp_path / "x.tflite", "chain.keras", "--quant_type=int8", f"--input={kind}") == 0
    report = edgetpu_report(read_model(tmp_path / "x.tflite").content)
    assert report.ready
    assert report.inputs == ("uint8" if kind == "uint8" else "int8",)
    capsys.readouterr()
    assert inspect([str(tmp_path / "x.tflite"), "--target=edgetpu"]) == 0
    assert "runs on the Edge TPU as a whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        (
            "leaky.keras",
            ["--quant_type=int8"],
            "the Edge TPU cannot run LEAKY_RELU (operator 1, layer 'leak'): the Edge TPU has no such operation",
        ),
        ("chain.keras", ["--quant_type=int8_float_io"], "the Edge TPU runs int8 files alone, got int8_float_io"),
        ("chain.keras", ["--quant_type=int8,none"], "the Edge TPU runs int8 files alone, got int8, none"),
        ("chain.keras", [], "the Edge TPU runs int8 files alone, got none"),
        (
            "chain.keras",
            ["--quant_type=int8", "--inference_output_type=float32"],
            "the Edge TPU takes and gives 8 bits, got inference_output_type float32",
        ),
        ("batch.keras", ["--quant_type=int8"], "expected a model with an open batch or batch 1, got batch 4"),
    ],
)
def test_convert_for_the_edge_tpu_of_what_it_cannot_run_writes_nothing_and_names_the_layer(
    folder: Path, tmp_path: Path, capsys: Capture, model: str, flags: list[str], message: str
) -> None:
    assert call(folder, tmp_path / "x.tflite", model, *flags) == 2
    errors = errors_of(capsys.readouterr().err)
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_convert_without_the_flag_writes_what_the_edge_tpu_would_refuse(folder: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    source = [PRESET, f"--keras_model_file={folder / 'leaky.keras'}", f"--output_file={tmp_path / 'x.tflite'}"]
    assert main([*source, "--quant_type=int8", f"--calibration_data={folder / 'images'}"]) == 0
    assert not edgetpu_report(read_model(tmp_path / "x.tflite").content).ready


def test_convert_in_the_library_takes_the_same_switch() -> None:
    images = target_nets.images()
    options: dict[str, Any] = {"calibration": [images], "calibration_steps": 16, "edgetpu": True}
    with pytest.raises(CompressionError, match=r"cannot run LEAKY_RELU \(operator 1, layer 'leak'\)"):
        convert(target_nets.with_leaky_middle(), "int8", **options)
    with pytest.raises(CompressionError, match="the Edge TPU runs int8 files alone, got none: export int8 for it"):
        convert(target_nets.with_leaky_middle(), "none", **options)


def test_convert_of_a_frozen_batch_of_two_for_the_edge_tpu_is_one_line() -> None:
    frozen = freeze(nets.chain(), batch_size=2)
    with pytest.raises(CompressionError, match="the batch is 2: the Edge TPU takes one image at a time"):
        convert(frozen, "int8", calibration=[nets.batch(16)], calibration_steps=16, edgetpu=True)
